"""Deletion of items of batches: only when the batch has ended, and the batch is still what it was."""

from datetime import timedelta

import pytest

from crucible.evaluation.v1 import batch_pb2
from crucible_rpc import signing
from crucible_rpc.errors import FailedPreconditionError, NotFoundError
from crucible_storage import batch_watch
from crucible_storage.deletion import Deletion, Keep
from crucible_storage.integrity.check import check
from tests.storage import world as w
from tests.storage.batch_world import BatchWorld, id_of, item

DAY = timedelta(days=1)
KEEP = Keep(DAY)


@pytest.fixture
async def batches(world):
    await world.register()
    return BatchWorld(world)


async def delete(world, name):
    return await world.service.deletion.delete(name.removeprefix("evaluations/"), "key-9", "asked to")


async def watched(world, batch, order):
    """Keys of the results, and the batch as it was told last."""
    messages = [one async for one in world.service.batch_watches.watch("t", id_of(batch), order, 0)]
    return [one.key for one in messages if isinstance(one, batch_pb2.BatchResult)], messages[-1]


async def whole(world):
    verifier = signing.Verifier.of(w.RECORDS.public_pem)
    verdict = await world.service.database.read(lambda connection: check(connection, verifier))
    return verdict.findings.shown == []


async def test_an_item_goes_only_when_its_batch_has_ended(batches, world):
    batch = await batches.create([item(key="a"), item(key="b", after=["a"])])
    assert await batches.run_next(batch, 0) == ["a"]
    names = {key: one.name for key, one in (await batches.evaluations(batch)).items()}
    with pytest.raises(FailedPreconditionError) as refused:
        await delete(world, names["a"])
    assert (refused.value.reason, refused.value.metadata) == ("BATCH_NOT_ENDED", {"batch": batch.name})
    assert await batches.run_next(batch, 0) == ["b"]  # it is not skipped because of what happened to the other one
    await delete(world, names["a"])
    assert await whole(world)


async def test_an_item_of_an_open_batch_stays_for_those_that_may_come(batches, world):
    batch = await batches.create([item(key="a")], complete=False)
    assert await batches.run_next(batch, 0) == ["a"]
    [one] = (await batches.evaluations(batch)).values()
    with pytest.raises(FailedPreconditionError):
        await delete(world, one.name)
    await batches.add(batch, [item(key="b", after=["a"])], first=1)
    assert await batches.run_next(batch, 0) == ["b"]
    await batches.complete(batch, 2)
    await delete(world, one.name)


async def test_a_batch_stays_what_it_was_and_its_results_leave_out_what_is_deleted(batches, world, monkeypatch):
    monkeypatch.setattr(batch_watch, "PAGE", 2)
    batch = await batches.create([item(b"%d" % n, key=f"k{n}") for n in range(6)])
    await batches.run_next(batch, 0, 0, 1, 0, 0, 0)
    before = await batches.get(batch)
    names = {key: one.name for key, one in (await batches.evaluations(batch)).items()}
    for key in ("k0", "k1", "k2", "k5"):  # the first page, and the last end
        await delete(world, names[key])
    assert await batches.get(batch) == before
    assert before.state == batch_pb2.BATCH_STATE_ENDED
    for order in (batch_pb2.BATCH_ORDER_END, batch_pb2.BATCH_ORDER_ITEM):
        assert await watched(world, batch, order) == (["k3", "k4"], before)
    for key in ("k3", "k4"):
        await delete(world, names[key])
    assert await watched(world, batch, batch_pb2.BATCH_ORDER_END) == ([], before)
    assert await batches.add(batch, [item(b"0", key="k0")]) == 6  # sent again, it is still known
    assert await whole(world)


async def test_by_age_items_of_batches_that_go_on_are_passed_over(batches, world):
    going_on = await batches.create([item(b"%d" % n) for n in range(25)], complete=False)
    await batches.run_next(going_on, *[0] * 25)
    ended = await batches.create([item(), item()], request_id="r2")
    await batches.run_next(ended, 0, 1)
    alone = await world.create()
    await world.cancel(alone)
    world.clock.advance(2 * DAY)
    deletion = Deletion(world.service.database, world.clock)
    assert await deletion.delete_aged(KEEP) == 3
    assert await deletion.delete_aged(KEEP) == 0
    with pytest.raises(NotFoundError):
        await world.get(alone.name)
    await batches.cancel(going_on)
    await batches.settled()
    assert [await deletion.delete_aged(KEEP) for _ in range(3)] == [20, 5, 0]
    assert (await batches.get(going_on)).progress.succeeded == 25
    assert await whole(world)
