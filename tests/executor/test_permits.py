"""Leave to go on: counted from when the executor itself said what time it was, and over for good once it has ended."""

import asyncio
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from crucible_executor import permits
from crucible_executor.permits import Permit
from crucible_rpc.channel import connect
from crucible_rpc.errors import InvalidArgumentError
from tests.executor.support import RunningExecutor, new_run_id, running, told_time
from tests.executor.test_runs import BLOCKS, CHILD, attach, begin

pytestmark = pytest.mark.slow


async def extend(executor, run_ids, permit, since):
    request = ex.ExtendPermitsRequest(run_ids=run_ids, since=since)
    request.permit.FromTimedelta(timedelta(seconds=permit))
    return list((await executor.stub.ExtendPermits(request)).not_running)


def uptime_seconds(told):
    return told.uptime.seconds + told.uptime.nanos / 1e9


def cause(ended):
    return ended.record.termination.killed.cause


async def test_permit_that_is_not_extended_ends_the_run(executor):
    assert cause(await executor.execute(BLOCKS, permit=0.15)) == ex.KILL_CAUSE_PERMIT_EXPIRED


async def test_permit_is_never_longer_than_the_orphan_grace(keys, tmp_path):
    async with running(keys, tmp_path / "state", orphan_grace=timedelta(seconds=0.2)) as executor:
        begun = time.monotonic()
        assert cause(await executor.execute(BLOCKS, permit=3600)) == ex.KILL_CAUSE_PERMIT_EXPIRED
        assert time.monotonic() - begun < 3
        run_id = await begin(executor)
        assert await extend(executor, [run_id], 3600, await told_time(executor.stub)) == []
        assert cause(await attach(executor, run_id)) == ex.KILL_CAUSE_PERMIT_EXPIRED


async def test_extended_permit_lets_the_run_go_on(executor):
    run_id, unknown = await begin(executor, permit=0.5), new_run_id()
    assert await extend(executor, [run_id, unknown], 10, await told_time(executor.stub)) == [unknown]
    ended = asyncio.ensure_future(attach(executor, run_id))
    done, _ = await asyncio.wait([ended], timeout=0.7)  # longer than the first permit
    assert not done
    executor.engine.release.set()
    assert (await ended).record.termination.WhichOneof("kind") == "exited"


async def test_executor_that_was_stalled_does_not_bring_back_a_permit_that_ended_meanwhile(executor):
    """The extension is looked at before the permit's own timer, as it may be when a stalled process goes on."""
    run_id = await begin(executor, permit=0.2)
    since = await told_time(executor.stub)
    time.sleep(0.3)  # noqa: ASYNC251  # nothing of the executor goes on, as under SIGSTOP
    assert executor.service.runs.extend([run_id], timedelta(seconds=10), uptime_seconds(since)) == [run_id]
    assert executor.service.runs.extend([run_id], timedelta(seconds=10), executor.service.clock.now()) == [run_id]
    assert cause(await asyncio.wait_for(attach(executor, run_id), 5)) == ex.KILL_CAUSE_PERMIT_EXPIRED


async def test_extension_that_was_on_its_way_for_long_counts_from_when_it_was_meant(executor):
    run_id = await begin(executor, permit=0.2)
    since = await told_time(executor.stub)
    time.sleep(0.1)  # noqa: ASYNC251  # the permit is still good, and the extension late by this
    runs = executor.service.runs
    assert runs.extend([run_id], timedelta(seconds=0.3), uptime_seconds(since)) == []
    ends = runs._runs[run_id].permit._ends
    assert ends == pytest.approx(uptime_seconds(since) + 0.3)
    assert cause(await asyncio.wait_for(attach(executor, run_id), 5)) == ex.KILL_CAUSE_PERMIT_EXPIRED


async def test_stopped_process_ends_what_ran_on_permits_that_ended_meanwhile(keys, tmp_path):
    """SIGSTOP, and an extension that arrives while it is stopped: the run is over when the process goes on."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CHILD,
        str(Path(__file__).parents[2]),
        str(keys.folder),
        str(tmp_path / "state"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        port, executor_id, boot_id = (await asyncio.wait_for(child.stdout.readline(), 20)).decode().split()
        async with connect(f"127.0.0.1:{port}", keys.tls("worker"), "executor") as channel:
            names = SimpleNamespace(executor_id=executor_id, boot_id=boot_id)
            stub = ExecutorServiceStub(channel)
            told = await told_time(stub)
            executor = RunningExecutor(keys, names, None, stub, lambda: told)
            run_id = await begin(executor, permit=1)
            since = await told_time(executor.stub)
            child.send_signal(signal.SIGSTOP)
            late = asyncio.ensure_future(extend(executor, [run_id], 15, since))
            await asyncio.sleep(1.2)  # longer than the permit
            child.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(late, 5) == [run_id]
            assert cause(await asyncio.wait_for(attach(executor, run_id), 5)) == ex.KILL_CAUSE_PERMIT_EXPIRED
    finally:
        child.kill()
        await child.wait()


@pytest.mark.parametrize("which", ["none", "another start's", "yet to come", "negative"])
async def test_permits_count_only_from_a_time_that_this_start_told(executor, which):
    run_id = await begin(executor)
    since = await told_time(executor.stub)
    if which == "none":
        since = None
    elif which == "another start's":
        since.boot_id = "another"
    elif which == "yet to come":
        since.uptime.seconds += 60
    else:
        since.uptime.seconds = -1
    with pytest.raises(InvalidArgumentError, match="since"):
        await extend(executor, [run_id], 10, since)
    executor.engine.release.set()


async def test_clock_of_permits_tells_when_it_was_asked(executor):
    first, second = await told_time(executor.stub), await told_time(executor.stub)
    assert first.boot_id == second.boot_id == executor.service.boot_id
    assert 0 < uptime_seconds(first) < uptime_seconds(second) < executor.service.clock.now()


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


async def test_permit_ends_although_the_machine_slept_and_the_loops_timers_with_it(monkeypatch):
    monkeypatch.setattr(permits, "LOOK_SECONDS", 0.02)
    clock, expired = Clock(), asyncio.Event()
    permit = Permit(115.0, clock=clock, on_expired=expired.set)
    clock.now += 3600  # the clock went on, the loop's did not
    await asyncio.wait_for(expired.wait(), 5)
    assert not permit.extend(10_000.0)


async def test_extension_never_shortens_a_permit(monkeypatch):
    monkeypatch.setattr(permits, "LOOK_SECONDS", 0.01)
    clock, expired = Clock(), asyncio.Event()
    permit = Permit(115.0, clock=clock, on_expired=expired.set)
    assert permit.extend(120.0)
    assert permit.extend(101.0)
    clock.now = 119.9
    await asyncio.sleep(0.05)  # some looks later
    assert not expired.is_set()
    clock.now = 120.0
    await asyncio.wait_for(expired.wait(), 5)


async def test_permit_of_a_run_that_is_over_never_ends(monkeypatch):
    monkeypatch.setattr(permits, "LOOK_SECONDS", 0.01)
    clock, expired = Clock(), asyncio.Event()
    permit = Permit(100.5, clock=clock, on_expired=expired.set)
    permit.end()
    clock.now = 200.0
    await asyncio.sleep(0.05)
    assert not expired.is_set()
    assert not permit.extend(300.0)
