"""Items that wait for other items of their batch."""

import pytest

from crucible.evaluation.v1 import batch_pb2
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc.errors import InvalidArgumentError
from crucible_storage import batch_tasks
from tests.storage.batch_world import ANYWAY, BatchWorld, item

P = batch_pb2.BatchProgress
ENDED = batch_pb2.BATCH_STATE_ENDED


@pytest.fixture
async def batches(world):
    await world.register()
    return BatchWorld(world)


async def test_prepare_run_and_grade_go_one_after_the_other(batches, world):
    workflow = [
        item(b"prepare", key="prepare"),
        *(item(b"run %d" % n, key=f"run-{n}", after=["prepare"]) for n in range(3)),
        item(b"grade", key="grade", after=[f"run-{n}" for n in range(3)]),
    ]
    batch = await batches.create(workflow)
    assert batch.progress == P(queued=1, waiting=4)
    assert await batches.run_next(batch, 0) == ["prepare"]
    assert (await batches.get(batch)).progress == P(succeeded=1, queued=3, waiting=1)
    assert sorted(await batches.run_next(batch, 0, 0, 0)) == ["run-0", "run-1", "run-2"]
    assert await batches.run_next(batch, 0) == ["grade"]
    done = await batches.get(batch)
    assert (done.state, done.progress) == (ENDED, P(succeeded=5))


async def test_a_failure_skips_what_waits_for_it_all_the_way_down(batches, world):
    chain = [item(key="0x"), *(item(key=f"{n}x", after=[f"{n - 1}x"]) for n in range(1, 6))]
    batch = await batches.create([*chain, item(key="apart")])
    assert sorted(await batches.run_next(batch, 1, 0)) == ["0x", "apart"]
    done = await batches.get(batch)
    assert (done.state, done.progress) == (ENDED, P(failed=1, succeeded=1, skipped=5))
    stored = await batches.evaluations(batch)
    for n in range(1, 6):
        ended = stored[f"{n}x"].termination.cancelled
        assert stored[f"{n}x"].state == pb.EVALUATION_STATE_CANCELLED
        assert ended.cause == pb.CANCEL_CAUSE_DEPENDENCY_FAILED
        assert ended.dependency == stored[f"{n - 1}x"].name
        assert ended.by == ""
        assert stored[f"{n}x"].attempt == 0


async def test_who_runs_anyway_waits_for_all_and_stops_the_chain_of_skips(batches):
    batch = await batches.create(
        [
            item(key="a"),
            item(key="b"),
            item(key="skipped", after=["a"]),
            item(key="report", after=["skipped", "b"], on_failure=ANYWAY),
            item(key="after-report", after=["report"]),
        ]
    )
    assert await batches.run_next(batch, 1) == ["a"]
    assert (await batches.get(batch)).progress == P(failed=1, skipped=1, queued=1, waiting=2)
    assert await batches.run_next(batch, 0) == ["b"]
    assert await batches.run_next(batch, 0) == ["report"]
    assert await batches.run_next(batch, 0) == ["after-report"]


async def test_the_first_failure_skips_without_waiting_for_the_others(batches):
    batch = await batches.create([item(key="a"), item(key="b"), item(key="c", after=["a", "b"])])
    await batches.run_next(batch, 2)
    assert (await batches.get(batch)).progress == P(failed=1, queued=1, skipped=1)
    await batches.run_next(batch, 0)
    assert (await batches.get(batch)).state == ENDED


async def test_a_cancelled_item_counts_as_one_that_did_not_succeed(batches, world):
    batch = await batches.create([item(key="a"), item(key="b", after=["a"])])
    await world.cancel((await batches.evaluations(batch))["a"])
    await batches.settled()
    assert (await batches.get(batch)).progress == P(cancelled=1, skipped=1)


async def test_items_that_wait_can_be_cancelled_themselves(batches, world):
    batch = await batches.create([item(key="a"), item(key="b", after=["a"]), item(key="c", after=["b"])])
    await world.cancel((await batches.evaluations(batch))["b"])
    await batches.settled()
    assert (await batches.get(batch)).progress == P(queued=1, cancelled=1, skipped=1)
    await batches.run_next(batch, 0)
    assert (await batches.get(batch)).progress == P(succeeded=1, cancelled=1, skipped=1)


async def test_what_ended_before_it_was_waited_for_is_taken_account_of(batches):
    batch = await batches.create([item(key="good"), item(key="bad")], complete=False)
    assert await batches.run_next(batch, 0, 1) == ["good", "bad"]
    await batches.add(batch, [item(key="x", after=["good"]), item(key="y", after=["bad", "good"])], first=2)
    await batches.settled()
    assert (await batches.get(batch)).progress == P(succeeded=1, failed=1, queued=1, skipped=1)


async def test_numbers_name_items_without_keys(batches):
    batch = await batches.create([item(b"0"), item(b"1", after=["0"])])
    await batches.run_next(batch, 0)
    assert (await batches.get(batch)).progress == P(succeeded=1, queued=1)


async def test_only_earlier_items_can_be_waited_for(batches):
    batch = await batches.open()
    for after in (["later"], ["self"], ["nobody"], ["a", "nobody"]):
        with pytest.raises(InvalidArgumentError) as caught:
            await batches.add(batch, [item(key="a"), item(key="self", after=after), item(key="later")])
        assert caught.value.violations[0].field == f"items[1].after[{len(after) - 1}]"
    assert (await batches.get(batch)).items == 0


async def test_held_items_wait_for_both(batches):
    batch = await batches.create([item(key="a"), item(key="b", after=["a"])], start_when_complete=True, complete=False)
    assert batch.progress == P(waiting=2)
    await batches.complete(batch, 2)
    await batches.settled()
    assert (await batches.get(batch)).progress == P(queued=1, waiting=1)
    await batches.run_next(batch, 0)
    assert (await batches.get(batch)).progress == P(succeeded=1, queued=1)


async def test_many_that_wait_for_one_are_told_in_parts(batches, monkeypatch):
    monkeypatch.setattr(batch_tasks, "PART", 7)
    batch = await batches.create([item(key="a"), *(item(b"%d" % n, after=["a"]) for n in range(50))])
    await batches.run_next(batch, 0)
    assert (await batches.get(batch)).progress == P(succeeded=1, queued=50)


async def test_a_cancel_of_the_batch_is_no_failed_dependency(batches):
    batch = await batches.create([item(key="a"), item(key="b", after=["a"]), item(key="c", after=["b"])])
    await batches.cancel(batch)
    await batches.settled()
    assert (await batches.get(batch)).progress == P(cancelled=3)
