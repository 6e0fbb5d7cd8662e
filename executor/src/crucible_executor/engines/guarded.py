"""A breaker around an engine: one that fails again and again is let be, and tried by itself until it works.

What fails may be the engine (runsc gone, dockerd hung) or what was asked of it (too little memory to boot in, a command
that does not exist). Only the engine's own self-test, its trial, can tell: after some failures in a row it runs, and
requests go on meanwhile, so that nobody's programs can close an engine to others. A failed trial opens the breaker.
From then on every request is answered at once with the reason, and the trial runs again after a pause that doubles up
to a minute; the first that succeeds closes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from crucible_executor.breaker import OPEN_AFTER, Breaker
from crucible_executor.engines.base import (
    Capabilities,
    Engine,
    EngineUnavailableError,
    ProgramRefusedError,
    Sandbox,
    Sink,
)
from crucible_executor.metrics import EngineMetrics
from crucible_executor.model import Limits, Outcome, Program, SandboxClass, SandboxFailed, StartKind
from crucible_executor.selftest.model import Check
from crucible_rpc import logs

TRIAL_LIMIT = timedelta(seconds=60)
"""A trial that takes longer has failed; booting alone may take half of this."""

_log = logging.getLogger(__name__)


class GuardedEngine(Engine):
    """Answers at once while the engine inside is known to fail.

    Args:
        inner: runs programs.
        metrics: counts.
        trial_limit: see `TRIAL_LIMIT`.
    """

    def __init__(self, inner: Engine, metrics: EngineMetrics, trial_limit: timedelta = TRIAL_LIMIT) -> None:
        self._inner = inner
        self._metrics = metrics
        self._trial_limit = trial_limit
        self._name = inner.capabilities.name
        self._failures = 0
        self._reason = ""
        self._trial: asyncio.Task[None] | None = None
        self._metrics.breaker_open.labels(self._name).set(0)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the engine inside."""
        return self._inner.capabilities

    @property
    def failing(self) -> str:
        """Why the breaker is open; empty while it is closed."""
        return self._reason

    async def check(self) -> None:
        """Checks the engine inside."""
        await self._inner.check()

    def self_test(self) -> Sequence[Check]:
        """That of the engine inside: it must also run while the breaker is open."""
        return self._inner.self_test()

    async def sweep(self) -> int:
        """Sweeps the engine inside."""
        return await self._inner.sweep()

    async def close(self) -> None:
        """Ends a trial, and closes the engine inside."""
        if self._trial is not None:
            self._trial.cancel()
            await asyncio.wait([self._trial])
        await self._inner.close()

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """A sandbox of the engine inside; while the breaker is open, its reason at once."""
        if self._reason:
            raise EngineUnavailableError(self._reason)
        try:
            return GuardedSandbox(await self._inner.create(sandbox_class), self._worked, self._failed)
        except EngineUnavailableError as error:
            self._failed(str(error))
            raise
        except Exception as error:
            self._failed(f"the engine failed with {type(error).__name__}; the log has it")
            raise

    def _worked(self) -> None:
        self._failures = 0

    def _failed(self, reason: str) -> None:
        self._metrics.failures.labels(self._name).inc()
        self._failures += 1
        if self._failures >= OPEN_AFTER and self._trial is None:
            _log.warning("engine failed repeatedly; trying it", extra=logs.fields(engine=self._name, reason=reason))
            self._trial = asyncio.get_running_loop().create_task(self._try_until_it_works())
            self._trial.add_done_callback(self._tried)

    def _tried(self, trial: asyncio.Task[None]) -> None:
        self._trial = None
        self._failures = 0
        if not trial.cancelled() and trial.exception() is not None:
            _log.critical("the breaker itself failed", exc_info=trial.exception())

    async def _try_until_it_works(self) -> None:
        breaker, loop = Breaker(), asyncio.get_running_loop()
        while reason := await self._trial_fails():
            breaker.failed(loop.time())
            self._open(reason)
            await asyncio.sleep(breaker.retry_at() - loop.time())
        if self._reason:
            _log.warning("engine works again", extra=logs.fields(engine=self._name))
        self._reason = ""
        self._metrics.breaker_open.labels(self._name).set(0)

    async def _trial_fails(self) -> str:
        """Runs the engine's trial; why it failed, empty when it did not."""
        try:
            async with asyncio.timeout(self._trial_limit.total_seconds()):
                await self._inner.check()
        except EngineUnavailableError as error:
            return str(error) or "it did not say why"
        except TimeoutError:
            return f"A trial program did not end within {self._trial_limit.total_seconds():g} s."
        except Exception as error:
            _log.exception("trial of an engine failed", extra=logs.fields(engine=self._name))
            return f"Its trial failed with {type(error).__name__}; the log has it."
        return ""

    def _open(self, reason: str) -> None:
        if not self._reason:
            _log.error("engine closed until a trial succeeds", extra=logs.fields(engine=self._name, reason=reason))
        self._reason = f"The engine {self._name} fails, and is tried again by itself: {reason}"
        self._metrics.breaker_open.labels(self._name).set(1)


class GuardedSandbox(Sandbox):
    """Tells the breaker how its run ended."""

    def __init__(self, inner: Sandbox, worked: Callable[[], None], failed: Callable[[str], None]) -> None:
        self._inner = inner
        self._worked = worked
        self._failed = failed

    @property
    def id(self) -> str:
        """That of the sandbox inside."""
        return self._inner.id

    @property
    def start_kind(self) -> StartKind:
        """That of the sandbox inside."""
        return self._inner.start_kind

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """See `Sandbox.start`."""
        try:
            outcome = await self._inner.start(program, limits, sink)
        except ProgramRefusedError:
            raise
        except Exception as error:
            self._failed(f"the engine failed with {type(error).__name__}; the log has it")
            raise
        if isinstance(outcome.termination, SandboxFailed):
            self._failed(outcome.termination.reason)
        else:
            self._worked()
        return outcome

    async def kill(self) -> None:
        """See `Sandbox.kill`."""
        await self._inner.kill()

    async def destroy(self) -> None:
        """See `Sandbox.destroy`."""
        await self._inner.destroy()
