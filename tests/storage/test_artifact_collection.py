"""What nobody refers to is removed, and nothing else, whatever is stored at the same moment."""

import asyncio
import os
import random
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from crucible_rpc.errors import UnavailableError
from crucible_storage.artifacts import objects
from crucible_storage.artifacts.blob_store import in_folder
from crucible_storage.artifacts.collector import Collector
from tests.storage import artifact_world as a
from tests.storage.world import killed, storage

HOUR = timedelta(hours=1)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


async def delete(world, run):
    await world.service.deletion.delete(a.evaluation_id(run), "key-1", "")


async def blobs(world):
    rows = await world.service.database.read(
        lambda connection: connection.exec_driver_sql("SELECT state, released FROM blob ORDER BY seq").fetchall()
    )
    return [tuple(row) for row in rows]


async def test_an_object_goes_an_hour_after_the_last_who_referred_to_it(world, folder, clock):
    first, second = await a.ran(world, x=b"same"), await a.ran(world, y=b"same", z=b"other")
    assert len(a.objects(folder)) == 2
    await delete(world, first)
    clock.advance(2 * HOUR)
    assert await world.service.collector.look() == 0
    clock.advance(2 * HOUR)
    assert await a.read(world, second, "y") == b"same"
    await delete(world, second)
    assert await world.service.collector.look() == 0
    assert len(a.objects(folder)) == 2
    clock.advance(HOUR)
    assert await world.service.collector.look() == 2
    assert (a.objects(folder), await blobs(world)) == ([], [])


async def test_tenants_share_no_object(world, folder):
    await a.ran(world, x=b"same")
    await a.ran(world, tenant="other", x=b"same")
    assert len(a.objects(folder)) == 2
    assert {path.parent.parent.name for path in a.objects(folder)} == {"t", "other"}


async def test_what_a_failed_attempt_stored_goes_and_the_next_attempt_stores_anew(world, folder, clock):
    run = await world.running()
    await a.put(world, run, "x", b"first")
    assert await world.report(a.end(run, [], termination=killed(2))) == []
    clock.advance(timedelta(minutes=2))
    await world.sweep()
    again = await world.lease_one()
    await a.put(world, again, "x", b"second")
    await world.service.collector.look()
    clock.advance(HOUR)
    assert await world.service.collector.look() == 1
    assert await world.report(a.end(again, a.listed(x=b"second"))) == []
    assert [path.read_bytes() for path in a.objects(folder)] == [b"second"]


async def test_what_a_killed_process_was_storing_is_found_by_its_age(world, folder, clock, monkeypatch):
    run = await world.running()

    async def killed_here(*_):
        raise asyncio.CancelledError

    monkeypatch.setattr(world.service.uploads._objects, "_finished", killed_here)
    monkeypatch.setattr(objects.blobs, "doom", lambda *_: None)
    with pytest.raises(asyncio.CancelledError):
        await a.put(world, run, "x", b"data")
    assert (len(a.objects(folder)), await blobs(world)) == (1, [(1, 0)])
    clock.advance(HOUR)
    assert await world.service.collector.look() == 0
    clock.advance(HOUR + timedelta(seconds=1))
    assert await world.service.collector.look() == 0
    clock.advance(HOUR)
    assert await world.service.collector.look() == 1
    assert a.objects(folder) == []


async def test_an_upload_that_was_given_up_for_its_age_cannot_come_back(world, folder, clock):
    run = await world.running()

    async def parts():
        yield b"da"
        clock.advance(2 * HOUR + timedelta(seconds=1))
        await world.service.collector.look()
        await world.renew(run)
        yield b"ta"

    with pytest.raises(UnavailableError, match="took too long"):
        await world.service.uploads.store(a.wanted(run, "x", b"data"), parts())
    await a.put(world, run, "x", b"data")
    clock.advance(HOUR)
    assert await world.service.collector.look() == 1
    assert len(a.objects(folder)) == 1


async def test_a_store_that_is_away_keeps_what_is_to_be_removed_for_later(world, folder, clock):
    run = await a.ran(world, x=b"data")
    await delete(world, run)
    await world.service.collector.look()
    clock.advance(HOUR)
    [file] = a.objects(folder)
    store = folder / "artifacts"
    store.rename(folder / "away")
    store.write_text("in the way")
    with pytest.raises(UnavailableError):
        await world.service.collector.look()
    store.unlink()
    (folder / "away").rename(store)
    assert file.exists()
    assert await world.service.collector.look() == 1


@pytest.mark.parametrize("when", ["before the look", "before the link"])
async def test_bytes_that_are_collected_while_they_are_stored_again_are_stored(world, folder, clock, monkeypatch, when):
    """The upload finds a blob that it could refer to; before it does so, the last other reference goes."""
    old = await a.ran(world, x=b"data")
    run = await world.running()
    collector = Collector(world.service.database, world.service.artifacts._store, clock, grace=timedelta(0))
    store = world.service.artifacts._store
    size = type(store).size

    async def interrupted(self, name):
        if when == "before the look":
            await delete(world, old)
            await collector.look()
            return await size(self, name)
        found = await size(self, name)
        await delete(world, old)
        await collector.look()
        return found

    monkeypatch.setattr(type(store), "size", interrupted)
    await a.put(world, run, "y", b"data")
    monkeypatch.undo()
    await collector.look()
    assert await world.report(a.end(run, a.listed(y=b"data"))) == []
    assert await a.read(world, run, "y") == b"data"
    assert len(a.objects(folder)) == 1


async def test_collecting_beside_many_uploads_of_the_same_bytes_loses_nothing(tmp_path, databases, clock):
    """On PostgreSQL two processes store, delete and collect at once."""
    folders = [tmp_path / "a", tmp_path / "b"] if databases.name == "postgresql" else [tmp_path / "a"]
    if len(folders) > 1:
        databases.share(*folders)
    seed = random.randrange(1 << 30)
    print("seed", seed)
    choose = random.Random(seed)
    contents = [os.urandom(size) for size in (0, 10, 1000)]
    store = in_folder(tmp_path / "shared")
    async with AsyncExitStack() as stack:
        worlds = [await stack.enter_async_context(storage(one, clock=clock, blobs=store)) for one in folders]
        first = worlds[0]
        for number in range(12):
            await first.create(priority=0, request_id=f"{number}")
        await first.register()
        runs = await first.lease(12)
        plan = [(run, choose.sample(contents, 2)) for run in runs]
        kept = {}
        done = asyncio.Event()

        async def collect(world):
            collector = Collector(world.service.database, store, clock, grace=timedelta(0))
            while not done.is_set():
                await collector.look()
                await asyncio.sleep(0)

        async def work(world, mine):
            for run, files in mine:
                await a.put(world, run, "x", files[0])
                await a.put(world, run, "y", files[1])
                assert await world.report(a.end(run, a.listed(x=files[0], y=files[1]))) == []
                if choose.random() < 0.6:
                    await delete(world, run)
                else:
                    kept[run.run_id] = (run, files)

        collecting = [asyncio.create_task(collect(world)) for world in worlds]
        await asyncio.gather(*(work(worlds[n % len(worlds)], plan[n::3]) for n in range(3)))
        done.set()
        await asyncio.gather(*collecting)
        await Collector(first.service.database, store, clock, grace=timedelta(0)).look()
        for run, files in kept.values():
            assert [await a.read(first, run, path) for path in "xy"] == files
        needed = {data for _, files in kept.values() for data in files}
        stored = [path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()]
        assert sorted(stored) == sorted(needed)
        assert [state for state, _ in await blobs(first)] == [2] * len(needed)
