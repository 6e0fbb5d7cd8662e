"""How often storage goes to its database for one evaluation: not where it knows the answer."""

import asyncio

import pytest

from crucible_rpc.errors import NotFoundError
from tests.storage.world import finished, report


@pytest.fixture
def reads(world, monkeypatch):
    """Grows with every read of the database."""
    found = []
    read = world.service.database.read

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
