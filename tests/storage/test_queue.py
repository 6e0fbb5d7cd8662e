"""Who is served next, and that the size of the queue does not matter for it."""

import asyncio
import time
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible_rpc.errors import AlreadyExistsError, ResourceExhaustedError
from crucible_storage import models, queue
from crucible_storage.clock import SystemClock
from crucible_storage.policy import Policy
from tests.storage import world as w
from tests.storage.world import finished, report, storage


async def order(world, count):
    """Creators' names in the order of leasing, one lease at a time, each finished before the next."""
    seen = []
    for _ in range(count):
        assignment = await world.lease_one()
        seen.append(world.names[assignment.evaluation])
        await world.report(report(assignment, finished(assignment)))
    return seen


@pytest.fixture
def add(world):
    world.names = {}

    async def add_named(name, tenant="t", **parts):
        world.names[(await world.create(tenant, **parts)).name] = name
        world.clock.advance(timedelta(milliseconds=1))

    return add_named


async def test_higher_priority_first_then_older_first(world, add):
    await world.register()
    for name, priority in (("a", 0), ("b", 5), ("c", -5), ("d", 5), ("e", 0)):
        await add(name, priority=priority)
    assert await order(world, 5) == ["b", "d", "a", "e", "c"]


async def test_waiting_raises_priority_by_one_every_30_seconds(world, add):
    await world.register()
    await add("old", priority=0)
    world.clock.advance(timedelta(seconds=30 * 10 - 1))
    await add("young and 10 higher", priority=10)
    assert await order(world, 2) == ["young and 10 higher", "old"]
    await add("old", priority=0)
    world.clock.advance(timedelta(seconds=30 * 10 + 1))
    await add("young and 10 higher", priority=10)
    assert await order(world, 2) == ["old", "young and 10 higher"]


async def test_the_lowest_priority_waits_at_most_100_minutes_behind_what_comes_later(world, add):
    await world.register()
    await add("lowest", priority=-100)
    world.clock.advance(timedelta(minutes=100, seconds=1))
    await add("highest", priority=100)
    assert await order(world, 2) == ["lowest", "highest"]


async def test_a_tenant_with_a_long_queue_does_not_delay_another(world, add):
    await world.register()
    for number in range(50):
        await add(f"flood {number}", "flood", priority=100)
    for number in range(3):
        await add(f"small {number}", "small", priority=-100)
    seen = await order(world, 6)
    assert sorted(seen[:2]) == ["flood 0", "small 0"]
    assert sum(name.startswith("small") for name in seen) == 3


async def test_slots_are_shared_by_what_is_running(world, add):
    await world.register()
    for number in range(20):
        await add(f"a{number}", "a")
    held = await world.lease(4)
    assert [world.names[one.evaluation][0] for one in held] == ["a"] * 4
    for number in range(20):
        await add(f"b{number}", "b")
    more = await world.lease(6)
    names = [world.names[one.evaluation][0] for one in more]
    assert names[:4] == ["b"] * 4
    assert sorted(names[4:]) == ["a", "b"]


async def test_only_what_the_executor_can_run_is_leased(world, add):
    await add("python in gvisor")
    await add("bash in gvisor", runtime="bash")
    await add("python in docker", engine="docker")
    await add("broken", engine="broken")
    await add("without its image", runtime="absent")
    await world.register(engines=("gvisor", "docker"), runtimes=("python",))
    assert sorted(world.names[one.evaluation] for one in await world.lease(10)) == [
        "python in docker",
        "python in gvisor",
    ]
    await world.register(executor_id="ex-2", runtimes=("bash",))
    assert [world.names[one.evaluation] for one in await world.lease(10, executor_id="ex-2")] == ["bash in gvisor"]


async def test_a_long_poll_ends_as_soon_as_there_is_work(world):
    await world.register()
    waiting = asyncio.create_task(world.lease(wait=30.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    begun = time.perf_counter()
    await world.create()
    assert len(await asyncio.wait_for(waiting, 5)) == 1
    assert time.perf_counter() - begun < 1.0


async def test_a_long_poll_without_work_ends_in_time_and_empty(world):
    await world.register()
    assert await asyncio.wait_for(world.lease(wait=0.05), 5) == []


async def test_a_long_poll_wakes_when_a_delayed_evaluation_may_run(tmp_path):
    policy = Policy(backoff=timedelta(milliseconds=50))
    async with storage(tmp_path / "state", policy, clock=SystemClock()) as world:
        assignment = await world.running()
        lost = w.work.RunLost(reason="gone", confirmed_gone=True)
        await world.report(report(assignment, lost=lost))
        again = await asyncio.wait_for(world.lease(wait=30.0), 5)
        assert again[0].run_id.endswith(".2")


async def test_leases_of_one_answer_fit_into_one_message(world):
    await world.register()
    for _ in range(5):
        await world.create(code=bytes(1 << 20))
    given = await world.lease(5)
    assert 1 <= len(given) <= 3
    assert sum(len(one.run_spec) for one in given) <= 3 << 20
    assert len(await world.lease(5)) >= 1


async def test_a_full_queue_refuses_with_a_time_to_retry(tmp_path):
    async with storage(tmp_path / "state", Policy(max_queued=2)) as world:
        await world.create(request_id="first")
        await world.create("other")
        with pytest.raises(ResourceExhaustedError) as caught:
            await world.create()
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after > timedelta(0)
        await world.create(request_id="first")  # a repetition adds nothing
        await world.register()
        await world.lease()
        await world.create()


async def test_the_same_request_makes_one_evaluation(world):
    first = await world.create(request_id="r")
    assert await world.create(request_id="r") == first
    assert (await world.create("other", request_id="r")).name != first.name
    with pytest.raises(AlreadyExistsError) as caught:
        await world.create(request_id="r", code=b"other")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata == {"evaluation": first.name}
    assert (await world.create()).name != (await world.create()).name
    assert len(await world.events()) == 4


async def test_fifty_equal_requests_at_once_make_one_evaluation(world):
    names = {view.name for view in await asyncio.gather(*(world.create(request_id="r") for _ in range(50)))}
    assert len(names) == 1
    assert world.service.database.queued == 1


_NUMBERS = (
    "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 10000) SELECT value FROM n"
)


def copies(row):
    """10,000 copies of a stored evaluation, spread over 20 tenants."""
    changed = {
        "seq": "NULL",
        "id": "'x' || n.value",
        "tenant": "'t' || (n.value % 20)",
        "lane": "'t' || (n.value % 20) || char(31) || 'gvisor' || char(31) || 'python'",
        "rank": "rank + n.value",
    }
    columns = ", ".join(changed.get(column.name, column.name) for column in row.columns)
    return text(f"INSERT INTO evaluation SELECT {columns} FROM evaluation, ({_NUMBERS}) AS n")


@pytest.mark.database("sqlite")
async def test_ten_thousand_queued_evaluations_do_not_slow_a_lease(world):
    await world.register()
    await world.create()

    def fill(transaction):
        transaction.execute(copies(models.evaluation))
        programs = "INSERT INTO program SELECT e.seq, e.tenant, p.run_spec FROM evaluation e, program p WHERE e.seq > 1"
        transaction.execute(text(programs))

    await world.service.database.write(fill)
    steps = 0

    def pick_one(transaction):
        """Counts what SQLite's virtual machine does for it, in thousands of instructions."""
        raw = transaction.connection.connection.dbapi_connection

        def step():
            nonlocal steps
            steps += 1

        raw.set_progress_handler(step, 1000)
        try:
            known = world.service.executors.registered_now(transaction, "ex-1", "boot-1")
            return next(queue.Queue().pick(transaction, known, world.clock.now()))
        finally:
            raw.set_progress_handler(None, 0)

    await world.service.database.write(pick_one)
    assert steps <= 3, f"about {steps}000 instructions to find the head of a queue of 10,000"
    assert len({one.evaluation for one in await world.lease(40)}) == 40


async def test_work_whose_worker_left_before_it_was_told_is_given_out_again_at_once(world):
    await world.register()
    created = await world.create()
    for _ in range(5):
        leaving = asyncio.create_task(world.lease())
        await asyncio.sleep(0)  # its write waits now
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    [assignment] = await world.lease(wait=10.0)
    assert assignment.evaluation == created.name
    assert assignment.epoch > 1
    evaluation = await world.get(created)
    assert (evaluation.attempt, len(evaluation.failed_attempts)) == (1, 0)


def test_the_wait_after_a_failed_attempt_doubles_to_its_limit_and_jitter_adds_up_to_a_quarter():
    policy = Policy(backoff=timedelta(seconds=1), backoff_limit=timedelta(seconds=60))
    plain = [policy.backoff_after(attempt, 0.0).total_seconds() for attempt in (1, 2, 3, 6, 7, 40)]
    assert plain == [1, 2, 4, 32, 60, 60]
    assert policy.backoff_after(3, 1.0) == timedelta(seconds=5)
    assert policy.backoff_after(40, 1.0) == timedelta(seconds=75)


async def test_evaluations_whose_attempts_fail_together_come_back_apart(world):
    await world.register()
    for _ in range(20):
        await world.create()
    lost = w.work.RunLost(reason="the machine is gone", confirmed_gone=True)
    await world.report(*(report(one, lost=lost) for one in await world.lease(20)))

    def times(connection):
        return [row[0] for row in connection.execute(text("SELECT not_before FROM evaluation"))]

    waits = [time - world.clock.now() for time in await world.service.database.read(times)]
    assert all(1_000_000 <= wait <= 1_250_000 for wait in waits)
    assert len(set(waits)) > 10
    world.clock.advance(timedelta(seconds=0.999))
    assert await world.lease(20) == []
    world.clock.advance(timedelta(seconds=0.251))
    assert len(await world.lease(20)) == 20
