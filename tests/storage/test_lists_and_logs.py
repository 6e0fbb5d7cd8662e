"""Pages, cursors, the log of one evaluation, waiting for an end, and stops."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc.errors import InvalidArgumentError, UnavailableError
from crucible_storage.evaluations import Wanted
from crucible_storage.executors import Executors
from crucible_storage.lists import Filter
from tests.storage import world as w
from tests.storage.world import finished, output, report, spec, storage

S = pb.EvaluationState


async def pages(world, wanted, size):
    seen, token = [], ""
    while True:
        page, token = await world.service.lists.page(wanted, size, token)
        seen.append([view.name for view in page])
        if not token:
            return seen


async def test_pages_have_every_evaluation_once_newest_first(world):
    names = [(await world.create()).name for _ in range(7)]
    await world.create("other")
    for size in (1, 3, 7, 1000):
        listed = await pages(world, Filter("t"), size)
        assert [name for page in listed for name in page] == names[::-1]
        assert all(len(page) <= size for page in listed)
    assert await pages(world, Filter("nobody"), 5) == [[]]


async def test_a_clock_set_back_does_not_disturb_the_order(world):
    names = []
    for _ in range(3):
        names.append((await world.create()).name)
        world.clock.wall -= 10_000_000
    assert await pages(world, Filter("t"), 2) == [names[:0:-1], names[:1]]


async def test_filters_by_state_and_labels(world):
    await world.register()
    for number in range(6):
        await world.create(labels={"n": str(number % 2), "suite": "x"})
    done = await world.lease_one()
    await world.report(report(done, finished(done)))
    queued = Filter("t", [int(S.EVALUATION_STATE_QUEUED)])
    assert sum(map(len, await pages(world, queued, 2))) == 5
    both = Filter("t", [int(S.EVALUATION_STATE_QUEUED), int(S.EVALUATION_STATE_SUCCEEDED)])
    assert sum(map(len, await pages(world, both, 2))) == 6
    assert sum(map(len, await pages(world, Filter("t", [], {"n": "1", "suite": "x"}), 2))) == 3
    assert await pages(world, Filter("t", [], {"n": "1", "suite": "y"}), 2) == [[]]


async def test_a_list_leaves_out_programs_and_previews(world):
    assignment = await world.running(labels={"a": "b"})
    await world.report(report(assignment, output(b"x"), finished(assignment, stdout=b"x")))
    [view], _ = await world.service.lists.page(Filter("t"), 10, "")
    assert view.spec.program == pb.Program(runtime="python")
    assert (view.stdout.bytes_kept, view.stdout.preview) == (1, b"")
    complete = await world.get(assignment)
    complete.spec.program.CopyFrom(view.spec.program)
    complete.stdout.ClearField("preview")
    assert view == complete


async def test_a_token_from_elsewhere_is_refused(world):
    for tenant in ("t", "u"):
        for _ in range(3):
            await world.create(tenant)
    _, token = await world.service.lists.page(Filter("t"), 1, "")
    changed = ("A" if token[0] != "A" else "B") + token[1:]
    for wanted, offered in (
        (Filter("u"), token),
        (Filter("t", [1]), token),
        (Filter("t", [], {"a": "b"}), token),
        (Filter("t"), changed),
        (Filter("t"), token[:-4]),
        (Filter("t"), "x"),
        (Filter("t"), "é" * 9),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await world.service.lists.page(wanted, 1, offered)
        assert caught.value.reason == "INVALID_PAGE_TOKEN"


async def test_tokens_outlive_the_process(tmp_path):
    async with storage(tmp_path) as world:
        first = (await world.create()).name
        await world.create()
        _, token = await world.service.lists.page(Filter("t"), 1, "")
    async with storage(tmp_path) as world:
        [view], end = await world.service.lists.page(Filter("t"), 1, token)
        assert (view.name, end) == (first, "")


async def test_one_evaluations_events_tell_its_life_and_nothing_of_others(world):
    assignment = await world.running()
    await world.create("other")
    await world.report(report(assignment, output(b"a"), output(b"b", 0, w.STDERR)))
    await world.cancel(await world.get(assignment), "why")
    await world.report(report(assignment, finished(assignment, w.killed(), stdout=b"a", stderr=b"b")))
    evaluation_id = assignment.evaluation.removeprefix("evaluations/")
    batches = [batch async for batch in world.service.events.read("t", evaluation_id, 0)]
    events = [event for batch in batches for event in batch.events]
    assert batches[-1].last_position == world.service.database.last_position
    assert {event.evaluation for event in events} == {assignment.evaluation}
    assert {event.tenant for event in events} == {"t"}
    told = [(event.WhichOneof("kind"), event.attempt) for event in events]
    assert told == [
        ("state_changed", 0),
        ("state_changed", 1),
        ("state_changed", 1),
        ("output", 1),
        ("output", 1),
        ("cancel_requested", 1),
        ("state_changed", 1),
    ]
    versions = [event.state_changed.version for event in events if event.WhichOneof("kind") == "state_changed"]
    assert versions == [1, 2, 3, 7]
    assert (await world.get(assignment)).version == 7
    assert events[3].output.data == b"a"
    assert (events[5].cancel_requested.by, events[5].cancel_requested.reason) == ("key-2", "why")
    assert events[-1].state_changed.termination == (await world.get(assignment)).termination
    after = [
        event
        async for batch in world.service.events.read("t", evaluation_id, events[3].position)
        for event in batch.events
    ]
    assert after == events[4:]


async def test_batches_of_large_output_stay_below_a_mebibyte(world):
    assignment = await world.running(output_bytes=8 << 20)
    for number in range(40):
        await world.report(report(assignment, output(bytes(64 << 10), number * (64 << 10))))
    evaluation_id = assignment.evaluation.removeprefix("evaluations/")
    sizes = [
        sum(event.ByteSize() for event in batch.events)
        async for batch in world.service.events.read("t", evaluation_id, 0)
    ]
    assert max(sizes) <= 1 << 20
    assert len([event for event in await world.events() if event.WhichOneof("kind") == "output"]) == 40


async def test_tail_begins_with_the_last_position_and_goes_on_live(world):
    await world.create()
    tail = world.service.events.tail(-1)
    first = await anext(tail)
    assert (first.events, first.last_position) == ([], 1)
    coming = asyncio.create_task(anext(tail))
    created = await world.create()
    batch = await asyncio.wait_for(coming, 5)
    assert [(event.position, event.evaluation) for event in batch.events] == [(2, created.name)]
    ending = asyncio.create_task(anext(tail))
    await asyncio.sleep(0.01)
    world.service.hub.close()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(ending, 5)


async def test_creation_can_wait_for_the_end_and_be_asked_again(world):
    def wanted():
        return Wanted.of("t", "key-1", "r-1", spec())

    soon = await world.service.evaluations.create_and_wait(wanted(), 0.02)
    assert soon.state == S.EVALUATION_STATE_QUEUED
    waiting = asyncio.create_task(world.service.evaluations.create_and_wait(wanted(), 30))
    await world.register()
    assignment = await world.lease_one()
    await world.report(report(assignment, output(b"1\n"), finished(assignment, stdout=b"1\n")))
    ended = await asyncio.wait_for(waiting, 5)
    assert (ended.name, ended.state) == (soon.name, S.EVALUATION_STATE_SUCCEEDED)
    assert ended.stdout.preview == b"1\n"
    assert ended.spec.program.files[0].content == spec().program.files[0].content
    assert await world.service.evaluations.create_and_wait(wanted(), 30) == ended


async def test_wait_answers_as_soon_as_it_ends(world):
    assignment = await world.running()
    evaluation_id = assignment.evaluation.removeprefix("evaluations/")
    soon = await world.service.evaluations.wait("t", evaluation_id, 0.02)
    assert soon.state == S.EVALUATION_STATE_RUNNING
    waiting = [asyncio.create_task(world.service.evaluations.wait("t", evaluation_id, 30)) for _ in range(5)]
    await asyncio.sleep(0.05)
    begun = time.perf_counter()
    await world.report(report(assignment, finished(assignment)))
    views = await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert time.perf_counter() - begun < 1
    assert {view.state for view in views} == {S.EVALUATION_STATE_SUCCEEDED}


async def test_stops_are_those_known_now_then_each_as_it_is_stored(world):
    await world.register()
    for _ in range(2):
        await world.create()
    first, second = await world.lease(2)
    await world.cancel(await world.get(first))
    watch = world.service.leases.stops("ex-1")
    [known] = await asyncio.wait_for(anext(watch), 5)
    assert (known.run_id, known.epoch) == (first.run_id, first.epoch)
    coming = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.02)
    latencies = []
    begun = time.perf_counter()
    await world.cancel(await world.get(second))
    [pushed] = await asyncio.wait_for(coming, 5)
    latencies.append(time.perf_counter() - begun)
    assert pushed.run_id == second.run_id
    assert min(latencies) < 0.5
    await watch.aclose()


async def test_executors_are_listed_with_when_they_were_last_heard_of(world):
    await world.register(executor_id="b")
    await world.register(executor_id="a")
    world.clock.advance(w.POLICY.lease + timedelta(microseconds=1))
    await world.renew(executor_id="a")
    listed = await world.service.executors.list()
    assert [(one.executor.id, one.live) for one in listed] == [("a", True), ("b", False)]
    waiting = asyncio.create_task(world.lease(executor_id="b", wait=30.0))
    await asyncio.sleep(0.02)
    world.clock.advance(timedelta(minutes=1))
    assert [one.live for one in await world.service.executors.list()] == [False, True]
    waiting.cancel()


async def test_a_clock_that_is_set_makes_no_executor_silent_and_no_dead_one_live(world):
    await world.register(executor_id="dead")
    await world.register(executor_id="live")
    for days in (-3, 5, -1):
        world.clock.wall += days * 24 * 3600 * 1_000_000
        world.clock.advance(w.POLICY.lease)
        await world.renew(executor_id="live")
        await world.service.executors.store_all_heard()
        world.clock.advance(timedelta(microseconds=1))
        listed = {one.executor.id: one for one in await world.service.executors.list()}
        assert (listed["live"].live, listed["dead"].live) == (True, False)


async def test_who_was_heard_of_is_not_forgotten_when_it_could_not_be_stored(world, monkeypatch):
    executors, database = world.service.executors, world.service.database
    for executor_id in ("once", "twice"):
        await world.register(executor_id=executor_id)
    world.clock.advance(timedelta(minutes=1))
    for executor_id in ("once", "twice"):
        executors.heard(executor_id)
    first = world.clock.now()

    async def fails(_):
        world.clock.advance(timedelta(minutes=1))
        executors.heard("twice")
        raise UnavailableError("PEER_UNAVAILABLE", "away")

    with monkeypatch.context() as patched:
        patched.setattr(database, "write", fails)
        with pytest.raises(UnavailableError):
            await executors.store_all_heard()
    await executors.store_all_heard()
    query = text("SELECT id, last_seen FROM executor")
    stored = await database.read(lambda connection: {row[0]: row[1] for row in connection.execute(query)})
    assert stored == {"once": first, "twice": world.clock.now()}


async def test_who_was_heard_of_is_stored_regularly_whatever_one_try_raises(world, monkeypatch):
    raised = [ValueError("nobody foresaw it")]
    tried_again = asyncio.Event()

    async def store_all_heard():
        if raised:
            raise raised.pop()
        tried_again.set()

    policy = replace(w.POLICY, lease=timedelta(milliseconds=3))
    executors = Executors(world.service.database, policy, world.clock)
    monkeypatch.setattr(executors, "store_all_heard", store_all_heard)
    keeping = asyncio.create_task(executors.keep_stored())
    async with asyncio.timeout(20):
        await tried_again.wait()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
