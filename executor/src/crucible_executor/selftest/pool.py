"""The pool's self-test: whether a sandbox can wait without using the CPU and then runs its program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from crucible_executor.engines.base import HoldableEngine
from crucible_executor.selftest import engine as engine_test
from crucible_executor.selftest import host
from crucible_executor.selftest.model import Check, expect

_FREEZE_SECONDS = 0.1
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Health:
    """A pool as it is now: sandboxes that wait, their bound, their memory, its bound, classes that keep failing."""

    waiting: int
    size: int
    memory_bytes: int
    most_memory_bytes: int
    broken: int


def checks(inner: HoldableEngine, health: Callable[[], Health]) -> tuple[Check, ...]:
    """The checks of a pool.

    Args:
        inner: the engine inside; the sandbox that waits for this is never in the pool.
        health: how the pool is.
    """

    async def is_within_bounds() -> str:
        now = health()
        expect(
            not now.broken, f"{now.broken} class(es) of sandbox fail again and again while booted ahead; see the log"
        )
        expect(now.waiting <= now.size, f"{now.waiting} wait, {now.size} may")
        expect(
            now.waiting < 2 or now.memory_bytes <= now.most_memory_bytes,
            f"they hold {now.memory_bytes} bytes, {now.most_memory_bytes} are allowed",
        )
        return f"{now.waiting} of at most {now.size} wait and hold {now.memory_bytes >> 20} MiB"

    async def waits_and_runs() -> str:
        with engine_test.refusals_fail():
            sandbox = await inner.create(engine_test.sandbox_class())
        try:
            with engine_test.refusals_fail():
                await sandbox.hold(None)
            await asyncio.sleep(_FREEZE_SECONDS)  # the kernel stops them one after the other
            pids = await asyncio.to_thread(host.processes_of, sandbox.id)
            expect(bool(pids), "the host shows no process of the waiting sandbox")
            before = host.cpu_seconds_of(pids)
            await asyncio.sleep(_WATCH_SECONDS)
            used = host.cpu_seconds_of(pids) - before
            expect(used == 0, f"{len(pids)} waiting processes used {used:.2f} s of CPU time in {_WATCH_SECONDS:g} s")
            with engine_test.refusals_fail():
                sandbox.take(engine_test.sandbox_class())
            await engine_test.echo(sandbox)
        finally:
            await asyncio.shield(sandbox.destroy())
        return f"{len(pids)} processes waited {_WATCH_SECONDS:g} s on 0 s of CPU time, then printed the program's token"

    component = f"pool {inner.capabilities.name}"
    return (
        Check(component, "it is within its bounds", is_within_bounds),
        Check(component, "a sandbox waits without CPU time, then runs", waits_and_runs),
    )
