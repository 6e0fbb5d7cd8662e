"""Large output goes to the artifact store after the end: it reads the same before, meanwhile and afterwards."""

import asyncio
import os
import random
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from sqlalchemy import inspect, text

from crucible_rpc.errors import DataLossError, NotFoundError, UnavailableError
from crucible_storage import large_outputs, migrate
from crucible_storage.artifacts import objects
from crucible_storage.artifacts.blob_store import in_folder
from crucible_storage.artifacts.collector import Collector
from crucible_storage.artifacts.s3 import in_bucket
from crucible_storage.output_mover import REST, OutputMover
from crucible_storage.policy import Policy
from crucible_storage.recent import Recent
from tests.storage import artifact_world as a
from tests.storage import output_world as o
from tests.storage import s3_server
from tests.storage import world as w
from tests.storage.s3_server import FaultyProxy
from tests.storage.world import storage

pytestmark = pytest.mark.slow

HOUR = timedelta(hours=1)
LARGE = 300_000
PART = 64 << 10


class KilledError(Exception):
    """The process ends here, as far as what it has stored is concerned."""


@pytest.fixture
def nothing_remembered(monkeypatch):
    """Who follows the log reads it from the database."""
    monkeypatch.setattr(Recent, "after", lambda *_: None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def data():
    return os.urandom(LARGE)


async def delete(world, run):
    return await world.service.deletion.delete(o.evaluation_id(run), "key-1", "")


@pytest.mark.usefixtures("nothing_remembered")
async def test_moved_output_reads_as_before(world, folder, data):
    run = await o.writes(world, data, b"a little")
    shown, told = await world.get(run), await o.events(world, run)
    assert await o.move(world) == 1
    [file] = a.objects(folder)
    assert (file.read_bytes(), await o.kept_here(world)) == (data, len(b"a little"))
    assert await world.get(run) == shown
    assert shown.stdout.preview == data[:4096]
    assert await o.events(world, run) == told
    assert await world.events() == told
    for offset in (0, 1, o.CHUNK - 1, o.CHUNK, PART + 1, LARGE - 1, LARGE, LARGE + 1):
        assert await o.read(world, run, offset) == data[offset:]
    assert await o.read(world, run, 0, w.STDERR) == b"a little"
    pieces = [piece async for piece in o.parts(world, run)]
    assert max(len(piece) for _, piece in pieces) <= PART
    assert [at for at, _ in pieces] == list(range(0, LARGE, PART))
    assert await o.move(world) == 0


async def test_nothing_is_moved_that_is_small_or_goes_on_or_has_just_ended(world, folder, data):
    inline = world.policy.inline_output_bytes
    await o.writes(world, data[:inline], data[: inline - 1])
    goes_on = await world.running()
    await o.tell(world, goes_on, data)
    assert await o.move(world) == 0
    await world.renew(goes_on)
    assert await world.report(w.report(goes_on, w.finished(goes_on, stdout=data))) == []
    world.clock.advance(REST - o.MINUTE)
    assert await world.service.output_mover.look() == 0
    world.clock.advance(o.MINUTE)
    assert await world.service.output_mover.look() == 1
    assert [path.read_bytes() for path in a.objects(folder)] == [data]


async def test_output_of_an_attempt_that_failed_is_moved_after_the_end(world, data):
    failing = lambda run, out, err: w.finished(run, w.killed(2), stdout=out, stderr=err)  # noqa: E731
    first = await o.writes(world, data, end=failing)
    assert await o.move(world) == 0  # it is not over yet
    again = await world.lease_one()
    await o.tell(world, again, b"short")
    assert await world.report(w.report(again, w.finished(again, stdout=b"short"))) == []
    assert await o.move(world) == 1
    assert await o.read(world, first, attempt=1) == data
    assert await o.read(world, first) == b"short"


async def test_a_read_under_way_while_it_moves_misses_nothing(world, data, monkeypatch):
    monkeypatch.setattr(large_outputs, "_CHUNKS_AT_ONCE", 3)
    monkeypatch.setattr(large_outputs, "_CHUNKS", large_outputs._CHUNKS.limit(3))
    run = await o.writes(world, data)
    begun = [o.parts(world, run) for _ in range(3)]
    got = [(await anext(one))[1] for one in begun]
    one_by_one = large_outputs.empty
    steps = []

    def watched(*arguments, **named):
        steps.append(None)
        return one_by_one(*arguments, **named)

    monkeypatch.setattr(large_outputs, "empty", watched)
    moving = asyncio.create_task(o.mover(world).look())
    while not moving.done():
        assert await o.read(world, run, LARGE // 2) == data[LARGE // 2 :]
        assert (await world.get(run)).stdout.preview == data[:4096]
    assert (await moving, len(steps) > 5) == (1, True)
    for first, rest in zip(got, begun, strict=True):
        assert first + b"".join([part async for _, part in rest]) == data


@pytest.mark.parametrize("killed", ["before it is referred to", "before the chunks go", "among the chunks"])
async def test_a_move_that_was_killed_is_gone_on_with(world, folder, clock, data, monkeypatch, killed):
    monkeypatch.setattr(large_outputs, "_CHUNKS_AT_ONCE", 3)
    monkeypatch.setattr(large_outputs, "_CHUNKS", large_outputs._CHUNKS.limit(3))
    run = await o.writes(world, data)
    told = await o.events(world, run)
    empty = large_outputs.empty

    async def dies(*_):
        raise KilledError

    def empties_some(transaction, one, start):
        if killed == "before the chunks go" or start > 2 * o.CHUNK:
            raise KilledError
        return empty(transaction, one, start)

    with monkeypatch.context() as patched:
        patched.setattr(objects.blobs, "doom", lambda *_: None)
        if killed == "before it is referred to":
            patched.setattr(world.service.output_mover._objects, "_finished", dies)
        patched.setattr(large_outputs, "empty", empties_some)
        with pytest.raises(KilledError):
            await o.move(world)
    assert len(a.objects(folder)) == 1
    assert (await o.read(world, run), await o.events(world, run)) == (data, told)
    assert (await world.get(run)).stdout.preview == data[:4096]
    assert await o.move(world) == 1
    assert (await o.read(world, run), await o.events(world, run)) == (data, told)
    clock.advance(3 * HOUR)
    await world.service.collector.look()
    clock.advance(HOUR)
    assert await world.service.collector.look() == (killed == "before it is referred to")
    assert [path.read_bytes() for path in a.objects(folder)] == [data]
    assert (await o.kept_here(world), await o.states(world)) == (0, [3])


async def test_a_store_that_is_away_delays_and_loses_nothing(world, folder, data):
    first, second = await o.writes(world, data), await o.writes(world, data[::-1])
    store, away = folder / "artifacts", folder / "away"
    store.rename(away)
    store.write_text("in the way")
    with pytest.raises(UnavailableError, match="ARTIFACT_STORE_UNAVAILABLE"):
        await o.move(world)
    assert (await o.read(world, first), await o.read(world, second)) == (data, data[::-1])
    store.unlink()
    away.rename(store)
    assert await o.move(world) == 2
    store.rename(away)
    store.write_text("in the way")
    with pytest.raises(UnavailableError, match="ARTIFACT_STORE_UNAVAILABLE"):
        await o.read(world, first)
    with pytest.raises(UnavailableError, match="ARTIFACT_STORE_UNAVAILABLE"):
        await o.events(world, first)
    assert (await world.get(first)).stdout.preview == data[:4096]
    store.unlink()
    away.rename(store)
    assert (await o.read(world, first), await o.read(world, second)) == (data, data[::-1])


async def test_an_object_that_is_damaged_when_the_same_bytes_are_moved_is_mended_first(world, folder, data):
    await o.writes(world, data)
    await o.move(world)
    [file] = a.objects(folder)
    file.write_bytes(bytes(LARGE))
    again = await o.writes(world, data)
    assert await o.move(world) == 1
    assert await o.read(world, again) == data


@pytest.mark.usefixtures("nothing_remembered")
async def test_an_object_that_is_lost_is_told_and_holds_up_nobody_who_follows_the_log(world, folder, data):
    run = await o.writes(world, data, b"fine")
    told = await o.events(world, run)
    await o.move(world)
    [file] = a.objects(folder)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataLossError, match="ARTIFACT_DAMAGED"):
        await o.read(world, run)
    file.unlink()
    for reading in (o.read(world, run), o.read(world, run, LARGE // 2), o.events(world, run)):
        with pytest.raises(DataLossError, match="ARTIFACT_DAMAGED"):
            await reading
    for one in told:
        if one.output.stream == w.STDOUT:
            one.output.data = b""
    assert await world.events() == told


async def test_what_is_not_what_its_executor_signed_stays_where_it_is(world, folder, data):
    await o.writes(world, data)
    damage = "UPDATE output SET data = CAST('x' AS {}) WHERE offset = 0".format("TEXT")

    def run(transaction):
        kind = "BYTEA" if transaction.backend.shared else "BLOB"
        transaction.connection.exec_driver_sql(damage.replace("offset", '"offset"').replace("TEXT", kind))

    await world.service.database.write(run)
    assert await o.move(world) == 0
    assert (a.objects(folder), await o.states(world)) == ([], [1])
    assert await o.kept_here(world) == LARGE - o.CHUNK + 1


async def test_one_whose_result_cannot_be_read_holds_up_no_other(world, folder, data, caplog):
    broken = await o.writes(world, data)
    damage = text("UPDATE result SET result = :broken WHERE evaluation_seq = 1")

    def run(transaction):
        transaction.execute(damage, {"broken": b"\xff"})

    await world.service.database.write(run)
    other = await o.writes(world, data)
    assert await o.move(world) == 1
    assert await o.states(world) == [1, 3]
    [said] = [one for one in caplog.records if "cannot be moved" in one.message]
    assert said.fields["run"] == broken.run_id
    assert await o.read(world, other) == data


async def test_a_deleted_evaluation_takes_its_output_along(world, folder, clock, data):
    run, other = await o.writes(world, data, tenant="t"), await o.writes(world, data)
    reading = o.parts(world, run)
    await o.move(world)
    assert len(a.objects(folder)) == 1  # the same bytes of one tenant
    assert (await anext(reading))[0] == 0
    left = (await delete(world, run)).left
    end = await world.get(other)
    assert (left.stdout_sha256, left.stderr_sha256) == (end.stdout.sha256, end.stderr.sha256)
    with pytest.raises(NotFoundError):
        await o.read(world, run)
    with pytest.raises(NotFoundError):
        [part async for part in reading]
    await world.service.collector.look()
    clock.advance(HOUR)
    assert await world.service.collector.look() == 0
    assert await o.read(world, other) == data
    await delete(world, other)
    await world.service.collector.look()
    clock.advance(HOUR)
    assert await world.service.collector.look() == 1
    assert (a.objects(folder), await o.states(world)) == ([], [])


async def test_what_is_moved_counts_for_the_tenant_until_it_is_deleted(world, data):
    async def stored():
        query = "SELECT stored_bytes FROM tenant_use WHERE tenant = 't' AND day = 0"
        return await world.service.database.read(lambda connection: connection.exec_driver_sql(query).scalar_one())

    run = await o.writes(world, data)
    before = await stored()
    await o.move(world)
    assert await stored() == before > LARGE
    await delete(world, run)
    assert await stored() == 0


async def test_a_deletion_in_the_middle_of_a_move_leaves_nothing(world, folder, clock, data, monkeypatch):
    run = await o.writes(world, data)
    finish = objects.Objects._finished

    async def deleted_first(self, *arguments):
        await delete(world, run)
        await finish(self, *arguments)

    monkeypatch.setattr(objects.Objects, "_finished", deleted_first)
    assert await o.move(world) == 0
    clock.advance(HOUR)
    assert await world.service.collector.look() == 1
    assert (a.objects(folder), await o.states(world)) == ([], [])


async def test_many_who_move_delete_and_collect_at_once_lose_nothing(tmp_path, databases, clock):
    """On PostgreSQL two processes do so."""
    folders = [tmp_path / "a", tmp_path / "b"] if databases.name == "postgresql" else [tmp_path / "a"]
    if len(folders) > 1:
        databases.share(*folders)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    choose = random.Random(seed)
    contents = [os.urandom(70_000), os.urandom(90_000)]
    blob_store = in_folder(tmp_path / "shared")
    async with AsyncExitStack() as stack:
        worlds = [await stack.enter_async_context(storage(one, clock=clock, blobs=blob_store)) for one in folders]
        written = [(choose.choice(contents), choose.choice(contents)) for _ in range(8)]
        runs = [await o.writes(worlds[0], *one) for one in written]
        kept = [number for number in range(8) if number % 3]

        async def moves(world):
            while await o.mover(world, blob_store).look():
                pass

        async def collects(world):
            collector = Collector(world.service.database, blob_store, clock, grace=timedelta(0))
            for _ in range(20):
                await collector.look()

        async def deletes(world):
            for number in set(range(8)) - set(kept):
                await delete(world, runs[number])

        async def reads(world):
            for number in kept:
                assert await o.read(world, runs[number]) == written[number][0]

        last = worlds[-1]
        await asyncio.gather(moves(worlds[0]), moves(last), collects(last), deletes(worlds[0]), reads(last))
        await moves(worlds[0])
        await Collector(worlds[0].service.database, blob_store, clock, grace=timedelta(0)).look()
        for number in kept:
            assert await o.read(last, runs[number]) == written[number][0]
            assert await o.read(last, runs[number], stream=w.STDERR) == written[number][1]
        assert (await o.kept_here(last), set(await o.states(last))) == (0, {3})
        needed = {data for number in kept for data in written[number]}
        stored = [path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()]
        assert sorted(stored) == sorted(needed)


@pytest.mark.database("sqlite")
async def test_a_bucket_that_fails_for_a_while_has_it_afterwards(tmp_path, data, clock):
    with s3_server.running() as server:
        async with FaultyProxy(server.port) as proxy:
            bucket = server.bucket(endpoint=proxy.endpoint, timeout=timedelta(milliseconds=500))
            async with storage(tmp_path / "state", clock=clock, blobs=in_bucket(bucket)) as world:
                run = await o.writes(world, data)
                for fault in ("busy", "hang", "cut"):
                    proxy.fault, proxy.cut_after = fault, LARGE // 2
                    with pytest.raises(UnavailableError):
                        await o.move(world)
                    assert await o.read(world, run) == data
                proxy.fault = "pass"
                assert await o.move(world) == 1
                assert await o.kept_here(world) == 0
                for offset in (0, LARGE // 2, LARGE):
                    assert await o.read(world, run, offset) == data[offset:]
                assert len(await o.events(world, run)) > LARGE // o.CHUNK


@pytest.mark.database("postgresql")
async def test_a_shared_database_needs_a_store_that_all_of_its_processes_see(tmp_path, databases, monkeypatch):
    started = []

    async def run(self):
        started.append(self)

    monkeypatch.setattr(OutputMover, "run", run)
    async with storage(tmp_path / "a"):
        await asyncio.sleep(0)
    assert started == []
    async with storage(tmp_path / "a", blobs=in_folder(tmp_path / "shared")):
        await asyncio.sleep(0)
    assert len(started) == 1


def test_output_of_an_earlier_version_is_noted(tmp_path, databases):
    """Evaluation 1 has ended, 2 runs its second attempt."""
    databases.url(tmp_path / "state", empty=True)
    backend = databases.backend(tmp_path / "state")
    with backend.writer.connect() as connection, connection.begin():
        migrate.command.upgrade(migrate.config(connection), "0009")
        columns = [column["name"] for column in inspect(connection).get_columns("evaluation")]
        for seq, state, attempt in ((1, 4, 1), (2, 3, 2)):
            values = dict.fromkeys(columns, "'1'") | {"seq": seq, "id": seq, "state": state, "attempt": attempt}
            values |= {"request_id": "NULL", "batch": "NULL"}
            rows = f"({', '.join(values)}) VALUES ({', '.join(map(str, values.values()))})"
            connection.exec_driver_sql(f"INSERT INTO evaluation {rows}")
        chunks = [(1, 1, 1, 0, 10_000), (1, 1, 1, 10_000, 10_000), (1, 1, 2, 0, 16_384), (2, 1, 1, 0, 20_000)]
        for position, (seq, attempt, stream, offset, size) in enumerate([*chunks, (2, 2, 1, 0, 20_000)], 1):
            row = f"{position}, 't', {seq}, {attempt}, {stream}, {offset}, {size}, '1'"
            connection.exec_driver_sql(f"INSERT INTO output VALUES ({row})")
        migrate.upgrade(connection)
        noted = connection.exec_driver_sql("SELECT evaluation_seq, attempt, stream, size, state FROM large_output")
        assert sorted(tuple(row) for row in noted) == [(1, 1, 1, 20_000, 1), (2, 1, 1, 20_000, 1)]
    backend.dispose()


@pytest.mark.parametrize("size", [0, (16 << 10) - 1, 1 << 41])
def test_a_bound_that_makes_no_sense_is_refused(size):
    with pytest.raises(ValueError, match="inline_output_bytes must be 16384"):
        Policy(inline_output_bytes=size)
