"""Batches: stored in parts and once, counted, held, cancelled, and worked on after a restart."""

import asyncio

import pytest
from sqlalchemy import func, select

from crucible.evaluation.v1 import batch_pb2
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from crucible_storage import batch_items, batch_tasks, models
from crucible_storage.batch_items import Item
from crucible_storage.lists import Filter
from crucible_storage.policy import Policy
from tests.storage import batch_world as b
from tests.storage.batch_world import BatchWorld, item
from tests.storage.world import exited, finished, report, started, storage

pytestmark = pytest.mark.slow

S = batch_pb2


@pytest.fixture
def batches(world):
    return BatchWorld(world)


async def evaluations_stored(world):
    query = select(func.count()).select_from(models.evaluation)
    return await world.service.database.read(lambda connection: connection.execute(query).scalar_one())


async def test_items_are_evaluations_that_name_their_batch(batches, world):
    batch = await batches.create([item(b"1"), item(b"2", key="second", labels={"n": "2"})])
    assert (batch.state, batch.items, batch.progress.queued) == (S.BATCH_STATE_RUNNING, 2, 2)
    page, _ = await world.service.lists.page(Filter("t", batch=b.id_of(batch)), 10, "")
    assert [one.spec.labels["n"] for one in page if one.spec.labels] == ["2"]
    assert {one.batch for one in page} == {batch.name}
    await world.create()
    assert len((await world.service.lists.page(Filter("t"), 10, ""))[0]) == 3
    assert len((await world.service.lists.page(Filter("t", batch=b.id_of(batch)), 10, ""))[0]) == 2
    queued = Filter("t", states=[1], batch=b.id_of(batch))
    assert len((await world.service.lists.page(queued, 10, ""))[0]) == 2


async def test_what_is_sent_again_is_not_stored_again(batches, world):
    items = [item(str(n).encode(), key=f"k{n}" if n % 2 else "") for n in range(6)]
    batch = await batches.open()
    assert await batches.add(batch, items[:4]) == 4
    again = await batches.open()
    assert again.name == batch.name
    assert again.state == S.BATCH_STATE_OPEN
    assert await batches.add(again, items) == 6
    assert await batches.add(again, [items[5], items[1]], first=1) == 6, "items with keys are known by them alone"
    done = await batches.complete(again, 6)
    assert (await batches.complete(again, 6)) == done
    assert await batches.add(again, items) == 6, "also when it is complete"
    assert await evaluations_stored(world) == 6


async def test_two_streams_at_once_store_each_item_once(batches, world):
    batch = await batches.open()
    items = [item(str(n).encode()) for n in range(40)]

    async def stream():
        for first in range(0, 40, 5):
            await batches.add(batch, items[first : first + 5], first=first)

    await asyncio.gather(stream(), stream(), stream())
    assert await evaluations_stored(world) == 40
    assert (await batches.get(batch)).progress.queued == 40


async def test_a_key_with_another_body_names_the_first(batches, world):
    batch = await batches.create([item(b"1", key="a"), item(b"2")], complete=False)
    first = (await batches.evaluations(batch))["a"]
    with pytest.raises(AlreadyExistsError, match="another body") as caught:
        await batches.add(batch, [item(b"new"), item(b"other", key="a")], first=2)
    assert caught.value.reason == "BATCH_ITEM_REUSED"
    assert caught.value.metadata["evaluation"] == first.name
    assert caught.value.metadata["batch"] == batch.name
    with pytest.raises(AlreadyExistsError):
        await batches.add(batch, [item(b"1", key="a", after=["1"])])
    with pytest.raises(AlreadyExistsError):
        await batches.add(batch, [item(b"another")], first=1)
    with pytest.raises(AlreadyExistsError, match="has its number"):
        await batches.add(batch, [item(b"no key, and number 0 has one")], first=0)
    with pytest.raises(AlreadyExistsError):
        await batches.add(batch, [item(b"x", key="same"), item(b"y", key="same")])
    assert await evaluations_stored(world) == 2, "a part is stored as a whole or not at all"


async def test_a_header_that_differs_is_another_batch(batches):
    batch = await batches.open(labels={"a": "1"})
    with pytest.raises(AlreadyExistsError) as caught:
        await batches.open(labels={"a": "2"})
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata["batch"] == batch.name
    assert (await batches.open(tenant="other")).name != batch.name


async def test_missing_items_are_told_of(batches):
    batch = await batches.create([item(b"1")], complete=False)
    with pytest.raises(OutOfRangeError, match="1 are stored, and this is number 3"):
        await batches.add(batch, [item(b"2")], first=3)
    with pytest.raises(OutOfRangeError, match="1 items are stored"):
        await batches.complete(batch, 2)
    assert (await batches.get(batch)).state == S.BATCH_STATE_OPEN


async def test_a_complete_or_cancelled_batch_takes_no_more(batches):
    batch = await batches.create([item(b"1")])
    with pytest.raises(FailedPreconditionError, match="is complete"):
        await batches.add(batch, [item(b"2")], first=1)
    other = await batches.create([item(b"1")], request_id="r2", complete=False)
    await batches.cancel(other)
    with pytest.raises(FailedPreconditionError, match="was cancelled"):
        await batches.add(other, [item(b"2")], first=1)
    with pytest.raises(FailedPreconditionError):
        await batches.complete(other, 0)


async def test_a_batch_is_bounded(batches, monkeypatch):
    monkeypatch.setattr(batch_items, "MAX_ITEMS", 3)
    batch = await batches.create([item(b"1")] * 1, complete=False)
    with pytest.raises(FailedPreconditionError) as caught:
        await batches.add(batch, [item(b"2")] * 3, first=1)
    assert caught.value.reason == "BATCH_TOO_LARGE"


async def test_a_full_queue_takes_what_fits_and_the_rest_later(tmp_path):
    async with storage(tmp_path / "state", Policy(max_queued=3)) as world:
        batches = BatchWorld(world)
        batch = await batches.create([item(b"1"), item(b"2")], complete=False)
        more = [item(b"3"), item(b"4")]
        for _ in range(2):
            with pytest.raises(ResourceExhaustedError) as caught:
                await batches.add(batch, more, first=2)
            assert caught.value.reason == "QUEUE_FULL"
            assert caught.value.retry_after
            assert (await batches.get(batch)).items == 3
        await world.register()
        await world.lease_one()
        assert await batches.add(batch, more, first=2) == 4


async def test_a_part_larger_than_its_tenant_may_queue_gets_in_as_room_comes(batches, world):
    """Sent again and again, as clients do: each time what fits, until all is there, and nothing twice."""
    await world.service.tenants.create("t", Quota(max_queued=2))
    await world.register()
    batch = await batches.open()
    part = [item(b"%d" % n, key=f"k{n}", after=["k0"] if n == 4 else ()) for n in range(5)]
    sizes = []
    for _ in range(2):
        with pytest.raises(ResourceExhaustedError) as refused:
            await batches.add(batch, part)
        facts = refused.value.metadata
        assert (refused.value.reason, facts["quota"], facts["use"]) == ("QUOTA_EXCEEDED", "max_queued", "2")
        sizes.append((await batches.get(batch)).items)
        for assignment in await world.lease(2):
            assert await world.report(report(assignment, finished(assignment))) == []
    assert sizes == [2, 4]
    assert await batches.add(batch, part) == await evaluations_stored(world) == 5
    await batches.settled()
    [last] = await world.lease(2)
    assert (await batches.keys(batch))[last.evaluation] == "k4"


async def test_a_part_is_admitted_by_its_tenants_quotas_as_far_as_it_fits(batches, world):
    await world.service.tenants.create("t", Quota(evaluations_per_day=3))
    batch = await batches.open()
    assert await batches.add(batch, [item(), item()]) == 2
    with pytest.raises(ResourceExhaustedError) as refused:
        await batches.add(batch, [item(), item()], first=2)
    assert (refused.value.reason, refused.value.metadata["quota"]) == ("QUOTA_EXCEEDED", "evaluations_per_day")
    assert await batches.add(batch, [item(), item(), item()]) == 3  # those that are there do not count again
    [tenant] = await world.service.tenants.list()
    assert tenant.use.evaluations_today == await evaluations_stored(world) == 3


async def test_stored_bytes_admit_as_many_as_fit(batches, world):
    size = len(Item.of(item(), 0, "t", "key-1").wanted.run_spec)
    await world.service.tenants.create("t", Quota(max_stored_bytes=2 * size + 1))
    batch = await batches.open()
    with pytest.raises(ResourceExhaustedError) as refused:
        await batches.add(batch, [item()] * 4)
    assert (refused.value.metadata["quota"], refused.value.metadata["use"]) == ("max_stored_bytes", str(2 * size))
    assert (await batches.get(batch)).items == 2


async def test_a_priority_above_the_ceiling_names_its_item(batches, world):
    await world.service.tenants.create("t", Quota(max_priority=5))
    batch = await batches.open()
    with pytest.raises(InvalidArgumentError) as refused:
        await batches.add(batch, [item(priority=1), item(priority=5), item(priority=6), item(priority=2)])
    assert [one.field for one in refused.value.violations] == ["items[2].spec.priority"]
    assert await evaluations_stored(world) == 0


async def test_what_waits_for_others_is_not_what_waits_longest_for_a_slot(batches, world):
    await batches.create([item(key="a"), item(key="b", after=["a"])], complete=False, start_when_complete=True)
    [tenant] = (await world.service.pauses.look()).tenants
    assert (tenant.queued, tenant.HasField("oldest_create_time")) == (2, False)


async def test_an_item_that_the_infrastructure_failed_is_tried_again_outside_of_its_batch(batches, world):
    await world.register()
    batch = await batches.create([item(key="a"), item(key="b", after=["a"])])
    [assignment] = await world.lease(1)
    refused = work.Refused(reason="no such image", permanent=True)
    assert await world.report(report(assignment, refused=refused)) == []
    await batches.settled()
    made, _ = await world.service.dead_letters.retry(assignment.evaluation.removeprefix("evaluations/"), "key-1")
    again = await world.get(f"evaluations/{made}")
    assert again.batch == ""
    assert again.labels["crucible.retry-of"] == assignment.evaluation
    now = await batches.get(batch)
    assert (now.items, now.progress.failed, now.progress.skipped) == (2, 1, 1)


async def test_another_tenant_sees_nothing_of_it(batches, world):
    batch = await batches.create([item(b"1")])
    for call in (
        world.service.batches.get("other", b.id_of(batch)),
        world.service.batches.cancel("other", b.id_of(batch), "k", ""),
        world.service.batches.complete("other", b.id_of(batch), 0),
        world.service.batches.add("other", b.id_of(batch), []),
        anext(world.service.batch_watches.watch("other", b.id_of(batch), S.BATCH_ORDER_END, 0)),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.reason == "BATCH_NOT_FOUND"
    assert (await world.service.batches.page("other", 10, ""))[0] == []


async def test_batches_are_listed_newest_first_by_pages(batches, world):
    names = [(await batches.create([item(b"1")] * (n % 2), request_id=f"r{n}")).name for n in range(5)]
    seen, token = [], ""
    while True:
        page, token = await world.service.batches.page("t", 2, token)
        seen += [one.name for one in page]
        if not token:
            break
    assert seen == names[::-1]
    with pytest.raises(InvalidArgumentError):
        await world.service.batches.page("other", 2, (await world.service.batches.page("t", 2, ""))[1])


async def test_items_wait_for_a_complete_batch_when_asked_to(batches, world, monkeypatch):
    monkeypatch.setattr(batch_tasks, "PART", 2)
    await world.register()
    batch = await batches.create([item(str(n).encode()) for n in range(5)], start_when_complete=True, complete=False)
    assert batch.progress.waiting == 5
    assert await world.lease(5) == []
    await batches.complete(batch, 5)
    await batches.settled()
    assert (await batches.get(batch)).progress.queued == 5
    assert len(await world.lease(10)) == 5


async def test_the_last_end_ends_the_batch(batches, world):
    await world.register()
    batch = await batches.create([item(b"1"), item(b"2")])
    one, two = await world.lease(2)
    await world.report(report(one, started()))
    assert (await batches.get(batch)).progress == S.BatchProgress(running=2)
    await world.report(report(one, finished(one)), report(two, started(), finished(two, exited(3))))
    done = await batches.get(batch)
    assert done.state == S.BATCH_STATE_ENDED
    assert done.progress == S.BatchProgress(succeeded=1, failed=1)
    assert done.HasField("end_time")
    assert await batches.cancel(batch) == done


async def test_an_empty_batch_ends_when_it_is_complete(batches):
    batch = await batches.create([])
    assert (batch.state, batch.items, batch.HasField("end_time")) == (S.BATCH_STATE_ENDED, 0, False)


async def test_cancel_ends_what_waits_at_once_and_what_runs_when_its_executor_says_so(batches, world, monkeypatch):
    monkeypatch.setattr(batch_tasks, "PART", 2)
    await world.register()
    batch = await batches.create([item(str(n).encode()) for n in range(7)], complete=False)
    running = await world.lease_one()
    await world.report(report(running, started()))
    cancelled = await batches.cancel(batch)
    assert cancelled.state == S.BATCH_STATE_CANCELLING
    assert (cancelled.cancel_by, cancelled.cancel_reason) == ("key-2", "enough")
    await batches.settled()
    now = await batches.get(batch)
    assert now.progress == S.BatchProgress(running=1, cancelled=6)
    _, stops = await world.renew(running)
    assert stops == [running.run_id]
    await world.report(report(running, finished(running, b.killed())))
    done = await batches.get(batch)
    assert (done.state, done.progress) == (S.BATCH_STATE_ENDED, S.BatchProgress(cancelled=7))
    ended = (await batches.evaluations(batch))["0"].termination.cancelled
    assert (ended.by, ended.reason, ended.confirmed) == ("key-2", "enough", True)


async def test_what_was_begun_goes_on_after_a_restart(tmp_path, monkeypatch):
    async def nothing(self):
        return False

    with monkeypatch.context() as patched:
        patched.setattr(batch_tasks.BatchTasks, "step", nothing)
        async with storage(tmp_path / "state") as world:
            batches = BatchWorld(world)
            held = await batches.create([item(b"1")] * 1, request_id="held", start_when_complete=True)
            ended = await batches.create([item(b"1"), item(b"2")], request_id="ended", complete=False)
            await batches.cancel(ended)
            chain = await batches.create([item(b"1", key="a"), item(b"2", after=["a"])], request_id="chain")
            await world.register()
            assignments = await world.lease(9)
            for one in assignments:
                await world.report(report(one, started(), finished(one)))
            assert (await batches.get(held)).progress.waiting == 1
            assert (await batches.get(chain)).progress == S.BatchProgress(succeeded=1, waiting=1)
    async with storage(tmp_path / "state") as world:
        batches = BatchWorld(world)
        await batches.settled()
        assert (await batches.get(held)).progress == S.BatchProgress(queued=1)
        assert (await batches.get(ended)).state == S.BATCH_STATE_ENDED
        assert (await batches.get(chain)).progress == S.BatchProgress(succeeded=1, queued=1)


async def test_the_events_tell_of_items_as_of_any_evaluation(batches, world):
    batch = await batches.create([item(b"1", key="a"), item(b"2", after=["a"])])
    await world.cancel((await batches.evaluations(batch))["a"])
    await batches.settled()
    events = await world.events()
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    last = events[-1].state_changed
    assert last.state == pb.EVALUATION_STATE_CANCELLED
    assert last.termination.cancelled.cause == pb.CANCEL_CAUSE_DEPENDENCY_FAILED
