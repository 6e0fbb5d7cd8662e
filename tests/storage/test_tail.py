"""The tail from memory says what the log says: nothing skipped, doubled, reordered or different, however slow it is."""

import asyncio

import pytest

from crucible.evaluation.v1.event_pb2 import Event
from crucible_storage.event_log import EventLog
from crucible_storage.hub import Hub
from crucible_storage.recent import Recent
from tests.storage.world import finished, output, report, started

ROOM = (256, 1 << 20)


def numbered(count):
    return [Event(tenant=str(number)) for number in range(count)]


def tenants(events):
    return None if events is None else [(event.position, event.tenant) for event in events]


async def stored(world, count):
    """The log as the database has it."""
    found = []
    tail = EventLog(world.service.database, Hub(), world.service.artifacts._store).tail(0)
    async for batch in tail:
        found += batch.events
        if len(found) >= count:
            await tail.aclose()
            return found
    raise AssertionError("a tail never ends")


async def follow(world, after, last, *, pause=None):
    """All events of a tail up to `last`, taken with a pause after each batch."""
    found = []
    tail = world.service.events.tail(after)
    async for batch in tail:
        found += batch.events
        if found and found[-1].position >= last:
            await tail.aclose()
            return found
        if pause is not None and batch.events:
            await pause()
    raise AssertionError("a tail never ends")


@pytest.fixture
def small(world, monkeypatch):
    """Keeps so little that whoever pauses falls out of it."""
    recent = Recent(max_kept=40)
    monkeypatch.setattr(world.service.hub, "recent", recent)
    return recent


@pytest.fixture
def db_reads(world, monkeypatch):
    found = []
    read = world.service.database.read

    async def counted(run):
        found.append(run)
        return await read(run)

    monkeypatch.setattr(world.service.database, "read", counted)
    return found


async def test_fast_slow_and_late_tails_get_what_is_stored(world, small, db_reads):
    runs, chunks = 8, 25
    for _ in range(runs):
        await world.create()
    await world.register()
    assignments = await world.lease(runs)
    last = runs * (2 + 1 + chunks + 1) + 10 * 20  # created and leased, started, output, ended; created

    async def lives(assignment):
        assert not await world.report(report(assignment, started()))
        for offset in range(chunks):
            assert not await world.report(report(assignment, output(b"x", offset)))
        assert not await world.report(report(assignment, finished(assignment, stdout=b"x" * chunks)))

    async def creates():
        for _ in range(20):
            await world.create()

    commits = world.service.hub.appended

    async def until_far_behind():
        with commits.subscribed() as committed:
            for _ in range(15):
                committed.clear()
                if world.service.database.last_position >= last:
                    return
                await committed.wait()

    fast = asyncio.create_task(follow(world, 0, last))
    slow = asyncio.create_task(follow(world, 0, last, pause=until_far_behind))
    await asyncio.gather(*(lives(one) for one in assignments), *(creates() for _ in range(10)))
    late = await follow(world, runs, last)
    truth = await stored(world, last)
    assert [event.position for event in truth] == list(range(1, last + 1))
    assert await asyncio.wait_for(fast, 30) == truth
    assert await asyncio.wait_for(slow, 30) == truth
    assert late == truth[runs:]
    assert db_reads  # who fell out of what is kept went to the database


async def test_tail_looks_in_the_log_for_what_nobody_told_it(world, monkeypatch):
    """As when another process appends to the same database: at the latest the poll finds it."""
    monkeypatch.setattr("crucible_storage.event_log.FALLBACK_POLL", 0.05)
    monkeypatch.setattr(world.service.hub, "publish", lambda notices: None)
    tail = world.service.events.tail(0)
    await anext(tail)
    coming = asyncio.create_task(anext(tail))
    await asyncio.sleep(0)
    created = await world.create()
    [event] = (await asyncio.wait_for(coming, 10)).events
    assert (event.position, event.evaluation) == (1, created.name)
    await tail.aclose()


async def test_what_an_operation_undid_is_in_no_tail(world):
    async def fails():
        def run(transaction):
            transaction.notices.events.append(Event())
            transaction.append_event("t", 1, 1, 1, b"")
            raise KeyError

        with pytest.raises(KeyError):
            await world.service.database.write(run)

    await world.create()
    await asyncio.gather(world.create(), fails(), world.create())
    assert await follow(world, 0, 3) == await stored(world, 3)


def test_recent_numbers_events_and_gives_those_after_a_position():
    recent = Recent()
    assert recent.after(0, *ROOM) is None
    recent.add(numbered(3), 10)
    assert tenants(recent.after(7, *ROOM)) == [(8, "0"), (9, "1"), (10, "2")]
    assert tenants(recent.after(9, *ROOM)) == [(10, "2")]
    assert recent.after(10, *ROOM) == []
    assert recent.after(6, *ROOM) is None
    assert recent.after(11, *ROOM) is None


def test_recent_begins_anew_after_events_that_it_was_not_told():
    recent = Recent()
    recent.add(numbered(2), 2)
    recent.add(numbered(1), 5)  # 3 and 4 are somebody else's
    assert recent.after(2, *ROOM) is None
    assert tenants(recent.after(4, *ROOM)) == [(5, "0")]
    recent.add([], 7)
    assert recent.after(5, *ROOM) is None
    recent.add(numbered(1), 8)
    assert tenants(recent.after(7, *ROOM)) == [(8, "0")]
    recent.add([], 6)  # told late
    recent.add(numbered(1), 7)
    assert tenants(recent.after(7, *ROOM)) == [(8, "0")]
    assert recent.after(6, *ROOM) is None


def test_recent_is_bounded_in_events_and_bytes():
    recent = Recent(max_kept=3)
    for last in range(1, 6):
        recent.add(numbered(1), last)
    assert recent.after(1, *ROOM) is None
    assert len(recent.after(2, *ROOM)) == 3
    few = Recent(max_kept_bytes=1000)
    few.add([Event(tenant="x" * 300) for _ in range(5)], 5)
    assert few.after(1, *ROOM) is None
    assert len(few.after(2, *ROOM)) == 3


def test_recent_gives_as_much_as_fits_and_at_least_one():
    recent = Recent()
    recent.add([Event(tenant="x" * 300) for _ in range(5)], 5)
    assert [event.position for event in recent.after(0, 2, 1 << 20)] == [1, 2]
    assert [event.position for event in recent.after(0, 256, 700)] == [1, 2]
    assert [event.position for event in recent.after(3, 256, 1)] == [4]
