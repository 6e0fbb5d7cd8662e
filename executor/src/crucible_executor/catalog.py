"""What this executor offers: its engines, each with why it cannot be used if so, and its runtimes."""

from __future__ import annotations

import logging
import os
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
    """An engine, and why it could not be used when it was last checked; `refused` is empty when it could."""

    engine: Engine
    refused: str

    @property
    def unavailable(self) -> str:
        """Why it cannot be used now; empty when it can."""
        return self.refused or self.engine.failing

    @property
    def capabilities(self) -> Capabilities:
        """What the engine promises."""
        return self.engine.capabilities


@dataclass(frozen=True)
class OfferedRuntime:
    """A runtime, the digest of the root file system it runs in, and whether it can be used.

    Attributes:
        runtime: its declaration.
        image_digest: empty when that image is not here.
        unavailable: why no engine here can start it, and how to mend that; empty when one can.
    """

    runtime: Runtime
    image_digest: str
    unavailable: str = ""


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
        """Why this executor takes no work: its default engine did not pass its self-test. Empty when it does.

        One that fails later, behind its breaker, is refused by itself, and the others go on.
        """
        offered = self.engines.get(self.default_engine)
        if offered is None:
            return f"there is no engine {self.default_engine!r}, which it is set to use by default"
        return offered.refused and f"the default engine {self.default_engine} cannot be used: {offered.refused}"

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
            raise engine_refused(name, unavailable)
        return offered.engine

    def runtime(self, name: str, engine: Engine) -> tuple[Runtime, str]:
        """The runtime called `name`, and the image's digest: empty when the engine uses none.

        Raises:
            FailedPreconditionError: RUNTIME_NOT_AVAILABLE.
        """
        offered = self.runtimes.get(name)
        if offered is None:
            raise FailedPreconditionError("RUNTIME_NOT_AVAILABLE", f"this executor has no runtime {name[:64]!r}")
        if uses_image(engine):
            missing = "" if offered.image_digest else _no_image(offered.runtime)
        else:
            missing = not_on_host(offered.runtime)
        if missing:
            raise FailedPreconditionError(
                "RUNTIME_NOT_AVAILABLE", f"the runtime {name} cannot be used on this executor: {missing}"
            )
        return offered.runtime, offered.image_digest if uses_image(engine) else ""


def engine_refused(name: str, why: str) -> FailedPreconditionError:
    """ENGINE_NOT_AVAILABLE: the refusal of what asks for an engine that this executor has and cannot use now."""
    text = f"the engine {name} cannot be used on this executor: {why}"
    return FailedPreconditionError("ENGINE_NOT_AVAILABLE", text)


def uses_image(engine: Engine) -> bool:
    """Whether programs see an image's root file system; without isolation they see the host's."""
    return engine.capabilities.isolation is not Isolation.NONE


async def check_engines(engines: Iterable[Engine]) -> list[OfferedEngine]:
    """Finds out of every engine whether it works here; one that does not is offered with the reason."""
    return [await checked(engine) for engine in engines]


async def checked(engine: Engine, known: str = "") -> OfferedEngine:
    """An engine after its self-test, which no engine is offered without. A reason that is `known` is not logged."""
    name = engine.capabilities.name
    try:
        await engine.check()
    except EngineUnavailableError as error:
        refused = str(error) or "it did not say why"
        if refused != known:
            _log.warning("engine cannot be used", extra=logs.fields(engine=name, reason=refused))
        return OfferedEngine(engine, refused=refused)
    _log.info("engine can be used", extra=logs.fields(engine=name, version=engine.capabilities.version))
    return OfferedEngine(engine, refused="")


def offer_runtimes(
    runtimes: Iterable[Runtime], images: ImageDigests, engines: Iterable[OfferedEngine]
) -> list[OfferedRuntime]:
    """All runtimes, each with why it cannot be used, if so: its image is not here, and no engine does without one."""
    without_image = any(not one.unavailable and not uses_image(one.engine) for one in engines)
    offered = []
    for runtime in runtimes:
        digest = images.digest(runtime.image) or ""
        usable = digest or (without_image and not not_on_host(runtime))
        if not usable:
            _log.info("runtime has no image here", extra=logs.fields(runtime=runtime.name, image=runtime.image))
        offered.append(OfferedRuntime(runtime, digest, "" if usable else _no_image(runtime)))
    return offered


def not_on_host(runtime: Runtime) -> str:
    """Why an engine whose programs see the host cannot start it; empty when it can."""
    if runtime.needs_image:
        return f"it is what its image {runtime.image} holds, and programs of this engine see the host instead"
    return "" if os.access(runtime.command[0], os.X_OK) else f"this machine has no {runtime.command[0]}"


def _no_image(runtime: Runtime) -> str:
    image = runtime.image
    return (
        f"its image {image} is not here; run `crucible images build {image}` on the executor's machine "
        "and start the executor again"
    )
