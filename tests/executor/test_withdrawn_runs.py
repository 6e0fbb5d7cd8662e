"""A run that was accepted when its engine's breaker opened is given back: nothing of it ever started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import breaker
from crucible_executor.engines.guarded import GuardedEngine
from crucible_executor.metrics import EngineMetrics
from crucible_rpc.errors import AlreadyExistsError, CallError, FailedPreconditionError
from tests.executor.support import Keys, RunningExecutor, ScriptedSandbox, collect, new_run_id, running
from tests.executor.test_engine_breaker import Fragile, fail, until
from tests.executor.test_runs import attach, states


class Holding(Fragile):
    """Its next sandbox is not made before `gate` is set, and the programs in those that are made really start."""

    def __init__(self, starts: Path) -> None:
        super().__init__(starts)
        self.hold_next = False
        self.held = asyncio.Event()
        self.gate = asyncio.Event()

    async def create(self, sandbox_class):
        if self.hold_next:
            self.hold_next = False
            self.held.set()
            await self.gate.wait()
        await super().create(sandbox_class)
        return ScriptedSandbox(self)


@pytest.fixture
def inner(tmp_path) -> Holding:
    return Holding(tmp_path / "starts")


@pytest.fixture
def guarded(inner, monkeypatch) -> GuardedEngine:
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 0.05)
    return GuardedEngine(inner, EngineMetrics(CollectorRegistry()))


@pytest.fixture
async def executor(keys: Keys, tmp_path, guarded) -> AsyncIterator[RunningExecutor]:
    async with running(keys, tmp_path / "state", guarded) as made:
        yield made


async def accept(executor, inner, request) -> asyncio.Task:
    """Has a run accepted; answers its stream, which is held before the sandbox is made."""
    inner.hold_next = True
    stream = asyncio.ensure_future(collect(executor.stub.Execute(request), executor.keys))
    await asyncio.wait_for(inner.held.wait(), 5)
    return stream


async def open_breaker(guarded, inner) -> None:
    await fail(guarded, inner)
    await until(lambda: guarded.failing != "")


async def close_breaker(guarded, inner) -> None:
    inner.creation_error = inner.trial_error = None
    await until(lambda: guarded.failing == "")


async def refused(call) -> CallError:
    with pytest.raises(FailedPreconditionError, match="runsc is gone: install it") as caught:
        await asyncio.wait_for(call, 5)
    assert caught.value.reason == "ENGINE_NOT_AVAILABLE"
    return caught.value


async def test_run_that_was_accepted_when_the_breaker_opened_is_refused_and_starts_under_its_next_lease(
    executor, inner, guarded
):
    run_id = new_run_id()
    request = executor.request({"name": "once", "out": "hello"}, run_id=run_id, epoch=1)
    stream = await accept(executor, inner, request)
    attached = asyncio.ensure_future(attach(executor, run_id))
    assert await states(executor) == {run_id: ex.RUN_STATE_RUNNING}
    await open_breaker(guarded, inner)
    inner.gate.set()
    await refused(stream)
    await refused(attached)
    assert await states(executor) == {}
    await refused(attach(executor, run_id))  # also for a worker that comes later
    await close_breaker(guarded, inner)
    with pytest.raises(AlreadyExistsError):  # its lease was given up: it could be somebody else's work by now
        await collect(executor.stub.Execute(request), executor.keys)
    assert inner.started() == []
    done = await executor.execute({"name": "once", "out": "hello"}, run_id=run_id, epoch=2)
    assert (done.stdout, done.record.lease_epoch, done.record.attempt) == (b"hello", 2, 1)
    assert (await attach(executor, run_id)).record == done.record
    assert inner.started() == ["once"]


async def test_journal_does_not_speak_of_a_withdrawn_run_any_more(keys, executor, inner, guarded, tmp_path):
    run_id = new_run_id()
    stream = await accept(executor, inner, executor.request({}, run_id=run_id))
    await open_breaker(guarded, inner)
    inner.gate.set()
    await refused(stream)
    copy = tmp_path / "copy"  # as the disk has it at this moment: what the next start would find after a crash
    copy.mkdir()
    (copy / "journal").write_bytes((tmp_path / "state/journal").read_bytes())
    async with running(keys, copy) as later:
        assert await states(later) == {}


async def test_slot_and_permit_of_a_withdrawn_run_are_free(executor, inner, guarded):
    run_id = new_run_id()
    stream = await accept(executor, inner, executor.request({}, run_id=run_id, permit=0.3))
    await open_breaker(guarded, inner)
    inner.gate.set()
    await refused(stream)
    await close_breaker(guarded, inner)
    blocked = [asyncio.ensure_future(executor.execute({"block": True, "name": str(n)})) for n in range(4)]
    await until(lambda: len(inner.started()) == 4)
    inner.release.set()
    assert [one.record.termination.exited.code for one in await asyncio.gather(*blocked)] == [0] * 4


async def test_kill_of_a_run_that_waits_for_its_sandbox_is_answered_although_none_is_made(executor, inner, guarded):
    """Somebody wanted it ended: that is its end, not a refusal, for it is not to be tried again."""
    run_id = new_run_id()
    stream = await accept(executor, inner, executor.request({}, run_id=run_id))
    killing = asyncio.ensure_future(executor.stub.Kill(ex.KillRequest(run_id=run_id)))
    await until(lambda: executor.service.runs.get(run_id).kill_cause is not None)
    await open_breaker(guarded, inner)
    inner.gate.set()
    assert (await asyncio.wait_for(killing, 5)).state_before == ex.RUN_STATE_RUNNING
    ended = await asyncio.wait_for(stream, 5)
    assert ended.record.termination.WhichOneof("kind") == "sandbox_failed"
    assert not ended.record.HasField("start_time")


async def test_run_whose_sandbox_was_made_is_an_attempt_however_it_fails(executor, inner, guarded):
    """Nobody could say for sure that nothing of its program started."""
    stream = await accept(executor, inner, executor.request({"name": "begun", "raise": "a bug"}))
    await open_breaker(guarded, inner)
    inner.creation_error = None
    inner.gate.set()
    ended = await asyncio.wait_for(stream, 5)
    assert ended.record.termination.WhichOneof("kind") == "sandbox_failed"
    assert inner.started() == ["begun"]
