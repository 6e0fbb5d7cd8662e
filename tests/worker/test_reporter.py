"""What of which run travels in which report."""

import asyncio
from datetime import timedelta

import pytest

from crucible.evaluation.v1.evaluation_pb2 import OUTPUT_STREAM_STDOUT
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.errors import InvalidArgumentError, UnavailableError
from crucible_worker import reporter as module
from crucible_worker.carried import CarriedRun
from crucible_worker.reporter import HURRY_BYTES, Reporter

LIMIT_S = 10.0
NEVER = timedelta(seconds=600)


class Target:
    """Takes reports, each as the kinds of its events by run; `errors` are raised first."""

    def __init__(self):
        self.calls: list[dict[str, list[str]]] = []
        self.errors: list[Exception] = []
        self.ends: list[str] = []
        self.rejections: list[str] = []
        self.more = asyncio.Event()

    async def send(self, reports):
        if self.errors:
            raise self.errors.pop(0)
        self.calls.append({one.lease.run_id: [event.WhichOneof("kind") for event in one.events] for one in reports})
        self.more.set()
        return []

    def stored(self, run):
        self.ends.append(run.run_id)

    def rejected(self, run, reason, message):
        self.rejections.append(run.run_id)

    def failed(self, error):
        pass

    async def until(self, count):
        async with asyncio.timeout(LIMIT_S):
            while len(self.calls) < count:
                self.more.clear()
                await self.more.wait()


@pytest.fixture
async def target():
    return Target()


@pytest.fixture
async def reporter(target):
    made = Reporter(target, timedelta(milliseconds=10))
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def patient(monkeypatch):
    """What a run does first waits for its end, however long that takes."""
    monkeypatch.setattr(module, "FIRST_DELAY", NEVER)


def started():
    return ex.RunEvent(started=ex.ProgramStarted())


def output(data, offset=0):
    return ex.RunEvent(output=ex.RunOutputChunk(stream=OUTPUT_STREAM_STDOUT, offset=offset, data=data))


def finished():
    return ex.RunEvent(finished={})


async def test_all_of_a_short_run_is_one_report(reporter, target, patient):
    run = CarriedRun("a.1", 1)
    reporter.take(run, started())
    await asyncio.sleep(0.03)  # longer than output waits for company
    reporter.take(run, output(b"x"))
    await asyncio.sleep(0.03)
    reporter.take(run, finished())
    await target.until(1)
    assert target.calls == [{"a.1": ["started", "output", "finished"]}]


async def test_end_of_one_run_does_not_cut_the_story_of_another_in_two(reporter, target, patient):
    young, ending = CarriedRun("a.1", 1), CarriedRun("b.1", 1)
    reporter.take(young, output(b"x"))
    reporter.take(ending, finished())
    await target.until(1)
    reporter.take(young, finished())
    await target.until(2)
    assert target.calls == [{"b.1": ["finished"]}, {"a.1": ["output", "finished"]}]


async def test_run_that_goes_on_is_reported_meanwhile(reporter, target):
    run = CarriedRun("a.1", 1)
    reporter.take(run, started())
    await target.until(1)
    reporter.take(run, output(b"x"))
    await target.until(2)
    reporter.take(run, finished())
    await target.until(3)
    assert target.calls == [{"a.1": ["started"]}, {"a.1": ["output"]}, {"a.1": ["finished"]}]


async def test_much_output_does_not_wait(reporter, target, patient):
    run = CarriedRun("a.1", 1)
    reporter.take(run, output(b"x" * HURRY_BYTES))
    await target.until(1)
    assert target.calls == [{"a.1": ["output"]}]


async def test_what_is_due_at_about_the_same_time_travels_together(reporter, target):
    runs = [CarriedRun(f"{number}.1", 1) for number in range(3)]
    for run in runs:
        reporter.take(run, output(b"x"))
    await target.until(1)
    assert target.calls == [{run.run_id: ["output"] for run in runs}]


async def test_stopping_worker_hands_over_what_is_not_due_yet(reporter, target, patient):
    run = CarriedRun("a.1", 1)
    reporter.take(run, output(b"x"))
    await asyncio.wait_for(reporter.flushed(), LIMIT_S)
    assert target.calls == [{"a.1": ["output"]}]


async def test_report_that_was_not_taken_is_sent_again(reporter, target, patient):
    target.errors = [UnavailableError("PEER_UNAVAILABLE", "away")]
    run = CarriedRun("a.1", 1)
    reporter.take(run, finished())
    await target.until(1)
    assert target.calls == [{"a.1": ["finished"]}]
    await asyncio.wait_for(reporter.flushed(), LIMIT_S)
    assert target.ends == ["a.1"]


async def test_reports_that_spoil_a_batch_are_found_one_by_one(reporter, target):
    bad = InvalidArgumentError("INVALID_FIELD", "no")
    target.errors = [bad, bad]
    runs = [CarriedRun(f"{number}.1", 1) for number in range(3)]
    for run in runs:
        reporter.take(run, finished())
    await target.until(2)
    await asyncio.wait_for(reporter.flushed(), LIMIT_S)
    assert target.rejections == ["0.1"]
    assert target.ends == ["1.1", "2.1"]
    assert target.calls[:2] == [{"1.1": ["finished"]}, {"2.1": ["finished"]}]


async def test_refusal_is_told_at_once(reporter, target, patient):
    run = CarriedRun("a.1", 1)
    reporter.conclude(run, work.Refused(reason="no room"))
    await target.until(1)
    assert target.calls == [{"a.1": []}]
