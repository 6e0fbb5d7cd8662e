"""How often storage goes to its database for one evaluation: not where it knows the answer."""

import asyncio
from datetime import timedelta

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import NotFoundError
from crucible_storage.evaluations import Wanted
from tests.storage.world import STDERR, finished, killed, output, report, spec, started


@pytest.fixture
def reads(world, monkeypatch):
    """Grows with every read of the database."""
    found = []
    read = world.service.database.read

    async def unseen():
        pass

    monkeypatch.setattr(world.sweeper, "observe", unseen)  # the world's own look at each lease

    async def counted(run):
        found.append(run)
        return await read(run)

    monkeypatch.setattr(world.service.database, "read", counted)
    return found


async def test_tail_that_keeps_up_reads_nothing_back(world, reads):
    tail = world.service.events.tail(0)
    await anext(tail)
    assert reads == []
    for _ in range(3):
        coming = asyncio.create_task(anext(tail))
        await asyncio.sleep(0)
        await world.create()
        assert (await asyncio.wait_for(coming, 10)).events
    assert reads == []
    await tail.aclose()


async def test_empty_queue_is_not_asked_for_work(world, reads, monkeypatch):
    await world.register()
    writes = []
    write = world.service.database.write

    async def counted(run):
        writes.append(run)
        return await write(run)

    monkeypatch.setattr(world.service.database, "write", counted)
    assert await world.lease() == []
    waiting = asyncio.create_task(world.lease(wait=30.0))
    await asyncio.sleep(0)
    assert (reads, writes) == ([], [])
    evaluation = await world.create()
    [given] = await asyncio.wait_for(waiting, 10)
    assert given.evaluation == evaluation.name


async def test_wait_for_a_new_evaluation_reads_only_its_end(world, reads):
    evaluation = await world.create()
    evaluation_id = evaluation.name.removeprefix("evaluations/")
    waiting = asyncio.create_task(world.service.evaluations.wait("t", evaluation_id, 30))
    await asyncio.sleep(0)
    assert reads == []
    await world.register()
    assignment = await world.lease_one()
    await world.report(report(assignment, finished(assignment)))
    assert (await asyncio.wait_for(waiting, 10)).end_time.seconds
    assert len(reads) == 1
    again = await world.service.evaluations.wait("t", evaluation_id, 30)
    assert again.end_time.seconds


async def end_of(world, *reports_of):
    """What a call that creates and waits answers, when these are reported one after the other; its reads begin here."""
    wanted = Wanted.of("t", "key-1", "", spec(labels={"a": "b"}))
    await world.register()
    running = asyncio.create_task(world.service.evaluations.create_and_wait(wanted, 30))
    [assignment] = await world.lease(wait=10.0)
    for events_of in reports_of:
        assert await world.report(report(assignment, *events_of(assignment))) == []
    return await asyncio.wait_for(running, 10)


async def test_run_that_tells_all_with_its_end_is_answered_without_a_read(world, reads):
    def events(assignment):
        return started(), output(b"out"), output(b"err", stream=STDERR), ended(assignment)

    def ended(assignment):
        return finished(assignment, stdout=b"out", stderr=b"err")

    evaluation = await end_of(world, events)
    assert reads == []
    assert (evaluation.stdout.preview, evaluation.stderr.preview) == (b"out", b"err")
    assert evaluation == await world.get(evaluation)


async def test_long_output_is_shown_as_a_read_would(world, reads):
    written = bytes(range(256)) * 40
    evaluation = await end_of(world, lambda one: [output(written), finished(one, stdout=written)])
    assert reads == []
    assert evaluation.stdout.preview == written[: len(evaluation.stdout.preview)]
    assert evaluation == await world.get(evaluation)


async def test_run_that_told_some_before_its_end_is_read(world, reads):
    evaluation = await end_of(
        world, lambda _: [output(b"1")], lambda one: [output(b"2", offset=1), finished(one, stdout=b"12")]
    )
    assert len(reads) == 1
    assert evaluation.stdout.preview == b"12"
    assert evaluation == await world.get(evaluation)


async def test_run_that_failed_before_its_end_is_read(world):
    wanted = Wanted.of("t", "key-1", "", spec())
    await world.register()
    running = asyncio.create_task(world.service.evaluations.create_and_wait(wanted, 30))
    [lost] = await world.lease(wait=10.0)
    assert await world.report(report(lost, finished(lost, killed(ex.KILL_CAUSE_SHUTDOWN)))) == []
    world.clock.advance(timedelta(minutes=1))
    [assignment] = await world.lease()
    assert await world.report(report(assignment, finished(assignment))) == []
    evaluation = await asyncio.wait_for(running, 10)
    assert len(evaluation.failed_attempts) == 1
    assert evaluation == await world.get(evaluation)


async def test_wait_by_another_tenant_or_for_what_was_undone_finds_nothing(world):
    evaluation = await world.create()
    with pytest.raises(NotFoundError):
        await world.service.evaluations.wait("other", evaluation.name.removeprefix("evaluations/"), 30)

    def undone(transaction):
        transaction.notices.created.append(("never", "t"))
        raise KeyError

    with pytest.raises(KeyError):
        await world.service.database.write(undone)
    with pytest.raises(NotFoundError):
        await world.service.evaluations.wait("t", "never", 30)
