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
from crucible_deploy.chaos.faults import ChaosError, Fault, Scene, in_order
from crucible_deploy.chaos.judge import Ended, Promise, Wrong, wrongs
from crucible_deploy.chaos.programs import Case, case
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from crucible_deploy.postgresql_server import PostgreSqlServer
from crucible_deploy.private_stack import private_stack
from crucible_deploy.stack import Leases, Options

SLOTS = 4
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
        starts: sandboxes that the counting runsc wrote down.
        looks: how often it was looked what lives.
        wrong: what contradicts the promises; empty when all is well.
        database: what storage used.
    """

    seed: int
    database: str = "SQLite"
    seconds: float = 0.0
    accepted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    given_up: int = 0
    starts: int = 0
    looks: int = 0
    wrong: list[Wrong] = field(default_factory=list)


async def chaos(
    common: Layout,
    say: Callable[[str], None],
    *,
    seed: int,
    count: int,
    faults: list[Fault],
    calm: tuple[float, float] = (1.0, 6.0),
    lanes: int = 8,
    long_seconds: float = 25.0,
    leases: Leases | None = None,
    server: PostgreSqlServer | None = None,
) -> Chaos:
    """Runs programs while faults happen: at least `count`, and until each fault has happened.

    Args:
        common: the user's own layout; its cache is used, nothing of it is changed.
        say: told of every fault and of the progress.
        seed: of the programs and the faults.
        count: programs, of at most 1.2 s each; beside them a long one runs at any time.
        faults: each happens once, in an order of chance, then again by weight.
        calm: least and most seconds between two faults.
        lanes: programs that are under way at once, beside the long one.
        long_seconds: of the long programs.
        leases: how long they last; None: as by default.
        server: has the database, in place of a file.

    Raises:
        ChaosError: the stack did not come back.
        PrepareError and its like: it cannot be started here.
    """
    found = Chaos(seed, "SQLite" if server is None else "PostgreSQL")
    runsc = CountedRunsc.make(common.paths.cache)
    try:
        counted = Layout(Paths(common.paths.home, runsc.cache, common.paths.run), common.port_offset)
        # With a pool a sandbox would live before its run, and its start would be no start of a program.
        options = Options(slots=SLOTS, pool=0, leases=leases)
        async with private_stack(counted, options, say, server=server) as stack:
            with Watcher(stack.layout) as watcher:
                scene = Scene(stack, watcher, leases or Leases())
                ended = await _Storm(scene, found, faults, count, calm, lanes, long_seconds, say).run()
                left = await asyncio.to_thread(host.wait_for_none, stack.layout, _GONE_SECONDS)
            found.wrong += [Wrong(Promise.GONE, f"left on the host: {left}")] if left else []
            async with stack.client() as client:
                found.wrong += await proofs.failed(stack.layout, client)
            found.wrong += wrongs(ended, runsc.by_mark(), watcher)
            found.starts, found.looks = len(runsc.sandboxes()), watcher.looks
    finally:
        runsc.remove()
    found.accepted = len(ended)
    found.retried = sum(bool(one.evaluation.failed_attempts) for one in ended)
    found.given_up = sum(isinstance(one.evaluation.termination, InfrastructureFailure) for one in ended)
    return found


@dataclass
class _Storm:
    """Programs and faults, both at once; the arguments are those of `chaos`."""

    scene: Scene
    found: Chaos
    faults: list[Fault]
    count: int
    calm: tuple[float, float]
    lanes: int
    long_seconds: float
    say: Callable[[str], None]
    ended: list[Ended] = field(default_factory=list)

    async def run(self) -> list[Ended]:
        """All programs with their records, in the order of their ends."""
        began = time.monotonic()
        cases = self._short_ones()
        async with self.scene.stack.client(retry_for=_PATIENCE) as client:
            lanes = [asyncio.create_task(self._lane(client, cases)) for _ in range(self.lanes)]
            stop = asyncio.Event()
            long = asyncio.create_task(self._long_ones(client, stop))
            harm = asyncio.create_task(self._harm())
            all_lanes = asyncio.gather(*lanes)
            tasks: list[asyncio.Future[Any]] = [*lanes, all_lanes, long, harm, asyncio.create_task(self._progress())]
            try:
                await _first_error(all_lanes, harm)
                stop.set()
                harm.cancel()  # between two faults or within one, whose process comes back all the same
                await asyncio.wait([harm])
                async with asyncio.timeout(_STUCK_SECONDS):
                    await long
            except TimeoutError:
                text = f"an evaluation was not terminal {_STUCK_SECONDS:.0f} s after the last fault"
                raise ChaosError(text) from None
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        self.found.seconds = time.monotonic() - began
        return self.ended

    def _short_ones(self) -> Iterator[Case]:
        chance = random.Random(self.found.seed)  # noqa: S311  # repeatable, not secret
        for number in itertools.count():
            if number >= self.count and all(one.name in self.found.faults for one in self.faults):
                return
            yield case(str(number), chance)

    async def _lane(self, client: AsyncClient, cases: Iterator[Case]) -> None:
        for one in cases:
            await self._one(client, one)

    async def _one(self, client: AsyncClient, one: Case) -> None:
        async with asyncio.timeout(_STUCK_SECONDS):
            submitted = await client.submit(one.spec, request_id=f"chaos-{one.mark}")
            while True:
                done = await client.wait(submitted.name)
                if done.termination is not None:
                    self.ended.append(Ended(one, done))
                    return

    async def _long_ones(self, client: AsyncClient, stop: asyncio.Event) -> None:
        """One long program after the other, so that every fault meets one."""
        steady = random.Random(0)  # noqa: S311
        for number in itertools.count():
            if stop.is_set():
                return
            await self._one(client, case(f"long{number}", steady, seconds=self.long_seconds))

    async def _harm(self) -> None:
        chance = random.Random(self.found.seed + 1)  # noqa: S311
        for fault in in_order(self.faults, chance):
            await asyncio.sleep(chance.uniform(*self.calm))
            self.say(fault.name)
            self.found.wrong += await fault.happen(self.scene, chance)
            self.found.faults[fault.name] += 1

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(15)
            self.say(f"{len(self.ended)} ended, {self.count} asked for, {self.found.faults.total()} faults")


async def _first_error(lanes: "asyncio.Future[list[None]]", harm: "asyncio.Task[None]") -> None:
    """Waits for the lanes; raises what ended the faults, which otherwise never end."""
    either: list[asyncio.Future[Any]] = [lanes, harm]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if harm.done() and not lanes.done():
        lanes.cancel()
        harm.result()
    await lanes
