"""An engine that fails again and again is let be, says why at once, and comes back when its trial succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import breaker
from crucible_executor.breaker import OPEN_AFTER
from crucible_executor.engines.base import EngineUnavailableError, ProgramRefusedError
from crucible_executor.engines.guarded import GuardedEngine
from crucible_executor.metrics import EngineMetrics
from crucible_executor.model import Exited, Outcome, Program, SandboxClass, SandboxFailed, Usage
from crucible_rpc.errors import FailedPreconditionError
from tests.executor.support import ScriptedEngine, ScriptedSandbox, running

CLASS = SandboxClass("python", 64 << 20, 1 << 20, None, 1.0, 8)
PROGRAM = Program(("x",), (), {}, b"")
USAGE = Usage(timedelta(0), None, None, None)


class Fragile(ScriptedEngine):
    """An engine whose sandboxes and whose trial fail when told to."""

    def __init__(self, starts: Path) -> None:
        super().__init__(starts)
        self.creation_error: Exception | None = None
        self.trial_error: Exception | None = None
        self.outcome: Any = Exited(0)
        self.trials = 0
        self.tried = asyncio.Event()
        self.hang = asyncio.Event()
        self.hang.set()

    async def check(self) -> None:
        self.trials += 1
        self.tried.set()
        await self.hang.wait()
        if self.trial_error is not None:
            raise self.trial_error

    async def create(self, sandbox_class: SandboxClass) -> ScriptedSandbox:
        self.created += 1
        if self.creation_error is not None:
            raise self.creation_error
        return Ending(self)


class Ending(ScriptedSandbox):
    async def start(self, program: Any, limits: Any, sink: Any) -> Outcome:
        if isinstance(self._engine.outcome, Exception):
            raise self._engine.outcome
        return Outcome(self._engine.outcome, (), USAGE)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def inner(tmp_path: Path) -> Fragile:
    return Fragile(tmp_path / "starts")


@pytest.fixture
async def guarded(inner: Fragile, registry: CollectorRegistry) -> AsyncIterator[GuardedEngine]:
    made = GuardedEngine(inner, EngineMetrics(registry), trial_limit=timedelta(seconds=0.2))
    yield made
    await made.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 0.02)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # several things are waited for here
            await asyncio.sleep(0.005)


async def fail(guarded: GuardedEngine, inner: Fragile, times: int = OPEN_AFTER) -> None:
    inner.creation_error = inner.trial_error = EngineUnavailableError("runsc is gone: install it")
    for _ in range(times):
        with pytest.raises(EngineUnavailableError, match="runsc is gone"):
            await guarded.create(CLASS)


def is_open(registry: CollectorRegistry) -> float | None:
    return registry.get_sample_value("crucible_executor_engine_breaker_open", {"engine": "scripted"})


async def test_an_engine_that_keeps_failing_is_closed_and_requests_are_answered_at_once(guarded, inner, registry):
    await fail(guarded, inner)
    await until(lambda: guarded.failing != "")
    created = inner.created
    for _ in range(100):
        with pytest.raises(EngineUnavailableError, match="tried again by itself: runsc is gone: install it"):
            await guarded.create(CLASS)
    assert inner.created == created
    assert is_open(registry) == 1
    assert registry.get_sample_value("crucible_executor_engine_failures_total", {"engine": "scripted"}) == OPEN_AFTER


async def test_it_is_open_again_as_soon_as_a_trial_succeeds(guarded, inner, registry, pauses):
    await fail(guarded, inner)
    await until(lambda: inner.trials >= 3)
    inner.creation_error = inner.trial_error = None
    await until(lambda: guarded.failing == "")
    assert (await (await guarded.create(CLASS)).start(PROGRAM, None, None)).termination == Exited(0)
    assert is_open(registry) == 0


async def test_trials_come_at_growing_intervals(guarded, inner, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 3.0)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    real = asyncio.sleep
    monkeypatch.setattr("crucible_executor.engines.guarded.asyncio.sleep", sleep)
    await fail(guarded, inner)
    async with asyncio.timeout(5):
        while len(slept) < 6:
            await real(0)
    assert [round(pause, 1) for pause in slept[:5]] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_programs_that_fail_by_themselves_cannot_close_an_engine_to_others(guarded, inner):
    """What no sandbox can be made for, and what cannot be executed, looks like the engine's fault: its trial tells."""
    inner.creation_error = EngineUnavailableError("too little memory to boot in")
    for _ in range(4 * OPEN_AFTER):
        with pytest.raises(EngineUnavailableError):
            await guarded.create(CLASS)
        await asyncio.sleep(0)
    inner.creation_error, inner.outcome = None, SandboxFailed("no such command")
    for _ in range(4 * OPEN_AFTER):
        await (await guarded.create(CLASS)).start(PROGRAM, None, None)
    await until(lambda: guarded._trial is None)
    assert guarded.failing == ""
    assert 1 <= inner.trials <= 8


async def test_requests_go_on_while_it_is_tried(guarded, inner):
    inner.hang.clear()
    await fail(guarded, inner)
    await inner.tried.wait()
    inner.creation_error = None
    assert (await (await guarded.create(CLASS)).start(PROGRAM, None, None)).termination == Exited(0)


async def test_a_success_in_between_is_no_repeated_failure(guarded, inner):
    for _ in range(5):
        await fail(guarded, inner, OPEN_AFTER - 1)
        inner.creation_error = inner.trial_error = None
        await (await guarded.create(CLASS)).start(PROGRAM, None, None)
    assert inner.trials == 0


@pytest.mark.parametrize("outcome", [SandboxFailed("the sandbox died without a word."), RuntimeError("a bug")])
async def test_sandboxes_that_die_count_like_those_that_cannot_be_made(guarded, inner, outcome):
    inner.outcome, inner.trial_error = outcome, EngineUnavailableError("the kernel is too old")
    for _ in range(OPEN_AFTER):
        try:
            await (await guarded.create(CLASS)).start(PROGRAM, None, None)
        except RuntimeError:
            continue
    await until(lambda: "the kernel is too old" in guarded.failing)


async def test_a_program_that_was_refused_is_no_failure_of_the_engine(guarded, inner):
    inner.outcome = ProgramRefusedError("a bad name")
    for _ in range(2 * OPEN_AFTER):
        with pytest.raises(ProgramRefusedError):
            await (await guarded.create(CLASS)).start(PROGRAM, None, None)
    assert inner.trials == 0


async def test_a_trial_that_hangs_or_is_a_bug_has_failed(guarded, inner, pauses):
    inner.hang.clear()
    await fail(guarded, inner)
    await until(lambda: "did not end within 0.2 s" in guarded.failing)
    inner.hang.set()
    inner.trial_error = RuntimeError("a bug")
    await until(lambda: "RuntimeError" in guarded.failing)


async def test_closing_ends_the_trials(guarded, inner):
    await fail(guarded, inner)
    await until(lambda: guarded.failing != "")
    await guarded.close()
    assert guarded._trial is None


async def test_the_executor_refuses_and_says_so_while_the_breaker_is_open(keys, tmp_path, inner, registry):
    guarded = GuardedEngine(inner, EngineMetrics(registry))
    async with running(keys, tmp_path / "state", guarded) as executor:
        inner.creation_error = inner.trial_error = EngineUnavailableError("runsc is gone: install it")
        for _ in range(OPEN_AFTER):
            told = await executor.execute({})
            assert told.record.termination.sandbox_failed.reason == "runsc is gone: install it"
        await until(lambda: guarded.failing != "")
        with pytest.raises(FailedPreconditionError, match="runsc is gone") as caught:
            await executor.execute({})
        assert caught.value.reason == "ENGINE_NOT_AVAILABLE"
        (engine,) = (await executor.stub.GetExecutor(ex.GetExecutorRequest())).executor.engines
        assert (engine.available, engine.breaker_open) == (False, True)
        assert "runsc is gone: install it" in engine.unavailable_reason
