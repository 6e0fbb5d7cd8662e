"""What is done to a running stack, each drawn by a seeded generator, each over when it returns."""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import PROCESSES
from crucible_deploy.private_stack import PrivateStack

LEASE_SECONDS = 10.0
ORPHAN_GRACE_SECONDS = 15.0
"""Both as storage's defaults are."""

_KILL_SECONDS = 2.0
_RESTART_SECONDS = 60.0


class ChaosError(Exception):
    """The stack did not come back after a fault, or could not be judged."""


@dataclass(frozen=True)
class Scene:
    """What faults happen to, and who sees it."""

    stack: PrivateStack
    watcher: Watcher


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        name: for the report.
        weight: how often it is drawn, against the others.
        happen: does it; returns when the process is there again, with what was seen meanwhile that must not be.
    """

    name: str
    weight: int
    happen: Callable[[Scene, random.Random], Awaitable[list[str]]]


def kill(process: str) -> Fault:
    """`kill -9`, and the wait until the supervisor has started it again."""

    async def happen(scene: Scene, chance: random.Random) -> list[str]:
        del chance
        killed = _identity(scene.stack, process)
        killed.signal(signal.SIGKILL)
        await _until_another(scene.stack, process, killed)
        return []

    return Fault(f"kill {process}", 4, happen)


def pause(process: str, least: float, most: float, weight: int) -> Fault:
    """SIGSTOP, and SIGCONT after some seconds."""

    async def happen(scene: Scene, chance: random.Random) -> list[str]:
        with _paused(scene.stack, process):
            await asyncio.sleep(chance.uniform(least, most))
        return []

    return Fault(f"pause {process} {least:.0f}-{most:.0f} s", weight, happen)


def kill_two() -> Fault:
    """Two processes at the same moment."""

    async def happen(scene: Scene, chance: random.Random) -> list[str]:
        names = chance.sample(PROCESSES, 2)
        killed = [(name, _identity(scene.stack, name)) for name in names]
        for _, identity in killed:
            identity.signal(signal.SIGKILL)
        for name, identity in killed:
            await _until_another(scene.stack, name, identity)
        return []

    return Fault("kill two at once", 2, happen)


def cut_off() -> Fault:
    """The executor hears nothing of its worker for longer than the grace: what ran must be dead when it has passed."""

    async def happen(scene: Scene, chance: random.Random) -> list[str]:
        with _paused(scene.stack, "worker"):
            ran = scene.watcher.living()
            await asyncio.sleep(ORPHAN_GRACE_SECONDS + _KILL_SECONDS)
            left = ran & scene.watcher.living()
            await asyncio.sleep(chance.uniform(1, 5))
        return [f"sandbox {one} outlived the grace without a worker" for one in sorted(left)]

    return Fault("cut the executor off", 1, happen)


def all_faults() -> list[Fault]:
    """Every fault that `make chaos` draws from."""
    return [
        *(kill(process) for process in PROCESSES),
        kill_two(),
        pause("storage", 1, 4, 2),
        pause("monitor", 1, 4, 1),
        pause("executor", 1, 4, 2),
        pause("worker", 1, 4, 1),
        # Longer than its lease: others may take its work when it wakes up, so it is fenced off.
        pause("worker", LEASE_SECONDS + 1, LEASE_SECONDS + 4, 1),
        cut_off(),
    ]


@contextmanager
def _paused(stack: PrivateStack, process: str) -> Iterator[None]:
    paused = _identity(stack, process)
    paused.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        paused.signal(signal.SIGCONT)


def _look_up(stack: PrivateStack, process: str) -> ProcessIdentity | None:
    """The process as it runs now; None while there is none."""
    try:
        return ProcessIdentity.of(stack.pid(process))
    except LookupError:
        return None


def _identity(stack: PrivateStack, process: str) -> ProcessIdentity:
    found = _look_up(stack, process)
    if found is None:
        raise ChaosError(f"{process} is not there to be harmed: it ended by itself")
    return found


async def _until_another(stack: PrivateStack, process: str, killed: ProcessIdentity) -> None:
    """Waits until the supervisor runs another one in its place."""
    try:
        async with asyncio.timeout(_RESTART_SECONDS):
            while _look_up(stack, process) in (None, killed):  # noqa: ASYNC110  # the supervisor has no such event
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise ChaosError(f"{process} was not started again within {_RESTART_SECONDS:.0f} s") from None
