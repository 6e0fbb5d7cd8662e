"""Engines and images of this machine, from the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry

from crucible_executor import cgroups
from crucible_executor.cgroups import CgroupsUnavailableError
from crucible_executor.engines.base import Capabilities, Engine, EngineUnavailableError, HoldableEngine, Sandbox
from crucible_executor.engines.guarded import GuardedEngine
from crucible_executor.engines.pooled import PooledEngine, PoolSettings
from crucible_executor.engines.registry import ENGINES, UNSAFE, Host
from crucible_executor.images import ImageNotFoundError, ImageStore
from crucible_executor.metrics import EngineMetrics, PoolMetrics
from crucible_executor.model import Isolation, SandboxClass
from crucible_executor.selftest.model import Check
from crucible_executor.settings import Settings
from crucible_executor.tracing.tracer import UNTRACED, Tracer, TracerPaths, Tracing, Untraced
from crucible_rpc import logs

_log = logging.getLogger(__name__)


class MissingEngine(Engine):
    """Stands for an engine that cannot even be constructed here, so that callers are told why."""

    def __init__(self, name: str, reason: str) -> None:
        self._name = name
        self._reason = reason

    @property
    def capabilities(self) -> Capabilities:
        """Its name; it promises nothing."""
        isolation = Isolation.NONE if self._name in UNSAFE else Isolation.USER_KERNEL
        return Capabilities(self._name, "", isolation, frozenset())

    async def check(self) -> None:
        """Raises the reason."""
        raise EngineUnavailableError(self._reason)

    def self_test(self) -> Sequence[Check]:
        """There is nothing to test."""
        return ()

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:  # noqa: ARG002  # the interface's
        """Raises the reason."""
        raise EngineUnavailableError(self._reason)

    async def sweep(self) -> int:
        """Nothing can have been left."""
        return 0


class StoredImages:
    """`ImageDigests` of an image store."""

    def __init__(self, folder: Path) -> None:
        self._store = ImageStore(folder)

    def digest(self, image: str) -> str | None:
        """See `ImageDigests`."""
        try:
            return self._store.resolve(image).digest
        except ImageNotFoundError as error:
            _log.info("image cannot be used", extra=logs.fields(image=image, reason=str(error)))
            return None


def tracer_of(settings: Settings) -> Tracing:
    """Watches what programs try, unless the settings, or a machine without cgroups, say otherwise."""
    if not settings.trace:
        return Untraced("the executor is set not to trace (CRUCIBLE_EXECUTOR_TRACE)")
    paths = TracerPaths(settings.init_dir / "crucible-launch", settings.trace_user)
    try:
        return Tracer(paths, cgroups.detect(f"{settings.cgroup}-trace"))
    except CgroupsUnavailableError as error:
        return Untraced(f"tracing is not available: {error}")


def engines_of(
    settings: Settings, *, unsafe: bool, tracer: Tracing = UNTRACED, registry: CollectorRegistry = REGISTRY
) -> list[Engine]:
    """Every engine of the registry behind a breaker, pooled where it can be; without isolation only when `unsafe`."""
    host = Host(
        runsc=settings.runsc,
        init_dir=settings.init_dir,
        images=settings.images_dir,
        run_dir=settings.run_dir,
        cgroup=settings.cgroup,
        docker_host=settings.docker_host,
        tracer=tracer,
    )
    pools, breakers = PoolMetrics(registry), EngineMetrics(registry)
    engines = [_made(name, make, host) for name, make in ENGINES.items() if unsafe or name not in UNSAFE]
    return [GuardedEngine(_pooled(engine, settings, pools), breakers) for engine in engines]


def _pooled(engine: Engine, settings: Settings, metrics: PoolMetrics) -> Engine:
    if not settings.pool_size or not isinstance(engine, HoldableEngine):
        return engine
    bounds = PoolSettings(settings.pool_size, settings.pool_memory_bytes, settings.pool_idle, settings.slot_count)
    return PooledEngine(engine, bounds, metrics)


def _made(name: str, make: Callable[[Host], Engine], host: Host) -> Engine:
    try:
        return make(host)
    except (EngineUnavailableError, CgroupsUnavailableError) as error:
        return MissingEngine(name, str(error))
