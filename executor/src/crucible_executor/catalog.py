"""What this executor offers: its engines, each with why it cannot be used if so, and its runtimes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from crucible_executor.engines.base import Capabilities, Engine, EngineUnavailableError
from crucible_executor.model import Isolation
from crucible_executor.runtimes import Runtime
from crucible_rpc import logs
from crucible_rpc.errors import FailedPreconditionError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfferedEngine:
    """An engine and whether it can be used; `unavailable` is empty when it can, else says why not."""

    engine: Engine
    unavailable: str

    @property
    def capabilities(self) -> Capabilities:
        """What the engine promises."""
        return self.engine.capabilities


@dataclass(frozen=True)
class OfferedRuntime:
    """A runtime and the digest of the root file system it runs in; empty when that is not here."""

    runtime: Runtime
    image_digest: str


class ImageDigests(Protocol):
    """Finds root file systems."""

    def digest(self, image: str) -> str | None:
        """`sha256:` and hex of the image called `image`, None when it is not here."""
        ...


class Catalog:
    """Engines and runtimes by name.

    Args:
        engines: in the order they are listed.
        runtimes: those that this executor can start.
        default_engine: used by callers that name none; may be unavailable, and is never replaced then.
    """

    def __init__(
        self, engines: Iterable[OfferedEngine], runtimes: Iterable[OfferedRuntime], default_engine: str
    ) -> None:
        self.engines = {one.capabilities.name: one for one in engines}
        self.runtimes = {one.runtime.name: one for one in runtimes}
        self.default_engine = default_engine

    @property
    def not_serving(self) -> str:
        """Why this executor takes no work: its default engine cannot be used. Empty when it does."""
        offered = self.engines.get(self.default_engine)
        if offered is None:
            return f"there is no engine {self.default_engine!r}, which it is set to use by default"
        return offered.unavailable and f"the default engine {self.default_engine} cannot be used: {offered.unavailable}"

    def unavailable(self, name: str) -> str:
        """Why an engine cannot be used now: by itself, or because the executor takes no work. Empty when it can."""
        return self.engines[name].unavailable or self.not_serving

    def put(self, offered: OfferedEngine, runtimes: Callable[[Iterable[OfferedEngine]], list[OfferedRuntime]]) -> None:
        """Offers an engine in the place of what was known of it, and the runtimes that there are with it."""
        self.engines[offered.capabilities.name] = offered
        self.runtimes = {one.runtime.name: one for one in runtimes(self.engines.values())}

    def engine(self, name: str) -> Engine:
        """The engine called `name`.

        Raises:
            FailedPreconditionError: ENGINE_NOT_AVAILABLE.
        """
        offered = self.engines.get(name)
        if offered is None:
            raise FailedPreconditionError("ENGINE_NOT_AVAILABLE", f"this executor has no engine {name[:64]!r}")
        unavailable = self.unavailable(name)
        if unavailable:
            raise FailedPreconditionError(
                "ENGINE_NOT_AVAILABLE", f"the engine {name} cannot be used on this executor: {unavailable}"
            )
        return offered.engine

    def runtime(self, name: str, engine: Engine) -> tuple[Runtime, str]:
        """The runtime called `name`, and the image's digest: empty when the engine uses none.

        Raises:
            FailedPreconditionError: RUNTIME_NOT_AVAILABLE.
        """
        offered = self.runtimes.get(name)
        if offered is None:
            raise FailedPreconditionError("RUNTIME_NOT_AVAILABLE", f"this executor has no runtime {name[:64]!r}")
        if not uses_image(engine):
            return offered.runtime, ""
        if not offered.image_digest:
            raise FailedPreconditionError(
                "RUNTIME_NOT_AVAILABLE",
                f"the image {offered.runtime.image} of the runtime {name} is not on this executor",
            )
        return offered.runtime, offered.image_digest


def uses_image(engine: Engine) -> bool:
    """Whether programs see an image's root file system; without isolation they see the host's."""
    return engine.capabilities.isolation is not Isolation.NONE


async def check_engines(engines: Iterable[Engine]) -> list[OfferedEngine]:
    """Finds out of every engine whether it works here; one that does not is offered with the reason."""
    return [await checked(engine) for engine in engines]


async def checked(engine: Engine) -> OfferedEngine:
    """An engine after its self-test, which no engine is offered without."""
    name = engine.capabilities.name
    try:
        await engine.check()
    except EngineUnavailableError as error:
        _log.warning("engine cannot be used", extra=logs.fields(engine=name, reason=str(error)))
        return OfferedEngine(engine, unavailable=str(error) or "it did not say why")
    _log.info("engine can be used", extra=logs.fields(engine=name, version=engine.capabilities.version))
    return OfferedEngine(engine, unavailable="")


def offer_runtimes(
    runtimes: Iterable[Runtime], images: ImageDigests, engines: Iterable[OfferedEngine]
) -> list[OfferedRuntime]:
    """The runtimes whose image is here; all of them when an engine that needs no image can be used."""
    without_image = any(not one.unavailable and not uses_image(one.engine) for one in engines)
    offered = []
    for runtime in runtimes:
        digest = images.digest(runtime.image)
        if digest is not None or without_image:
            offered.append(OfferedRuntime(runtime, digest or ""))
        else:
            _log.warning("runtime has no image here", extra=logs.fields(runtime=runtime.name, image=runtime.image))
    return offered
