"""What is done to a running stack, each drawn by a seeded generator, each over when it returns."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.counted_runsc import CountedRunsc
from crucible_deploy.chaos.judge import Promise, Wrong
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import PROCESSES
from crucible_deploy.private_stack import PrivateStack
from crucible_deploy.stack import Leases

_KILL_SECONDS = 2.0
_SPARE_SECONDS = 4.0
_ALIVE_SECONDS = 120.0
_RESTART_SECONDS = 60.0


class ChaosError(Exception):
    """The stack did not come back after a fault, or could not be judged."""


def _no_storm(seconds: float) -> str:
    raise ChaosError(f"there is no storm that could run a program of {seconds:g} s")


@dataclass(frozen=True)
class Scene:
    """What faults happen to, and who sees it.

    Attributes:
        stack: the processes.
        watcher: sees what lives.
        runsc: knows which sandbox was given which program.
        leases: how long leases last, and runs without their worker.
        begin: begins a program that runs for so many seconds and is judged as all others are; returns its mark.
    """

    stack: PrivateStack
    watcher: Watcher
    runsc: CountedRunsc
    leases: Leases
    begin: Callable[[float], str] = _no_storm


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
    happen: Callable[[Scene, random.Random], Awaitable[list[Wrong]]]


def kill(process: str) -> Fault:
    """`kill -9`, and the wait until the supervisor has started it again."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        del chance
        killed = _identity(scene.stack, process)
        killed.signal(signal.SIGKILL)
        await _until_another(scene.stack, process, killed)
        return []

    return Fault(f"kill {process}", 4, happen)


def pause(process: str, least: float, most: float, weight: int) -> Fault:
    """SIGSTOP, and SIGCONT after some seconds."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        with _paused(scene.stack, process):
            await asyncio.sleep(chance.uniform(least, most))
        return []

    return Fault(f"pause {process} {least:.0f}-{most:.0f} s", weight, happen)


def kill_two() -> Fault:
    """Two processes at the same moment."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        names = chance.sample(PROCESSES, 2)
        killed = [(name, _identity(scene.stack, name)) for name in names]
        for _, identity in killed:
            identity.signal(signal.SIGKILL)
        for name, identity in killed:
            await _until_another(scene.stack, name, identity)
        return []

    return Fault("kill two at once", 2, happen)


def fence_off() -> Fault:
    """The worker is paused for longer than its lease: when it wakes up, others may have its work."""

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        with _paused(scene.stack, "worker"):
            await asyncio.sleep(scene.leases.lease.total_seconds() + chance.uniform(1, 4))
        return []

    return Fault("pause worker beyond its lease", 1, happen)


def cut_off() -> Fault:
    """The executor hears nothing of its worker for longer than the grace: what ran must be dead when it has passed.

    It meets a program that would still run by itself at that moment, as nothing else tells that the executor ended it.
    """

    async def happen(scene: Scene, chance: random.Random) -> list[Wrong]:
        silence = scene.leases.orphan_grace.total_seconds() + _KILL_SECONDS
        mark = scene.begin(silence + _SPARE_SECONDS)
        met = await _alive(scene, mark)
        if met is None:
            return [_not_judged(f"program {mark} was not seen alive within {_ALIVE_SECONDS:.0f} s")]
        with _paused(scene.stack, "worker"):
            ran = scene.watcher.living()
            await asyncio.sleep(silence)
            left, looked = ran & scene.watcher.living(), time.monotonic()
            await asyncio.sleep(chance.uniform(0.5, 4))
        wrong = [Wrong(Promise.GRACE, f"sandbox {one} outlived its worker") for one in sorted(left)]
        if met not in ran:
            wrong.append(_not_judged(f"sandbox {met} was gone before its worker was paused"))
        elif looked >= scene.watcher.spans[met][0] + silence + _SPARE_SECONDS:
            wrong.append(_not_judged(f"the look came so late that sandbox {met} may have ended by itself"))
        return wrong

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
        fence_off(),
        cut_off(),
    ]


def in_order(faults: Sequence[Fault], chance: random.Random) -> Iterator[Fault]:
    """Each once, in an order of chance, so that none is missed; then, for ever, by weight."""
    yield from chance.sample(faults, len(faults))
    weights = [one.weight for one in faults]
    while True:
        yield from chance.choices(faults, weights)


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


async def _alive(scene: Scene, mark: str) -> str | None:
    """The sandbox that runs the program with this mark, as soon as the watcher has seen it; None when it never does."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_ALIVE_SECONDS):
            while True:
                for sandbox in scene.watcher.living():
                    if sandbox in scene.watcher.spans and scene.runsc.mark(sandbox) == mark:
                        return sandbox
                await asyncio.sleep(0.05)
    return None


def _not_judged(why: str) -> Wrong:
    return Wrong(Promise.GRACE, f"this could not be judged, which is no proof: {why}")


async def _until_another(stack: PrivateStack, process: str, killed: ProcessIdentity) -> None:
    """Waits until the supervisor runs another one in its place."""
    try:
        async with asyncio.timeout(_RESTART_SECONDS):
            while _look_up(stack, process) in (None, killed):  # noqa: ASYNC110  # the supervisor has no such event
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise ChaosError(f"{process} was not started again within {_RESTART_SECONDS:.0f} s") from None
