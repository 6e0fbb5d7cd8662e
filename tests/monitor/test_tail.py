import asyncio

import pytest

from crucible.evaluation.v1 import event_pb2
from crucible.storage.v1 import event_log_service_pb2 as log_api
from crucible_monitor.tail import LogDamagedError, Tail
from crucible_rpc.errors import UnavailableError
from tests.monitor.fake_log_servicer import name, until


class ScriptedLog:
    """Answers each tail with the next list of batches; an exception in it is raised. After the last it is silent."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.asked = []

    async def tail(self, after_position):
        self.asked.append(after_position)
        for item in self.scripts.pop(0) if self.scripts else [UnavailableError("X", "away")]:
            if isinstance(item, Exception):
                raise item
            last, positions = item
            events = [event_pb2.Event(position=position) for position in positions]
            yield log_api.TailEventsResponse(events=events, last_position=last)
        if not self.scripts:
            await asyncio.Event().wait()


async def followed(log, count):
    got = []
    tail = Tail(log, lambda event: got.append(event.position), first_pause_seconds=0.001)
    running = asyncio.ensure_future(tail.run())
    done = asyncio.ensure_future(until(lambda: len(got) >= count))
    await asyncio.wait((running, done), return_when=asyncio.FIRST_COMPLETED)
    done.cancel()
    if running.done():
        await running
    running.cancel()
    return got


async def test_begins_with_what_is_to_come_and_resumes_by_position():
    log = ScriptedLog([(7, []), (9, [8, 9]), UnavailableError("X", "away")], [(12, []), (12, [10, 11, 12])])
    assert await followed(log, 5) == [8, 9, 10, 11, 12]
    assert log.asked == [-1, 9]


async def test_events_that_come_again_are_published_once():
    log = ScriptedLog([(0, []), (2, [1, 2])], [(3, []), (3, [2, 3])])
    assert await followed(log, 3) == [1, 2, 3]


async def test_missing_event_is_asked_for_again():
    log = ScriptedLog([(0, []), (3, [1, 3])], [(3, []), (3, [2, 3])])
    assert await followed(log, 3) == [1, 2, 3]
    assert log.asked == [-1, 1]


async def test_event_that_stays_missing_ends_the_process_loudly():
    log = ScriptedLog([(0, []), (3, [1, 3])], [(3, []), (3, [3])], [])
    with pytest.raises(LogDamagedError, match="3 came where 2 was expected"):
        await followed(log, 3)


async def test_log_that_ends_before_what_was_reached_is_another_log():
    log = ScriptedLog([(5, []), (6, [6])], [(3, [])], [])
    with pytest.raises(LogDamagedError, match="ends at 3"):
        await followed(log, 2)


async def test_gap_from_a_real_storage_is_filled_by_a_second_read(start_monitor, log, storage):
    monitor = await start_monitor()
    log.hidden, log.hide_once = {2}, True
    log.output(name(1))
    log.output(name(1))
    log.output(name(1))
    await until(lambda: monitor.tail.position == 3)
    assert monitor.metric("crucible_events_total", kind="output") == 3
