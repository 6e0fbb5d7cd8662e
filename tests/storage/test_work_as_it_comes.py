"""Work that is leased in the transaction that stores it, to those who wait for it."""

import asyncio
import time

import pytest

from crucible.storage.v1 import work_service_pb2 as work
from crucible_storage import store
from crucible_storage.evaluations import Wanted
from tests.storage.world import finished, report, spec

LIMIT_S = 10.0


@pytest.fixture
def commits(world, monkeypatch):
    """How many operations each commit had."""
    seen = []
    deliver = world.service.database._deliver

    def delivered(batch, committed, totals):
        seen.append(len(batch))
        deliver(batch, committed, totals)

    monkeypatch.setattr(world.service.database, "_deliver", delivered)
    return seen


async def waiting_for_work(world, **which):
    """A lease call, as soon as it has nothing else to do than to wait."""
    before = len(world.service.database._standing)
    call = asyncio.create_task(world.lease(wait=30.0, **which))
    deadline = time.monotonic() + LIMIT_S
    while len(world.service.database._standing) == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    return call


async def test_who_waits_gets_work_in_the_transaction_that_stores_it(world, commits):
    await world.register()
    commits.clear()
    call = await waiting_for_work(world)
    created = await world.create()
    [assignment] = await asyncio.wait_for(call, LIMIT_S)
    assert assignment.evaluation == created.name
    assert commits == ([1, 1] if world.service.database.shared else [2])
    assert not world.service.database._standing
    assert await world.report(report(assignment, finished(assignment))) == []


async def test_each_evaluation_goes_to_one_of_many_who_wait(world):
    calls = []
    for number in range(6):
        await world.register(executor_id=f"ex-{number}")
        calls.append(await waiting_for_work(world, executor_id=f"ex-{number}"))
    created = await asyncio.gather(*(world.create() for _ in range(6)))
    given = await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)
    assert sorted(one.evaluation for answer in given for one in answer) == sorted(one.name for one in created)


async def test_who_cannot_run_it_goes_on_waiting(world):
    await world.register()
    await world.register(executor_id="ex-2", runtimes=("bash",))
    python = await waiting_for_work(world)
    bash = await waiting_for_work(world, executor_id="ex-2")
    created = await world.create(runtime="bash")
    [assignment] = await asyncio.wait_for(bash, LIMIT_S)
    assert assignment.evaluation == created.name
    assert not python.done()
    created = await world.create()
    [assignment] = await asyncio.wait_for(python, LIMIT_S)
    assert assignment.evaluation == created.name


async def test_work_for_a_caller_that_leaves_as_it_comes_is_given_out_again(world):
    await world.register()
    call = await waiting_for_work(world)
    creating = asyncio.create_task(world.create())
    await asyncio.sleep(0)  # its write waits for the writer now, whose answer this event loop does not see yet
    deadline = time.monotonic() + LIMIT_S
    while world.service.database._standing and not world.service.database.shared:
        assert time.monotonic() < deadline
        time.sleep(0.001)  # noqa: ASYNC251
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    created = await creating
    [assignment] = await world.lease(wait=LIMIT_S)
    assert assignment.evaluation == created.name
    evaluation = await world.get(created)
    assert (evaluation.attempt, len(evaluation.failed_attempts)) == (1, 0)


async def test_a_caller_that_leaves_before_any_comes_takes_none(world):
    await world.register()
    call = await waiting_for_work(world)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not world.service.database._standing
    created = await world.create()
    [assignment] = await world.lease()
    assert (assignment.evaluation, assignment.epoch) == (created.name, 1)


async def test_what_is_undone_is_given_to_nobody(world):
    await world.register()
    call = await waiting_for_work(world)
    wanted = Wanted.of("t", "key-1", "", spec())

    def undone(transaction):
        world.service.evaluations.insert(transaction, wanted)
        raise KeyError

    with pytest.raises(KeyError):
        await world.service.database.write(undone)
    assert not call.done()
    created = await world.create()
    [assignment] = await asyncio.wait_for(call, LIMIT_S)
    assert assignment.evaluation == created.name


async def test_a_start_that_is_not_the_current_one_any_more_gets_none(world):
    await world.register()
    call = await waiting_for_work(world)
    await world.register(boot_id="boot-2")
    created = await world.create()
    with pytest.raises(Exception, match="not registered"):
        await asyncio.wait_for(call, LIMIT_S)
    assert (await world.lease_one(boot_id="boot-2")).evaluation == created.name


async def test_a_renewal_holds_what_was_leased_as_it_came(world):
    await world.register()
    call = await waiting_for_work(world)
    await world.create()
    [assignment] = await asyncio.wait_for(call, LIMIT_S)
    record = await world.service.database.read(lambda connection: store.load_by_seq(connection, 1))
    assert record.held_by("ex-1", assignment.epoch)
    assert await world.service.leases.renew("ex-1", [work.LeaseRef(run_id=assignment.run_id, epoch=1)]) == ([], [])
