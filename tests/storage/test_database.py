"""Group commit, positions without gaps, a full disk, a killed process, and the schema."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from crucible_rpc.errors import AlreadyExistsError, ResourceExhaustedError, StartError
from crucible_storage import migrate, models, state
from crucible_storage.migrations import HEAD, is_current
from tests.storage.world import output, report, storage

pytestmark = pytest.mark.slow


@pytest.fixture
async def database(tmp_path, databases):
    seen = []
    opened = state.open_state(tmp_path / "state", seen.append, Observed(seen), databases.backend(tmp_path / "state"))
    opened.database.start()
    opened.database.seen = seen
    yield opened.database
    await opened.close()


class Observed:
    def __init__(self, seen):
        self.seen = seen

    def committed(self, operations, seconds, notices, counts):
        self.seen.append(operations)


def put(name, fail=None):
    def run(transaction):
        transaction.session.add(models.SettingRow(name=name, tenant="*", value=b"1"))
        transaction.session.flush()
        transaction.count("t", 1, 1)
        transaction.notices.finished.append(name)
        if fail is not None:
            raise fail
        return name

    return run


async def names(database):
    rows = await database.read(lambda connection: connection.execute(text("SELECT name FROM setting")).fetchall())
    rows = [row for row in rows if len(row[0]) == 1]  # not what storage keeps there itself
    return sorted(row[0] for row in rows)


async def test_a_failing_operation_is_undone_alone_in_its_group(database):
    failure = AlreadyExistsError("X", "x")
    operations = [put("a"), put("b", failure), put("c"), put("a"), put("d", KeyError("bug"))]
    results = await asyncio.gather(*(database.write(one) for one in operations), return_exceptions=True)
    assert [type(one).__name__ for one in results] == ["str", "AlreadyExistsError", "str", "IntegrityError", "KeyError"]
    assert await names(database) == ["a", "c"]
    assert database.queued == 2
    finished = [name for notices in database.seen if not isinstance(notices, int) for name in notices.finished]
    assert sorted(finished) == ["a", "c"]


async def test_writes_that_wait_together_are_committed_together(database):
    await asyncio.gather(*(database.write(put(f"n{number}")) for number in range(200)))
    batches = [one for one in database.seen if isinstance(one, int)]
    assert sum(batches) == 200
    assert len(batches) < 50
    assert max(batches) <= 128


async def test_nobody_is_answered_before_the_commit(database):
    await database.write(put("a"))
    assert await names(database) == ["a"]
    order = database.seen
    assert order[0] == 1  # committed
    assert order[1].finished == ["a"]  # then published, then answered


async def test_a_reader_cannot_write(database):
    with pytest.raises(DBAPIError, match=r"read-?only"):
        await database.read(lambda connection: connection.execute(text("DELETE FROM setting")))


async def test_fifty_writers_leave_no_gap_and_a_tailing_reader_misses_nothing(world):
    assignments = []
    for _ in range(10):
        await world.create()
    await world.register()
    assignments = await world.lease(10)
    total = 10 + 10 + 50 * 20 + 10 + 10 * 20
    tailed = []

    async def tail():
        async for batch in world.service.events.tail(0):
            tailed.extend(event.position for event in batch.events)
            if len(tailed) >= total:
                return

    async def creates():
        for _ in range(20):
            await world.create()

    async def writes_output(assignment):
        for offset in range(20):
            assert not await world.report(report(assignment, output(b"x", offset)))

    following = asyncio.create_task(tail())
    await asyncio.gather(*(creates() for _ in range(50)), *(writes_output(one) for one in assignments))
    await asyncio.wait_for(following, 30)
    assert tailed == list(range(1, total + 1))


_CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.storage import world
from tests.storage.world import storage
from crucible_storage.clock import SystemClock
from crucible_storage.databases import choose

class Databases:
    def backend(self, folder, clock):
        folder.mkdir(exist_ok=True)
        return choose({url!r}, folder)

world.DATABASES = Databases()

async def main():
    async with storage(Path({folder!r}), clock=SystemClock()) as world:
        async def creates():
            while True:
                name = (await world.create()).name
                sys.stdout.write(name + "\\n")
                sys.stdout.flush()
        await asyncio.gather(*(creates() for _ in range(8)))

asyncio.run(main())
"""


async def test_everything_acknowledged_survives_kill_9(tmp_path, databases):
    folder = tmp_path / "state"
    root = str(Path(__file__).parents[2])
    code = _CHILD.format(root=root, folder=str(folder), url=databases.url(folder))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    acknowledged = [(await child.stdout.readline()).decode().strip() for _ in range(200)]
    child.kill()
    rest = (await child.stdout.read()).decode()
    acknowledged += rest.split("\n")[: rest.count("\n")]  # the last line may be cut
    assert await child.wait() == -signal.SIGKILL
    async with storage(folder) as world:
        events = await world.events()
        stored = {event.evaluation for event in events}
        assert set(acknowledged) <= stored
        assert len(stored) - len(acknowledged) <= 8 * 2
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        assert world.service.database.queued == len(stored)


@pytest.mark.database("sqlite")
async def test_a_full_disk_is_told_and_leaves_nothing_half_written(world):
    pages = "SELECT page_count FROM pragma_page_count"

    def limit(extra):
        def run(transaction):
            used = transaction.connection.execute(text(pages)).scalar_one()
            transaction.connection.exec_driver_sql(f"PRAGMA max_page_count = {used + extra if extra else 1 << 30}")

        return run

    await world.create()
    await world.service.database.write(limit(30))
    results = await asyncio.gather(*(world.create(code=bytes(20_000)) for _ in range(40)), return_exceptions=True)
    refused = [one for one in results if isinstance(one, Exception)]
    assert refused
    assert all(isinstance(one, ResourceExhaustedError) and one.reason == "STORAGE_FULL" for one in refused)
    with pytest.raises(ResourceExhaustedError):
        await world.create(code=bytes(2_000_000))
    await world.service.database.write(limit(None))
    assert await world.create(code=bytes(20_000))
    stored = 2 + len(results) - len(refused)
    events = await world.events()
    assert [event.position for event in events] == list(range(1, stored + 1))
    rows = {
        name: await world.service.database.read(
            lambda connection, name=name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
        )
        for name in ("evaluation", "program", "event")
    }
    assert rows == {"evaluation": stored, "program": stored, "event": stored}
    assert world.service.database.queued == stored
    check = await world.service.database.read(
        lambda connection: connection.execute(text("PRAGMA integrity_check")).scalar_one()
    )
    assert check == "ok"


@pytest.mark.database("sqlite")
async def test_the_file_is_durable_and_used_by_one_writer(database):
    def pragmas(transaction):
        connection = transaction.connection
        return {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert await database.write(pragmas) == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.mark.database("sqlite")
async def test_a_second_process_on_the_same_folder_does_not_start(tmp_path):
    opened = state.open_state(tmp_path / "state", lambda notices: None)
    with pytest.raises(StartError, match="another storage process uses"):
        state.open_state(tmp_path / "state", lambda notices: None)
    await opened.close()
    again = state.open_state(tmp_path / "state", lambda notices: None)
    await again.close()


@pytest.mark.database("sqlite")
def test_a_state_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"state folder .* cannot be written"):
        state.open_state(tmp_path / "file" / "state", lambda notices: None)


@pytest.mark.database("sqlite")
def test_a_full_disk_at_the_start_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(StartError, match=r"is full: \d+ MiB free"):
        state.open_state(tmp_path, lambda notices: None)


@pytest.mark.database("sqlite")
def test_a_file_that_is_no_database_is_one_clear_line(tmp_path):
    (tmp_path / state.FILE).write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StartError, match="cannot be used: file is not a database"):
        state.open_state(tmp_path, lambda notices: None)


@pytest.fixture
def empty(tmp_path, databases):
    """A database that nobody has used yet."""
    databases.url(tmp_path / "state", empty=True)
    backend = databases.backend(tmp_path / "state")
    yield backend
    backend.dispose()


def test_a_database_of_a_later_version_is_one_clear_line(empty, tmp_path):
    state.prepare(empty)
    with empty.writer.connect() as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartError, match="revision 9999"):
        state.open_state(tmp_path / "state", lambda notices: None, None, empty)


def test_a_database_of_something_else_is_refused_and_left_as_it_is(empty, tmp_path):
    with empty.writer.connect() as connection, connection.begin():
        connection.execute(text("CREATE TABLE customers (id INTEGER)"))
    with pytest.raises(StartError, match="not a database of this storage: it has the table 'customers'"):
        state.open_state(tmp_path / "state", lambda notices: None, None, empty)
    with empty.reader.connect() as connection:
        assert inspect(connection).get_table_names() == ["customers"]


def indexes(connection):
    """Each index in the database's own words, so with the conditions of partial indexes, which alembic does not see."""
    known = {index.name for table in models.metadata.sorted_tables for index in table.indexes}
    catalogue = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index'",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes",
    }
    rows = connection.execute(text(catalogue[connection.dialect.name]))
    return {name: words for name, words in rows if name in known}


def test_the_migrated_schema_is_that_of_the_models(empty):
    with empty.writer.connect() as connection, connection.begin():
        assert not is_current(connection)
        migrate.upgrade(connection)
        assert is_current(connection)
        assert migrate.head() == HEAD
        assert migrate.differences(connection) == []
        migrated = indexes(connection)
        for name in migrated:
            connection.execute(text(f"DROP INDEX {name}"))
        for table in models.metadata.sorted_tables:
            for index in table.indexes:
                index.create(connection)
        assert indexes(connection) == migrated
        assert any("WHERE" in words for words in migrated.values())


def test_every_table_has_a_tenant():
    assert [table.name for table in models.metadata.sorted_tables if "tenant" not in table.columns] == []
