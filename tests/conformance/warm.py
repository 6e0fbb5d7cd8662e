"""A pooled engine that never misses: what the suite holds to the promises of the engine inside."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry

from crucible_executor.engines.base import Engine, HoldableEngine, Sandbox
from crucible_executor.engines.pooled import PooledEngine, PoolSettings
from crucible_executor.engines.registry import ENGINES, Host
from crucible_executor.metrics import PoolMetrics
from crucible_executor.model import SandboxClass, StartKind
from tests.conformance.promises import GUISES

SETTINGS = PoolSettings(size=2, memory_bytes=1 << 30, idle=timedelta(minutes=1), slots=1)


class AlwaysWarm(PooledEngine):
    """Boots each sandbox ahead, lets it wait, and gives it out; boots nothing in the background."""

    def __init__(self, inner: HoldableEngine) -> None:
        super().__init__(inner, SETTINGS, PoolMetrics(CollectorRegistry()))
        self._closed = True

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        await self.prepare(sandbox_class)
        sandbox = await super().create(sandbox_class)
        assert sandbox.start_kind is StartKind.WARM
        return sandbox


def make(name: str, host: Host) -> Engine:
    """The engine that the suite calls `name`."""
    engine = ENGINES[GUISES.get(name, name)](host)
    if name not in GUISES:
        return engine
    assert isinstance(engine, HoldableEngine)
    return AlwaysWarm(engine)
