"""A run is looked at often at first, then less and less, never before 100 ms; what was seen travels some at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor.cgroups import Counters
from crucible_executor.cgroups.v1 import CgroupV1
from crucible_executor.cgroups.v2 import CgroupV2
from crucible_executor.model import Limits
from crucible_executor.run import SAMPLES_TOGETHER
from crucible_executor.sampling import MAX_SAMPLES, Sample, interval
from crucible_executor.supervision import Supervision
from tests.executor.support import single
from tests.executor.test_supervision import LIMITS, Nowhere

YEAR = timedelta(days=365)
BLOCKS = {"block": True}


class Taken(Nowhere):
    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.several = asyncio.Event()

    def sampled(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) == 3:
            self.several.set()


def supervision(counters, sink=None, limits: Limits = LIMITS) -> Supervision:
    run = Supervision(limits, sink or Taken())
    run.begin(counters=counters)
    return run


def test_a_run_of_a_year_has_a_bounded_series():
    passed, taken = 0.0, 0
    while passed < YEAR.total_seconds():
        passed += interval(taken)
        taken += 1
    assert 1000 < taken < MAX_SAMPLES
    assert [interval(n) for n in (0, 63, 64, 128)] == [0.1, 0.1, 0.2, 0.4]


async def test_a_run_that_ends_sooner_is_never_looked_at():
    looks = []
    run = supervision(lambda: looks.append(1))
    await asyncio.sleep(0.03)
    run.end(None)
    assert [name for name, timer in run._timers.items() if not timer.cancelled()] == []
    await asyncio.sleep(0.15)
    assert (looks, run.samples) == ([], 0)
    run.close()


async def test_samples_rise_in_time_and_their_cpu_time_never_falls():
    told = iter([timedelta(seconds=2), timedelta(seconds=1), timedelta(seconds=3)])
    sink = Taken()
    run = supervision(lambda: Counters(next(told), 7, 3), sink)
    await asyncio.wait_for(sink.several.wait(), 10)
    run.end(None)
    assert [one.counters.cpu_time.total_seconds() for one in sink.samples] == [2, 2, 3]
    times = [one.since_start.total_seconds() for one in sink.samples]
    assert times == sorted(times)
    assert times[0] >= 0.1
    assert run.samples == 3


async def test_a_cgroup_that_does_not_tell_is_no_series_of_nothing():
    looked = asyncio.Event()

    def nothing() -> None:
        looked.set()

    run = supervision(nothing)
    await asyncio.wait_for(looked.wait(), 10)
    run.end(None)
    assert run.samples is None
    without = Supervision(LIMITS, Taken())
    without.begin()
    without.end(None)
    assert without.samples is None


def write(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_counters_are_read_of_both_versions_of_cgroups(tmp_path):
    expected = Counters(timedelta(seconds=1.5), 4096, 7)
    stat = "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\n"
    second = write(tmp_path / "v2", cpu__stat=stat, memory__current="4096\n", pids__current="7\n")
    assert CgroupV2("s", second).counters() == expected
    one = write(tmp_path / "v1", cpuacct__usage="1500000999\n", memory__usage_in_bytes="4096\n", pids__current="7\n")
    first = CgroupV1("s", dict.fromkeys(("memory", "cpu", "cpuacct", "pids"), one))
    assert first.counters() == expected
    (second / "pids.current").unlink()
    assert CgroupV2("s", second).counters() is None


async def told(answers):
    """The numbers of the samples in a stream, event by event, and how many messages brought all events."""
    messages, events = 0, []
    async for answer in answers:
        messages += 1
        for event in answer.events:
            if event.HasField("usage_samples"):
                first = event.usage_samples.first
                events.append(list(range(first, first + len(event.usage_samples.samples))))
    return messages, events


async def test_samples_travel_some_at_a_time_while_the_program_runs(executor):
    request = executor.request({"samples": 40, **BLOCKS})
    first = None
    async with asyncio.timeout(10):
        async for event in single(executor.stub.Execute(request)):
            if event.HasField("usage_samples"):
                first = event.usage_samples
                break
    assert (first.first, len(first.samples)) == (1, 2 * SAMPLES_TOGETHER)
    assert first.samples[0].since_start.ToTimedelta() == timedelta(seconds=0.1)
    assert (first.samples[1].memory_bytes, first.samples[1].tasks) == (2, 5)
    executor.engine.release.set()
    run_id = ex.Ticket.FromString(request.ticket.payload).run_id
    for have in (0, 32, 39, 40, 99):
        attached = executor.stub.Attach(ex.AttachRequest(run_id=run_id, usage_samples=have))
        _, events = await told(attached)
        assert [number for event in events for number in event] == list(range(have + 1, 41))


async def test_samples_of_a_short_run_make_no_message_of_their_own(executor):
    """They travel with its end, which is one anyway; without samples there is no event either."""
    for script, more in (({"out": "x"}, []), ({"out": "x", "samples": 3}, ["usage_samples"])):
        answers = [answer async for answer in executor.stub.Execute(executor.request(script))]
        kinds = [[event.WhichOneof("kind") for event in answer.events] for answer in answers]
        assert sorted(kind for one in kinds for kind in one) == sorted(["started", "output", "finished", *more])
        assert kinds[-1][-1] == "finished"
        assert [one for one in kinds[-1] if one == "usage_samples"] == more


async def test_an_engine_that_tells_without_end_is_bounded(executor):
    ended = executor.stub.Execute(executor.request({"samples": 2 * MAX_SAMPLES}))
    _, events = await told(ended)
    assert [number for event in events for number in event] == list(range(1, MAX_SAMPLES + 1))
    assert max(len(event) for event in events) == 256


async def test_the_record_says_how_many_there_were(executor):
    record = (await executor.execute({"samples": 3})).record
    assert record.usage.samples == 3
    without = (await executor.execute({})).record
    assert not without.usage.HasField("samples")
