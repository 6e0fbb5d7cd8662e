"""`crucible storage check`: a whole database is found whole, and each way to damage one is named."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.event_pb2 import Event
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_rpc.errors import StartError
from crucible_storage import state
from crucible_storage.integrity.check import check
from crucible_storage.maintenance import sqlite_file
from tests.storage import world as w
from tests.storage.world import FENCE, STDERR, exited, finished, killed, output, report, started, storage

VERIFIER = signing.Verifier.of(w.RECORDS.public_pem)

pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]


def checked(file, verifier=VERIFIER):
    with sqlite_file.read_only(file) as connection:
        return check(connection, verifier)


async def lives(world):
    """One evaluation of each kind of life; the first is the one that tests damage."""
    await world.register()
    await world.create(labels={"suite": "a", "n": "1"}, request_id="r-1")
    one = await world.lease_one()
    chunks = [output(b"hello "), output(b"world", 6), output(b"oh", 0, STDERR)]
    assert await world.report(report(one, started(), *chunks[:1])) == []
    end = finished(one, exited(3), stdout=b"hello world", stderr=b"oh")
    assert await world.report(report(one, *chunks[1:], end)) == []

    await world.create()  # queued, and cancelled there
    await world.cancel(await world.create())

    runs = await world.create("u")
    running = await world.lease(2)
    its_own = next(one for one in running if one.evaluation == runs.name)
    assert await world.report(report(its_own, started(), output(b"x"))) == []

    await world.create("v")  # fails twice with output, is refused, goes back, and ends
    for _ in range(2):
        [assignment] = await world.lease()
        assert await world.report(report(assignment, started(), output(b"first try"))) == []
        lost = work.RunLost(reason="gone", confirmed_gone=True)
        assert await world.report(report(assignment, lost=lost)) == []
        world.clock.advance(timedelta(seconds=5))
        await world.renew(*running)
    assignment = next(one for one in await world.lease(3) if one.run_id.endswith(".3"))
    assert await world.report(report(assignment, refused=work.Refused(reason="busy"))) == []
    world.clock.advance(timedelta(seconds=1))
    assignment = await world.lease_one()
    assert await world.report(report(assignment, finished(assignment, exited(0)))) == []

    cancelled = await world.create()  # cancelled while it runs
    assignment = await world.lease_one()
    await world.cancel(cancelled)
    end = finished(assignment, killed(), stdout=b"a")
    assert await world.report(report(assignment, started(), output(b"a"), end)) == []

    deleted = await world.create(labels={"gone": "yes"})
    assignment = await world.lease_one()
    assert await world.report(report(assignment, output(b"secret"), finished(assignment, stdout=b"secret"))) == []
    await world.service.deletion.delete(deleted.name.removeprefix("evaluations/"), "key-9", "asked to")

    await world.create()  # its executor is lost for good: three attempts
    for _ in range(3):
        await world.lease(4)
        world.clock.advance(FENCE + timedelta(seconds=70))
        await world.sweep()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of a database with many lives, closed."""
    folder = tmp_path_factory.mktemp("whole")

    async def made():
        async with storage(folder / "state") as world:
            await lives(world)

    asyncio.run(made())
    return folder / "state" / state.FILE


@pytest.fixture
def file(whole, tmp_path):
    return shutil.copy(whole, tmp_path / "copy.sqlite3")


def damage(file, *statements):
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            parts = (statement,) if isinstance(statement, str) else statement
            assert connection.execute(*parts).rowcount != 0, statement


def names(file, *expected):
    verdict = checked(file)
    assert not verdict.whole
    for text in expected:
        assert any(text in line for line in verdict.findings.shown), verdict.findings.shown


def test_a_whole_database_is_found_whole(whole):
    verdict = checked(whole)
    assert verdict.findings.shown == []
    assert verdict.progress.evaluations == verdict.progress.of == 8
    assert verdict.progress.deleted == 1
    assert verdict.progress.records == 3
    with closing(sqlite3.connect(whole)) as connection:
        assert connection.execute("SELECT count(*) FROM event").fetchone() == (verdict.progress.events,)


def test_all_that_is_told_of_the_deleted_one_is_its_digests(whole):
    with closing(sqlite3.connect(whole)) as connection:
        (seq,) = connection.execute("SELECT seq FROM evaluation WHERE state = 7").fetchone()
        bodies = connection.execute("SELECT body FROM event WHERE evaluation_seq = ? ORDER BY position", (seq,))
        events = [Event.FromString(body) for (body,) in bodies]
        assert {event.WhichOneof("kind") for event in events[:-1]} == {"removed"}
        assert (events[-1].deleted.by, events[-1].deleted.reason) == ("key-9", "asked to")
        assert events[-1].deleted.record_sha256


ROW = "UPDATE evaluation SET {} WHERE seq = 1"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("state = 4", "its row has state 4, its events tell 5"),
        ("version = version + 1", "its row has version"),
        ("attempt = 2", "its row has attempt 2"),
        ("epoch = 7", "its row has epoch 7"),
        ("executor = 'ex-2'", "its row has executor ex-2, its events tell ex-1"),
        ("boot_id = 'boot-2'", "its row has boot_id boot-2"),
        ("create_time = create_time - 1", "its row has create_time"),
        ("start_time = start_time + 1", "its row has start_time"),
        ("end_time = NULL", "its row has end_time None"),
        ("cancel_time = 1", "its row has cancel_time 1"),
        ("stdout_bytes = 12", "its row has 12 bytes of stdout, its events have 11"),
        ("stderr_bytes = 0", "its row has 0 bytes of stderr, its events have 2"),
        ("behaviour_updates = 3", "its row has behaviour_updates 3"),
        ("lease_renewed = 1", "a lease is noted exactly while one is held"),
        ("lost_reason = 'x'", "a lost lease is noted"),
        ("not_before = 1", "it waits for a time"),
        ("priority = 5", "limits, priority or labels are not those whose digest"),
        ("limits = x''", "limits, priority or labels are not those whose digest"),
        ("""labels = '{"suite": "b", "n": "1"}'""", "its labels are not those that lists are made by"),
        ("labels = '{'", "a JSON text of it cannot be read"),
        ("engine = 'docker'", "another engine or runtime than its program"),
        ("creator = 'key-2'", "its creator, request id, spec or batch"),
        ("request_id = 'r-2'", "its creator, request id, spec or batch"),
        ("spec_sha256 = x'00'", "its creator, request id, spec or batch"),
        ("run_spec_sha256 = x'00'", "its program is not the one whose digest"),
        ("tenant = 'z'", "belongs to another tenant"),
        ("tenant = 'z'", "tenant z: 0 evaluations are counted in state 5, there are 1"),
    ],
)
def test_a_changed_row_is_named(file, change, named):
    damage(file, ROW.format(change))
    names(file, named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE program SET run_spec = x'0a00' WHERE evaluation_seq = 1", "its program is not the one whose digest"),
        ("DELETE FROM program WHERE evaluation_seq = 1", "its program is missing"),
        ("DELETE FROM result WHERE evaluation_seq = 1", "it has ended, and its result is missing"),
        ("INSERT INTO result SELECT 2, tenant, result FROM result WHERE evaluation_seq = 1", "a result before its end"),
        ("UPDATE result SET result = x'ff' WHERE evaluation_seq = 1", "cannot be read"),
        (
            "UPDATE result SET result = (SELECT result FROM result WHERE evaluation_seq = 5) WHERE evaluation_seq = 1",
            "another termination than its last event tells",
        ),
        ("DELETE FROM label WHERE key = 'n'", "its labels are not those"),
        ("DELETE FROM failed_attempt WHERE attempt = 2", "failed attempts are stored, its events tell 2"),
        ("UPDATE failed_attempt SET reason = 'other'", "or they differ"),
        ("UPDATE evaluation_count SET count = count + 1 WHERE state = 1", "evaluations are counted in state 1"),
        ("DELETE FROM evaluation_count", "0 evaluations are counted in state"),
        (
            "UPDATE output SET data = CAST('j' || substr(data, 2) AS BLOB) WHERE position = 4",
            "its kept stdout is not what the signed",
        ),
        ("UPDATE output SET data = CAST(data || '!' AS BLOB) WHERE position = 4", "has 7 bytes, 6 were stored"),
        ("UPDATE output SET data = 'hello ' WHERE position = 4", "event 4: "),
        ("UPDATE output SET offset = 7 WHERE offset = 6", "begins at 7, where 6 was expected"),
        ("UPDATE output SET attempt = 9 WHERE position = 4", "the output at its position is not its own"),
        ("DELETE FROM output WHERE position = 4", "event 4: its output is missing"),
        (
            "INSERT INTO output SELECT 9999, tenant, 1, 1, 1, 11, 1, x'00' FROM output LIMIT 1",
            "where no event tells of it",
        ),
        ("DELETE FROM event WHERE position = 2", "the event log has a gap before position 3"),
        ("DELETE FROM event WHERE position = 1", "the event log begins at position 2"),
        ("DELETE FROM event WHERE evaluation_seq = 1", "its events are missing"),
        ("UPDATE event SET body = x'ff' WHERE position = 2", "event 2: "),
        ("UPDATE event SET body = (SELECT body FROM event WHERE position = 1) WHERE position = 2", "cannot come after"),
        ("UPDATE event SET attempt = 2 WHERE position = 2", "attempt 2 came after attempt 0"),
        ("UPDATE event SET tenant = 'z' WHERE position = 2", "event 2: it belongs to another tenant"),
        ("UPDATE event SET time = time + 1 WHERE position = 1", "its row has create_time"),
        (
            "UPDATE event SET evaluation_seq = 99 WHERE position = 2",
            "event: a row names evaluation 99, which is not there",
        ),
        ("UPDATE log_head SET position = position + 1", "its head says"),
        ("DELETE FROM evaluation WHERE seq = 2", "program: a row names evaluation 2, which is not there"),
        ("UPDATE evaluation SET state = 5 WHERE state = 7", "its events tell otherwise"),
        ("INSERT INTO label SELECT seq, 'k', tenant, 'v' FROM evaluation WHERE state = 7", "something of it is left"),
        ("DROP INDEX ix_event_evaluation", "the schema is not that of its revision"),
        ("DELETE FROM setting WHERE name = 'events-complete-after'", "the setting events-complete-after is missing"),
    ],
)
def test_damage_in_other_tables_is_named(file, change, named):
    damage(file, change)
    names(file, named)


def changed(file, seq, change):
    """Changes the stored end of an evaluation."""
    with closing(sqlite3.connect(file)) as connection, connection:
        (blob,) = connection.execute("SELECT result FROM result WHERE evaluation_seq = ?", (seq,)).fetchone()
        end = pb.Evaluation.FromString(blob)
        change(end)
        connection.execute("UPDATE result SET result = ? WHERE evaluation_seq = ?", (end.SerializeToString(), seq))


def test_what_the_executor_signed_cannot_be_changed_unseen(file):
    changed(file, 1, lambda end: setattr(end.usage, "peak_memory_bytes", 1))
    names(file, "its result is not what the signed final record says")


def test_a_record_with_a_flipped_byte_is_named(file):
    def flip(end):
        record = end.provenance.record
        record.payload = record.payload[:-1] + bytes([record.payload[-1] ^ 1])

    changed(file, 1, flip)
    names(file, "the final record is not signed by a known executor", "not the one that its last event tells of")


def test_a_result_without_its_record_is_named(file):
    changed(file, 1, lambda end: end.provenance.ClearField("record"))
    names(file, "its signed final record is missing")


def test_records_of_an_unknown_executor_are_named(file):
    verdict = checked(file, signing.Verifier.of(signing.generate().public_pem))
    assert verdict.findings.total == 3
    assert all("not signed by a known executor" in line for line in verdict.findings.shown)


def test_a_damaged_page_is_named(file):
    with Path(file).open("r+b") as stream:
        stream.seek(4096 * 6)
        stream.write(b"\xff" * 4096 * 4)
    assert any("damaged" in line or "malformed" in line for line in checked(file).findings.shown)


def test_an_index_that_lacks_an_entry_is_named(file):
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        sql = "CREATE INDEX ix_event_evaluation ON event (position, evaluation_seq)"  # sorted in another way than it is
        connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'ix_event_evaluation'", (sql,))
        connection.commit()
    names(file, "the file is damaged: ")


def test_many_faults_are_counted_and_the_first_shown(file):
    damage(file, "UPDATE evaluation SET version = version + 1")
    with sqlite_file.read_only(file) as connection:
        verdict = check(connection, VERIFIER, limit=3)
    assert len(verdict.findings.shown) == 3
    assert verdict.findings.total >= 8


def test_a_check_changes_nothing(file):
    before = Path(file).read_bytes()
    checked(file)
    assert Path(file).read_bytes() == before


def test_a_database_of_an_earlier_version_is_refused(file):
    damage(file, "UPDATE alembic_version SET version_num = '0003'")
    with pytest.raises(StartError, match="crucible storage migrate"):
        checked(file)


def test_events_of_a_version_that_told_less_are_no_fault(file):
    """As after migration 0008: what earlier events leave open is not held against the row."""
    with closing(sqlite3.connect(file)) as connection, connection:
        rows = connection.execute("SELECT position, body FROM event WHERE body != x''").fetchall()
        for position, body in rows:
            event = Event.FromString(body)
            if event.HasField("state_changed"):
                for field in ("lease_epoch", "created", "executor", "boot_id", "start_time", "record_sha256"):
                    event.state_changed.ClearField(field)
            connection.execute("UPDATE event SET body = ? WHERE position = ?", (event.SerializeToString(), position))
    assert not checked(file).whole
    damage(file, "UPDATE setting SET value = CAST('100000' AS BLOB) WHERE name = 'events-complete-after'")
    assert checked(file).findings.shown == []
