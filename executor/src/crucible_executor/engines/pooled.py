"""Sandboxes booted ahead, each for one program: a wrapper around an engine whose sandboxes can wait.

A waiting sandbox is frozen, so it costs memory and no CPU time. It is used once and destroyed, as any other; another
takes its place in the background, but only while that takes no CPU time from programs: booting costs about 0.2 s of it,
and under a sustained load that bounds the throughput. A class that nobody asked for lately is not kept. What the pool
cannot give, the engine makes as without a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible_executor.breaker import Breaker
from crucible_executor.demand import Demand
from crucible_executor.engines.base import (
    Capabilities,
    Engine,
    EngineUnavailableError,
    HoldableEngine,
    HoldableSandbox,
    Sandbox,
    Sink,
)
from crucible_executor.metrics import PoolMetrics
from crucible_executor.model import Interpreter, Limits, Outcome, Program, SandboxClass, StartKind
from crucible_executor.selftest import pool as pool_test
from crucible_executor.selftest.model import Check
from crucible_rpc import logs

_QUIET_S = 0.1
_IDLE_CPUS = 0.75
_REMEMBERED = 64
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_log = logging.getLogger(__name__)

Kind = tuple[Hashable, Interpreter | None]


@dataclass(frozen=True)
class PoolSettings:
    """Bounds of a pool.

    Attributes:
        size: how many sandboxes wait at most; at least 1.
        memory_bytes: what they may hold together, as their cgroups count.
        idle: a class that nobody asked for during this time is not kept.
        slots: how many programs run at once; while all slots are taken, nothing is booted ahead.
    """

    size: int
    memory_bytes: int
    idle: timedelta
    slots: int


@dataclass(eq=False)
class _Waiting:
    kind: Kind
    sandbox: HoldableSandbox
    memory_bytes: int


def idle_cpu_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Seconds that this machine's CPUs were idle since it started, summed."""
    fields = stat.read_text().partition("\n")[0].split()
    return (int(fields[4]) + int(fields[5])) / _TICKS_PER_SECOND


class PooledEngine(Engine):
    """Gives out sandboxes that were booted ahead, where it has one of the class.

    Args:
        inner: makes them.
        settings: see `PoolSettings`.
        metrics: counts.
        idle_cpu_s: see `idle_cpu_seconds`.
    """

    def __init__(
        self,
        inner: HoldableEngine,
        settings: PoolSettings,
        metrics: PoolMetrics,
        idle_cpu_s: Callable[[], float] = idle_cpu_seconds,
    ) -> None:
        self._inner = inner
        self._settings = settings
        self._metrics = metrics
        self._name = inner.capabilities.name
        self._idle_cpu_s = idle_cpu_s
        self._waiting: list[_Waiting] = []
        self._classes: dict[Kind, SandboxClass] = {}
        self._breakers: dict[Kind, Breaker] = {}
        self._demand: Demand[Kind] = Demand(settings.size, settings.idle.total_seconds())
        self._seen: deque[Kind] = deque(maxlen=_REMEMBERED)
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()
        self._closed = False
        self._running = self._asked = 0

    @property
    def capabilities(self) -> Capabilities:
        """Those of the engine inside."""
        return self._inner.capabilities

    async def check(self) -> None:
        """Checks the engine inside."""
        await self._inner.check()

    def self_test(self) -> Sequence[Check]:
        """That of the engine inside, so that no waiting sandbox is taken for it, and that of the pool."""
        return (*self._inner.self_test(), *pool_test.checks(self._inner, self._health))

    def _health(self) -> pool_test.Health:
        now = asyncio.get_running_loop().time()
        broken = sum(one.is_open(now) for one in self._breakers.values())
        held = sum(one.memory_bytes for one in self._waiting)
        return pool_test.Health(len(self._waiting), self._settings.size, held, self._settings.memory_bytes, broken)

    async def sweep(self) -> int:
        """Sweeps the engine inside; what waits here is spared."""
        return await self._inner.sweep()

    @property
    def waiting(self) -> int:
        """How many sandboxes wait now."""
        return len(self._waiting)

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """A waiting sandbox of the class, or a new one; `start_kind` says which."""
        fixed = self._inner.fixed_at_boot(sandbox_class)
        self._note(fixed, sandbox_class)
        self._running += 1
        try:
            sandbox = self._take(fixed, sandbox_class)
            if sandbox is not None:
                self._metrics.hits.labels(self._name).inc()
                return PooledSandbox(sandbox, StartKind.WARM, self._gone)
            self._metrics.misses.labels(self._name).inc()
            return PooledSandbox(await self._inner.create(sandbox_class), StartKind.COLD, self._gone)
        except BaseException:
            self._gone()
            raise

    async def prepare(self, sandbox_class: SandboxClass) -> None:
        """Boots one sandbox of this class ahead, at once, whatever else happens.

        Raises:
            EngineUnavailableError: see `Engine.create`.
        """
        await self._boot((self._inner.fixed_at_boot(sandbox_class), sandbox_class.interpreter), sandbox_class)

    async def close(self) -> None:
        """Destroys what waits, and boots nothing more."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        while self._waiting:
            self._remove(self._waiting[-1])
        while self._removals:
            await asyncio.wait(self._removals)
        await self._inner.close()

    # --- taking ---

    def _note(self, fixed: Hashable, sandbox_class: SandboxClass) -> None:
        """Remembers what was asked for. An interpreter is started ahead for what came at least twice."""
        now = asyncio.get_running_loop().time()
        kind: Kind = (fixed, sandbox_class.interpreter)
        repeated = kind in self._seen
        self._seen.append(kind)
        if not repeated:
            kind = (fixed, None)
            sandbox_class = dataclasses.replace(sandbox_class, interpreter=None)
        self._classes[kind] = sandbox_class
        self._demand.asked(kind, now)
        self._asked += 1
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._changed.set()

    def _take(self, fixed: Hashable, sandbox_class: SandboxClass) -> HoldableSandbox | None:
        for kind in dict.fromkeys(((fixed, sandbox_class.interpreter), (fixed, None))):
            for entry in [one for one in self._waiting if one.kind == kind]:
                self._forget(entry)
                try:
                    entry.sandbox.take(sandbox_class)
                except EngineUnavailableError as error:
                    _log.warning("waiting sandbox not used", extra=logs.fields(reason=str(error)))
                    self._destroy_soon(entry.sandbox)
                else:
                    return entry.sandbox
        return None

    def _gone(self) -> None:
        self._running -= 1
        self._changed.set()

    # --- keeping ---

    async def _keep(self) -> None:
        """Boots what lacks while nobody needs the CPU, and removes what nobody asks for, until cancelled."""
        while True:
            self._changed.clear()
            now = asyncio.get_running_loop().time()
            targets = self._demand.targets(now)
            for entry in [one for one in self._waiting if one.kind not in targets]:
                self._remove(entry)
            for known in (self._classes, self._breakers):
                for kind in [one for one in known if one not in targets]:
                    del known[kind]
            lacking = self._lacking(targets, now)
            self._metrics.breaker_open.labels(self._name).set(any(one.is_open(now) for one in self._breakers.values()))
            if lacking is None:
                await self._until_changed(now)
            elif await self._quiet() and self._make_room(targets):
                with contextlib.suppress(EngineUnavailableError):  # counted and logged
                    await self._boot(lacking, self._classes[lacking])

    def _lacking(self, targets: dict[Kind, int], now: float) -> Kind | None:
        for kind, target in targets.items():
            waiting = sum(one.kind == kind for one in self._waiting)
            breaker = self._breakers.get(kind)
            if waiting < target and (breaker is None or breaker.retry_at() <= now):
                return kind if self._has_room() or self._excess(targets) is not None else None
        return None

    def _has_room(self) -> bool:
        return len(self._waiting) < self._settings.size and self._memory_left()

    def _memory_left(self) -> bool:
        held = [one.memory_bytes for one in self._waiting]
        return not held or sum(held) + max(held) <= self._settings.memory_bytes

    async def _until_changed(self, now: float) -> None:
        moments = [one.retry_at() for one in self._breakers.values() if one.retry_at() > now]
        idle = self._demand.next_change()
        if idle is not None:
            moments.append(idle)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(moments) - now) if moments else None):
                await self._changed.wait()

    async def _quiet(self) -> bool:
        """Whether, for a moment, no program was run here, or a CPU was idle beside those that run."""
        asked, idle_before, began = self._asked, self._idle_cpu_s(), asyncio.get_running_loop().time()
        was_running = self._running
        await asyncio.sleep(_QUIET_S)
        if not was_running and not self._running and asked == self._asked:
            return True
        idle = (self._idle_cpu_s() - idle_before) / (asyncio.get_running_loop().time() - began)
        return self._running < self._settings.slots and idle >= _IDLE_CPUS

    def _make_room(self, targets: dict[Kind, int]) -> bool:
        """Removes sandboxes of which there are too many while the pool is full."""
        while not self._has_room():
            excess = self._excess(targets)
            if excess is None:
                return False
            self._remove(excess)
        return True

    def _excess(self, targets: dict[Kind, int]) -> _Waiting | None:
        """The oldest sandbox of a kind of which there are more than there should be."""
        held = Counter(one.kind for one in self._waiting)
        return next((one for one in self._waiting if held[one.kind] > targets.get(one.kind, 0)), None)

    async def _boot(self, kind: Kind, sandbox_class: SandboxClass) -> None:
        try:
            sandbox = await self._inner.create(sandbox_class)
            try:
                await sandbox.hold(sandbox_class.interpreter)
            except BaseException:
                await asyncio.shield(sandbox.destroy())
                raise
        except EngineUnavailableError as error:
            self._failed(kind, str(error))
            raise
        except Exception as error:
            _log.exception("engine failed to boot ahead")
            self._failed(kind, f"the engine failed with {type(error).__name__}; the log has it")
            raise EngineUnavailableError("The engine failed; the log has it.") from error
        entry = _Waiting(kind, sandbox, sandbox.memory_bytes())
        self._waiting.append(entry)
        self._show()
        sandbox.ended.add_done_callback(lambda _: self._ended(entry))

    def _ended(self, entry: _Waiting) -> None:
        if entry in self._waiting:  # otherwise it was taken, or removed by us
            self._failed(entry.kind, "its processes ended while it waited")
            self._remove(entry)

    def _failed(self, kind: Kind, reason: str) -> None:
        self._metrics.failures.labels(self._name).inc()
        now = asyncio.get_running_loop().time()
        opened = self._breakers.setdefault(kind, Breaker()).failed(now)
        note = "sandboxes cannot be kept waiting; trying again more rarely" if opened else "waiting sandbox failed"
        _log.log(logging.ERROR if opened else logging.WARNING, note, extra=logs.fields(reason=reason))
        self._changed.set()

    def _forget(self, entry: _Waiting) -> None:
        self._waiting.remove(entry)
        self._show()

    def _remove(self, entry: _Waiting) -> None:
        self._forget(entry)
        self._destroy_soon(entry.sandbox)

    def _show(self) -> None:
        self._metrics.size.labels(self._name).set(len(self._waiting))
        self._metrics.memory_bytes.labels(self._name).set(sum(one.memory_bytes for one in self._waiting))

    def _destroy_soon(self, sandbox: HoldableSandbox) -> None:
        task = asyncio.get_running_loop().create_task(_destroy(sandbox))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)


async def _destroy(sandbox: HoldableSandbox) -> None:
    try:
        await sandbox.destroy()
    except Exception:
        # The next start of the executor sweeps it away.
        _log.exception("waiting sandbox could not be removed", extra=logs.fields(sandbox=sandbox.id))


class PooledSandbox(Sandbox):
    """A sandbox that a pool gave out: says where it came from, and tells the pool when it is gone."""

    def __init__(self, inner: Sandbox, kind: StartKind, on_gone: Callable[[], None]) -> None:
        self._inner = inner
        self._kind = kind
        self._on_gone: Callable[[], None] | None = on_gone

    @property
    def id(self) -> str:
        """That of the sandbox inside."""
        return self._inner.id

    @property
    def start_kind(self) -> StartKind:
        """WARM when it had been waiting."""
        return self._kind

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """See `Sandbox.start`."""
        return await self._inner.start(program, limits, sink)

    async def kill(self) -> None:
        """See `Sandbox.kill`."""
        await self._inner.kill()

    async def destroy(self) -> None:
        """See `Sandbox.destroy`."""
        try:
            await self._inner.destroy()
        finally:
            told, self._on_gone = self._on_gone, None
            if told is not None:
                told()
