"""Programs in several lanes, faults one after the other, and the judgement when all is over."""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from crucible_client import AsyncClient
from crucible_client.results import InfrastructureFailure
from crucible_deploy import host
from crucible_deploy.chaos import proofs
from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.counted_runsc import CountedRunsc
from crucible_deploy.chaos.faults import ChaosError, Fault, Scene
from crucible_deploy.chaos.judge import Ended, wrongs
from crucible_deploy.chaos.programs import Case, case
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from crucible_deploy.private_stack import private_stack
from crucible_deploy.stack import Options

SLOTS = 4
_LANES = 8
_LONG_SECONDS = 25.0
_PATIENCE = timedelta(minutes=10)
_STUCK_SECONDS = 300.0
_GONE_SECONDS = 20.0


@dataclass
class Chaos:
    """The result.

    Attributes:
        seed: repeats the programs, the faults and their moments, though not what the machine made of them.
        seconds: from the first program to the last.
        accepted: evaluations that the stack took.
        faults: how often each happened.
        retried: evaluations with more than one attempt.
        given_up: evaluations that failed for the infrastructure at their last attempt.
        wrong: what contradicts the promises; empty when all is well.
    """

    seed: int
    seconds: float = 0.0
    accepted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    given_up: int = 0
    wrong: list[str] = field(default_factory=list)


async def chaos(
    common: Layout,
    say: Callable[[str], None],
    *,
    seed: int,
    count: int,
    faults: list[Fault],
    calm: tuple[float, float] = (1.0, 6.0),
) -> Chaos:
    """Runs `count` programs while faults happen.

    Args:
        common: the user's own layout; its cache is used, nothing of it is changed.
        say: told of every fault and of the progress.
        seed: of the programs and the faults.
        count: programs, of at most 1.2 s each; beside them one of 25 s runs at any time.
        faults: to be drawn from.
        calm: least and most seconds between two faults.

    Raises:
        ChaosError: the stack did not come back.
        PrepareError and its like: it cannot be started here.
    """
    chance = random.Random(seed)  # noqa: S311  # repeatable, not secret
    found = Chaos(seed)
    runsc = CountedRunsc.make(common.paths.cache)
    try:
        counted = Layout(Paths(common.paths.home, runsc.cache, common.paths.run), common.port_offset)
        # With a pool a sandbox would live before its run, and its start would be no start of a program.
        async with private_stack(counted, Options(slots=SLOTS, pool=0), say) as stack:
            with Watcher(stack.layout) as watcher:
                ended = await _storm(Scene(stack, watcher), found, chance, count, faults, calm, say)
                left = await asyncio.to_thread(host.wait_for_none, stack.layout, _GONE_SECONDS)
            found.wrong += [f"left on the host: {left}"] if left else []
            async with stack.client() as client:
                found.wrong += await proofs.failed(stack.layout, client)
            found.wrong += wrongs(ended, runsc.by_mark(), watcher)
    finally:
        runsc.remove()
    found.accepted = len(ended)
    found.retried = sum(bool(one.evaluation.failed_attempts) for one in ended)
    found.given_up = sum(isinstance(one.evaluation.termination, InfrastructureFailure) for one in ended)
    return found


async def _storm(
    scene: Scene,
    found: Chaos,
    chance: random.Random,
    count: int,
    faults: list[Fault],
    calm: tuple[float, float],
    say: Callable[[str], None],
) -> list[Ended]:
    """All programs with their records, in the order of their ends."""
    began = time.monotonic()
    ended: list[Ended] = []
    short = (case(str(number), chance) for number in range(count))
    async with scene.stack.client(retry_for=_PATIENCE) as client:
        lanes = [asyncio.create_task(_lane(client, short, ended)) for _ in range(_LANES)]
        stop = asyncio.Event()
        long = asyncio.create_task(_long_ones(client, stop, ended))
        harm = asyncio.create_task(_harm(scene, found, random.Random(found.seed + 1), faults, calm, say))  # noqa: S311
        shown = asyncio.create_task(_progress(ended, count, say))
        tasks = [*lanes, long, harm, shown]
        try:
            await _first_error(asyncio.gather(*lanes), harm)
            stop.set()
            harm.cancel()  # between two faults or within one, whose process comes back all the same
            await asyncio.wait([harm])
            async with asyncio.timeout(_STUCK_SECONDS):
                await long
        except TimeoutError:
            raise ChaosError(f"an evaluation was not terminal {_STUCK_SECONDS:.0f} s after the last fault") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    found.seconds = time.monotonic() - began
    return ended


async def _first_error(lanes: "asyncio.Future[list[None]]", harm: "asyncio.Task[None]") -> None:
    """Waits for the lanes; raises what ended the faults, which otherwise never end."""
    either: list[asyncio.Future[Any]] = [lanes, harm]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if harm.done() and not lanes.done():
        lanes.cancel()
        harm.result()
    await lanes


async def _lane(client: AsyncClient, cases: Iterator[Case], ended: list[Ended]) -> None:
    for one in cases:
        await _one(client, one, ended)


async def _one(client: AsyncClient, one: Case, ended: list[Ended]) -> None:
    async with asyncio.timeout(_STUCK_SECONDS):
        submitted = await client.submit(one.spec, request_id=f"chaos-{one.mark}")
        while True:
            done = await client.wait(submitted.name)
            if done.termination is not None:
                ended.append(Ended(one, done))
                return


async def _long_ones(client: AsyncClient, stop: asyncio.Event, ended: list[Ended]) -> None:
    """One long program after the other, so that every fault meets one."""
    steady = random.Random(0)  # noqa: S311
    for number in itertools.count():
        if stop.is_set():
            return
        await _one(client, case(f"long{number}", steady, seconds=_LONG_SECONDS), ended)


async def _harm(
    scene: Scene,
    found: Chaos,
    chance: random.Random,
    faults: list[Fault],
    calm: tuple[float, float],
    say: Callable[[str], None],
) -> None:
    while True:
        await asyncio.sleep(chance.uniform(*calm))
        (fault,) = chance.choices(faults, [one.weight for one in faults])
        say(fault.name)
        found.faults[fault.name] += 1
        found.wrong += await fault.happen(scene, chance)


async def _progress(ended: list[Ended], count: int, say: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(15)
        say(f"{len(ended)} ended, {count} asked for")
