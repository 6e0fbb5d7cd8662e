"""A PostgreSQL server that is restarted, or a connection that is cut: nothing is half done, doubled or guessed."""

import asyncio
import logging

import pytest
from sqlalchemy import event, text

from crucible_rpc.errors import StartError, UnavailableError
from crucible_storage import group_commit, state
from crucible_storage.databases import choose
from tests.storage.world import storage

pytestmark = pytest.mark.database("postgresql")
LIMIT = 30.0


@pytest.fixture
def cut(databases, tmp_path):
    """Ends a connection from outside, as an administrator or a broken network does."""

    def end(connection):
        number = connection.connection.dbapi_connection.info.backend_pid
        databases.server.execute(f"SELECT pg_terminate_backend({number}, 5000)")

    return end


async def until(holds):
    async with asyncio.timeout(LIMIT):
        while not holds():  # noqa: ASYNC110  # what writes knows nothing of this test
            await asyncio.sleep(0.01)


async def stored(world):
    rows = await world.service.database.read(lambda one: one.execute(text("SELECT id FROM evaluation")).fetchall())
    return {f"evaluations/{row[0]}" for row in rows}


async def test_a_connection_cut_in_the_middle_of_a_group_costs_nothing_and_doubles_nothing(world, cut):
    runs = []

    def cutting(transaction):
        runs.append(1)
        if len(runs) == 1:
            cut(transaction.connection)
        transaction.execute(text("UPDATE log_head SET tenant = tenant"))

    results = await asyncio.gather(
        world.create(), world.create(), world.service.database.write(cutting), world.create(), world.create()
    )
    assert len(runs) == 2
    assert {one.name for one in results if one is not None} == await stored(world)
    assert [one.position for one in await world.events()] == [1, 2, 3, 4]


async def test_a_connection_cut_during_the_commit_is_told_and_not_guessed(world, cut):
    engine = world.service.database._backend.writer
    cutting = []

    def at_commit(connection):
        if not cutting:
            cutting.append(1)
            cut(connection)

    event.listen(engine, "commit", at_commit)
    with pytest.raises(UnavailableError, match="whether this was stored is not known"):
        await world.create(request_id="again")
    made = await world.create(request_id="again")
    assert await stored(world) == {made.name}
    assert [one.position for one in await world.events()] == [1]


async def test_a_commit_that_took_effect_before_the_connection_was_cut_is_found_by_its_request_id(world, cut):
    engine = world.service.database._backend.writer
    cutting = []

    def commits_first(connection):
        if not cutting:
            cutting.append(1)
            connection.connection.dbapi_connection.execute("COMMIT; BEGIN")
            cut(connection)

    event.listen(engine, "commit", commits_first)
    with pytest.raises(UnavailableError, match="whether this was stored is not known"):
        await world.create(request_id="again")
    [name] = await stored(world)
    assert (await world.create(request_id="again")).name == name
    assert [one.position for one in await world.events()] == [1]


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_a_server_that_restarts_under_load_loses_nothing_that_was_acknowledged(world, databases, way):
    acknowledged, unknown = [], []
    going = True

    async def creates(number):
        while going:
            try:
                acknowledged.append((await world.create()).name)
            except UnavailableError as error:
                unknown.append(error.message)

    writing = [asyncio.create_task(creates(number)) for number in range(8)]
    server = databases.server.postgresql
    for _ in range(2):
        had = len(acknowledged)
        await until(lambda: len(acknowledged) >= had + 30)  # noqa: B023
        await asyncio.to_thread(getattr(server, way))
        server.start()  # by this thread, with which it would end
    had = len(acknowledged)
    await until(lambda: len(acknowledged) >= had + 10)
    going = False
    await asyncio.gather(*writing)
    found = await stored(world)
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + sum("not known" in message for message in unknown)
    events = await world.events()
    assert [one.position for one in events] == list(range(1, len(found) + 1))


async def test_while_the_server_is_gone_calls_are_refused_soon_and_then_go_on(world, databases, monkeypatch):
    monkeypatch.setattr(group_commit, "PATIENCE", 0.2)
    kept = await world.create()
    server = databases.server.postgresql
    await asyncio.to_thread(server.stop)
    try:
        async with asyncio.timeout(LIMIT):
            results = await asyncio.gather(*(world.create() for _ in range(300)), return_exceptions=True)
            assert {type(one) for one in results} == {UnavailableError}
            assert {one.reason for one in results} == {"PEER_UNAVAILABLE"}
            with pytest.raises(UnavailableError, match="cannot reach its database"):
                await world.get(kept)
    finally:
        server.start()  # by this thread, with which it would end
    async with asyncio.timeout(LIMIT):
        made = await world.create()
        assert await stored(world) == {kept.name, made.name}


async def test_listeners_come_back_after_a_restart(tmp_path, databases, clock):
    databases.share(tmp_path / "a", tmp_path / "b")
    async with storage(tmp_path / "a", clock=clock) as first, storage(tmp_path / "b", clock=clock) as second:
        await second.register()
        leasing = asyncio.create_task(second.lease(wait=60.0))
        await asyncio.sleep(0)
        server = databases.server.postgresql
        await asyncio.to_thread(server.kill)
        server.start()  # by this thread, with which it would end
        evaluation = await first.create()
        [assignment] = await asyncio.wait_for(leasing, LIMIT)
        assert assignment.evaluation == evaluation.name


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@127.0.0.1:1/crucible",
        "postgresql://user:hunter2@%zz/crucible",
        "postgresql://user:hunter2@/crucible?nonsense=1",
        "mysql://user:hunter2@localhost/crucible",
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line_without_the_password(tmp_path, url, caplog):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StartError) as caught:
        state.open_state(tmp_path / "state", lambda notices: None, None, choose(url, tmp_path))
    assert "hunter2" not in str(caught.value) + caplog.text
    assert "\n" not in str(caught.value)


def test_a_database_in_another_encoding_is_refused(tmp_path, databases):
    name = "test_latin"
    databases.server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1'")
    backend = choose(databases.server.postgresql.url(name), tmp_path)
    with pytest.raises(StartError, match="has the encoding LATIN1"):
        state.prepare(backend)
    backend.dispose()
    databases.server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_password_is_read_from_its_file(tmp_path, databases):
    """The tests' server asks for none, so what would be sent is looked at."""
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    backend = choose(databases.url(tmp_path), tmp_path, file)
    with backend.writer.connect() as connection:
        assert connection.connection.dbapi_connection.info.password == "hunter2"
    backend.dispose()
    file.unlink()
    with pytest.raises(StartError, match="password cannot be read"):
        state.prepare(choose(databases.url(tmp_path), tmp_path, file))
