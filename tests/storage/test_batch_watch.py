"""The results of a batch, as its watchers get them."""

import asyncio

import pytest

from crucible.evaluation.v1 import batch_pb2
from crucible_rpc.errors import ResourceExhaustedError, UnavailableError
from crucible_storage import batch_watch
from tests.storage import batch_world as b
from tests.storage.batch_world import BatchWorld, item
from tests.storage.world import exited, finished, output, report, started

END, ITEM = batch_pb2.BATCH_ORDER_END, batch_pb2.BATCH_ORDER_ITEM


@pytest.fixture
async def batches(world):
    await world.register()
    return BatchWorld(world)


def watch(world, batch, order=END, after=0):
    return world.service.batch_watches.watch("t", b.id_of(batch), order, after)


def results(messages):
    return [one for one in messages if isinstance(one, batch_pb2.BatchResult)]


async def all_of(world, batch, order=END, after=0):
    async with asyncio.timeout(10):
        return [one async for one in watch(world, batch, order, after)]


async def ended_backwards(batches, world, count):
    """A batch whose items ended in the opposite order."""
    batch = await batches.create([item(b"%d" % n, key=f"k{n}") for n in range(count)])
    for assignment in reversed(await world.lease(count)):
        text = b"out of " + assignment.evaluation.encode()
        end = finished(assignment, exited(0), stdout=text)
        assert await world.report(report(assignment, started(), output(text), end)) == []
    return batch


async def test_results_come_as_they_ended_or_in_the_order_of_items(batches, world, monkeypatch):
    monkeypatch.setattr(batch_watch, "PAGE", 3)
    batch = await ended_backwards(batches, world, 8)
    by_end = await all_of(world, batch, END)
    assert [one.index for one in results(by_end)] == list(range(7, -1, -1))
    by_item = await all_of(world, batch, ITEM)
    assert [one.index for one in results(by_item)] == list(range(8))
    assert [one.key for one in results(by_item)] == [f"k{n}" for n in range(8)]
    for one in results(by_item):
        assert one.evaluation.stdout.preview == b"out of " + one.evaluation.name.encode()
        assert one.evaluation.batch == batch.name
        assert not one.evaluation.spec.program.files
    for messages in (by_end, by_item):
        assert messages[-1].state == batch_pb2.BATCH_STATE_ENDED


@pytest.mark.parametrize("order", [END, ITEM])
async def test_a_watch_goes_on_behind_any_cursor_and_of_an_ended_batch_waits_for_nothing(
    batches, world, order, monkeypatch
):
    monkeypatch.setattr(batch_watch, "FALLBACK_POLL", 60)
    batch = await ended_backwards(batches, world, 6)
    whole = results(await all_of(world, batch, order))
    for number, one in enumerate(whole):
        assert results(await all_of(world, batch, order, one.cursor)) == whole[number + 1 :]


async def test_in_the_order_of_items_a_result_is_held_back(batches, world):
    batch = await batches.create([item(b"%d" % n) for n in range(3)], complete=False)
    first, second, third = await world.lease(3)
    messages, ended = [], asyncio.Event()

    async def follow():
        async for one in watch(world, batch, ITEM):
            messages.append(one)
            if len(results(messages)) == 2:
                ended.set()

    following = asyncio.create_task(follow())
    await world.report(report(second, started(), finished(second)))
    by_end = watch(world, batch, END)
    assert [(await anext(by_end)).index, (await anext(by_end)).state] == [1, batch_pb2.BATCH_STATE_OPEN]
    await by_end.aclose()
    assert results(messages) == []
    await world.report(report(first, started(), finished(first)))
    await asyncio.wait_for(ended.wait(), 5)
    assert [one.index for one in results(messages)] == [0, 1]
    await world.report(report(third, started(), finished(third)))
    await batches.complete(batch, 3)
    await asyncio.wait_for(following, 5)
    assert [one.index for one in results(messages)] == [0, 1, 2]
    assert messages[-1].state == batch_pb2.BATCH_STATE_ENDED


async def test_progress_is_told_at_the_beginning_and_as_it_changes(batches, world, monkeypatch):
    monkeypatch.setattr(batch_watch, "PROGRESS_INTERVAL", 0.0)
    batch = await batches.create([item(b"1")])
    watching = watch(world, batch)
    assert (await anext(watching)).progress.queued == 1
    await world.lease(1)
    assert (await asyncio.wait_for(anext(watching), 5)).progress.running == 1
    await watching.aclose()


async def test_watchers_are_bounded_and_their_places_come_back(batches, world, monkeypatch):
    monkeypatch.setattr(batch_watch, "MAX_WATCHERS", 1)
    batch = await batches.create([item(b"1")])
    first = watch(world, batch)
    await anext(first)
    with pytest.raises(ResourceExhaustedError) as caught:
        await anext(watch(world, batch))
    assert caught.value.reason == "TOO_MANY_WATCHERS"
    await first.aclose()
    assert (await anext(watch(world, batch))).items == 1


async def test_a_watch_ends_when_storage_stops(batches, world):
    batch = await batches.create([item(b"1")])
    watching = watch(world, batch)
    await anext(watching)
    following = asyncio.ensure_future(anext(watching))
    world.service.hub.close()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(following, 5)
