import asyncio
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible_rpc.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.monitor.fake_log_servicer import name, until

pytestmark = pytest.mark.slow

WAIT = 20


async def positions(call):
    async with asyncio.timeout(WAIT):
        return [answer.event.position async for answer in call]


def told(log, evaluation, after=0):
    return [each.position for each in log.events if each.evaluation == evaluation and each.position > after]


async def test_finished_evaluation_is_replayed_whole_and_the_stream_ends(monitor, watch, log):
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    for _ in range(20):
        log.output(name(1))
        log.output(name(2))
    log.end(name(1))
    assert await positions(watch(monitor, name(1))) == told(log, name(1))


async def test_events_to_come_follow_the_replay(monitor, watch, log):
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    call = watch(monitor, name(1))
    first = await anext(call)
    log.output(name(1))
    second = await anext(call)
    log.end(name(1))
    assert [first.event.position, second.event.position, *await positions(call)] == [1, 2, 3]


async def test_twenty_watchers_each_get_every_event_once_while_events_are_appended(monitor, watch, log):
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    calls = []

    async def append():
        for number in range(600):
            log.output(name(1), b"x" * (number % 50))
            log.output(name(2))
            if number % 5 == 0:
                await asyncio.sleep(0.001)
        log.end(name(1))

    async def join(number):
        await asyncio.sleep(0.004 * number)
        after = 3 * number
        calls.append((after, await positions(watch(monitor, name(1), after))))

    await asyncio.gather(append(), *(join(number) for number in range(20)))
    assert len(calls) == 20
    for after, got in calls:
        assert got == told(log, name(1), after)


async def test_nothing_is_lost_or_doubled_while_storage_is_away_and_comes_back(monitor, watch, log, storage):
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    calls = [watch(monitor, name(1)) for _ in range(5)]
    for call in calls:
        await anext(call)
    await until(lambda: storage.in_flight("ReadEvents") == 0)
    watching = [asyncio.ensure_future(positions(call)) for call in calls]
    for _ in range(3):
        log.output(name(1))
        await storage.stop()
        for _ in range(50):
            log.output(name(1))
        await storage.start()
        await until(lambda: monitor.tail.position == len(log.events))
    log.end(name(1))
    assert await asyncio.gather(*watching) == [told(log, name(1), after=1)] * 5
    assert log.tails >= 4


async def test_new_watch_is_refused_with_a_retry_hint_while_storage_is_down(monitor, watch, log, storage):
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    await storage.stop()
    with pytest.raises(UnavailableError) as caught:
        await positions(watch(monitor, name(1)))
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert "storage" in caught.value.message
    assert caught.value.retry_after is not None
    await storage.start()


async def test_watch_before_the_tail_began_is_refused_because_events_could_be_missed(start_monitor, watch, storage):
    await storage.stop()
    monitor = await start_monitor(connected=False)
    with pytest.raises(UnavailableError):
        await positions(watch(monitor, name(1)))
    await storage.start()


async def test_replay_of_an_older_state_than_was_followed_is_refused_because_events_would_be_missing(
    monitor, watch, log
):
    for _ in range(3):
        log.output(name(1))
    await until(lambda: monitor.tail.position == 3)
    log.stale = 1
    with pytest.raises(UnavailableError):
        await positions(watch(monitor, name(1)))


@pytest.mark.parametrize("beyond", [0, 1, 1000])
async def test_resuming_at_or_after_the_terminal_event_ends_at_once(monitor, watch, log, beyond):
    log.output(name(1))
    last = log.end(name(1))
    for _ in range(5):
        log.output(name(2))
    assert await positions(watch(monitor, name(1), last + beyond)) == []


async def test_resuming_at_a_position_of_another_evaluation_goes_on_live(monitor, watch, log):
    log.output(name(1))
    other = log.output(name(2))
    call = watch(monitor, name(1), other)
    await until(lambda: log.reads == 2)
    last = log.end(name(1))
    assert await positions(call) == [last]


async def test_unknown_evaluation_and_another_tenants_are_not_found(monitor, watch, log):
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    for call in (watch(monitor, name(9)), watch(monitor, name(1), tenant="other")):
        with pytest.raises(NotFoundError) as caught:
            await positions(call)
        assert caught.value.reason == "EVALUATION_NOT_FOUND"


async def test_slow_watcher_is_told_and_resumes_exactly_where_it_was_while_others_get_everything(
    start_monitor, watch, log
):
    monitor = await start_monitor(watcher_events=64)
    log.state(name(1), ev.EVALUATION_STATE_QUEUED)
    slow = watch(monitor, name(1))
    seen = [(await anext(slow)).event.position]
    quick = asyncio.ensure_future(positions(watch(monitor, name(1))))
    await until(lambda: monitor.metric("crucible_watchers") == 2)
    # gRPC itself buffers some megabytes for a stream; one by one, so that the quick watcher keeps up.
    for _ in range(1000):
        log.output(name(1), b"x" * 65_536)
        await until(lambda: monitor.tail.position == len(log.events))
        await asyncio.sleep(0.001)
        if monitor.metric("crucible_watchers_fell_behind_total"):
            break
    assert monitor.metric("crucible_watchers_fell_behind_total") == 1
    last = None
    async with asyncio.timeout(WAIT):
        async for answer in slow:
            assert last is None, "nothing may follow the word that it fell behind"
            if answer.HasField("event"):
                seen.append(answer.event.position)
            else:
                last = answer.fell_behind_resume_after_position
    assert last == seen[-1] < len(log.events)
    log.end(name(1))
    assert await quick == told(log, name(1))
    assert seen + await positions(watch(monitor, name(1), last)) == told(log, name(1))


async def test_watcher_that_never_reads_gives_its_place_up_and_can_go_on_where_it_was(start_monitor, watch, log):
    monitor = await start_monitor(max_watchers=1, watcher_patience=timedelta(seconds=0.5))
    for _ in range(200):  # more than gRPC buffers
        log.output(name(1), b"x" * 65_536)
    stalled = watch(monitor, name(1))
    seen = [(await anext(stalled)).event.position]
    with pytest.raises(ResourceExhaustedError):
        await positions(watch(monitor, name(1)))
    await until(lambda: monitor.metric("crucible_watchers") == 0)
    method = {"method": "/crucible.monitor.v1.MonitorService/Watch"}
    await until(lambda: monitor.metric("crucible_rpc_in_flight", **method) == 0)
    last = log.end(name(1))
    resumed = await positions(watch(monitor, name(1), last - 1))  # somebody else has the place
    assert resumed == [last]

    async def rest():
        async for answer in stalled:
            seen.append(answer.event.position)  # noqa: PERF401  # what came before the error counts

    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(rest(), WAIT)
    assert caught.value.reason == "READER_STALLED"
    assert caught.value.retry_after is not None
    assert any(f"position from {each} on" in caught.value.message for each in seen[-2:])
    assert seen + await positions(watch(monitor, name(1), seen[-1])) == told(log, name(1))


async def test_watcher_that_reads_slowly_keeps_its_place(start_monitor, watch, log):
    monitor = await start_monitor(watcher_patience=timedelta(seconds=2))
    for _ in range(200):
        log.output(name(1), b"x" * 65_536)
    log.end(name(1))
    slow = watch(monitor, name(1))
    seen = []
    async with asyncio.timeout(WAIT):
        async for answer in slow:
            seen.append(answer.event.position)
            if len(seen) % 25 == 0:
                await asyncio.sleep(0.5)  # all in all twice the patience
    assert seen == told(log, name(1))


async def test_nothing_is_kept_of_evaluations_whose_watchers_left(monitor, watch, log):
    for number in range(30):
        log.output(name(number))
        call = watch(monitor, name(number))
        await anext(call)
        await call.aclose()
    await until(lambda: monitor.metric("crucible_watchers") == 0)
    for number in range(30):
        log.output(name(number))
    log.end(name(1))
    await until(lambda: monitor.tail.position == len(log.events))
    assert await positions(watch(monitor, name(1))) == told(log, name(1))


async def test_more_watchers_than_allowed_are_refused_with_a_retry_hint(start_monitor, watch, log):
    monitor = await start_monitor(max_watchers=2)
    log.output(name(1))
    calls = [watch(monitor, name(1)) for _ in range(2)]
    for call in calls:
        await anext(call)
    with pytest.raises(ResourceExhaustedError) as caught:
        await positions(watch(monitor, name(1)))
    assert caught.value.reason == "TOO_MANY_WATCHERS"
    assert caught.value.retry_after is not None
    for call in calls:
        await call.aclose()


@pytest.mark.parametrize("process", ["worker", "storage", "executor", "monitor"])
async def test_only_the_gateway_may_watch(monitor, watch, log, process):
    log.end(name(1))
    with pytest.raises(PermissionDeniedError):
        await positions(watch(monitor, name(1), process=process))


@pytest.mark.parametrize(
    "request_", [{"tenant": ""}, {"evaluation": "x" * 200}, {"after": -1}, {"evaluation": ""}, {"tenant": "t" * 200}]
)
async def test_request_out_of_bounds_is_refused_with_its_field(monitor, watch, request_):
    with pytest.raises(InvalidArgumentError) as caught:
        await positions(watch(monitor, **{"evaluation": name(1), **request_}))
    assert caught.value.violations


async def test_watchers_are_told_when_monitor_stops(monitor, watch, log):
    log.output(name(1))
    call = watch(monitor, name(1))
    await anext(call)
    stopping = asyncio.ensure_future(monitor.server.drain())
    with pytest.raises(UnavailableError) as caught:
        await positions(call)
    assert caught.value.reason == "SHUTTING_DOWN"
    await asyncio.wait_for(stopping, 5)


async def test_events_and_endings_are_counted_by_kind(monitor, log):
    log.output(name(1))
    log.end(name(1))
    oom = ev.Termination(limit_exceeded=ev.LimitExceeded(limit=ev.LIMIT_MEMORY))
    log.state(name(2), ev.EVALUATION_STATE_FAILED, oom)
    await until(lambda: monitor.metric("crucible_tail_position") == 3)
    assert monitor.metric("crucible_events_total", kind="output") == 1
    assert monitor.metric("crucible_events_total", kind="state_changed") == 2
    assert monitor.metric("crucible_evaluations_ended_total", state="SUCCEEDED", termination="exited") == 1
    assert monitor.metric("crucible_evaluations_ended_total", state="FAILED", termination="limit_exceeded:MEMORY") == 1
    assert 0 <= monitor.metric("crucible_tail_lag_seconds") < 10
    assert monitor.metric("crucible_tail_connected") == 1
