"""Programs and faults, both at once, in bounded time."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from crucible_client import AsyncClient, CallError
from crucible_deploy.chaos.faults import Fault, Scene, in_order
from crucible_deploy.chaos.judge import Ended, Promise, Wrong
from crucible_deploy.chaos.programs import Case, case
from crucible_deploy.chaos.result import Chaos

_PATIENCE = timedelta(minutes=10)
_STUCK_SECONDS = 300.0
_TOLD_SECONDS = 15.0


@dataclass
class Storm:
    """Programs in several lanes and a long one beside them, while fault comes after fault.

    It is over when all of that has been, or as soon as a program comes to no end, or a call of it fails: then nothing
    begins any more, and what is under way comes to its end.

    Attributes:
        scene: what the faults happen to.
        found: how many programs are asked for; what happens is noted in it.
        faults: see `harness.chaos`, as the next five.
    """

    scene: Scene
    found: Chaos
    faults: list[Fault]
    calm: tuple[float, float]
    lanes: int
    long_seconds: float
    within: timedelta
    say: Callable[[str], None]
    _ended: list[Ended] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _met: list["asyncio.Task[None]"] = field(default_factory=list)

    async def run(self) -> list[Ended]:
        """All programs with their records, in the order of their ends.

        Raises:
            ChaosError: the stack did not come back.
        """
        cases = self._short_ones()
        async with self.scene.stack.client(retry_for=_PATIENCE) as client:
            lanes = [asyncio.create_task(self._lane(client, cases)) for _ in range(self.lanes)]
            long, harm = asyncio.create_task(self._long_ones(client)), asyncio.create_task(self._harm(client))
            telling = asyncio.create_task(self._progress())
            tasks = [*lanes, long, harm, telling]
            try:
                await _all_ended(lanes, beside=[long, harm])
                self._over.set()
                await _all_ended([long, harm])
                await _all_ended(self._met)
            finally:
                for task in [*tasks, *self._met]:
                    task.cancel()
                await asyncio.gather(*tasks, *self._met, return_exceptions=True)
        self.found.seconds = self._passed()
        return self._ended

    def _passed(self) -> float:
        return time.monotonic() - self._began

    def _short_ones(self) -> Iterator[Case]:
        chance = random.Random(self.found.seed)  # noqa: S311  # repeatable, not secret
        for number in itertools.count():
            if self._over.is_set():
                return
            if number >= self.found.asked and all(self.found.faults[one.name] for one in self.faults):
                return
            if self._passed() > self.within.total_seconds():
                self.found.time_over = True
                return
            yield case(str(number), chance)

    async def _lane(self, client: AsyncClient, cases: Iterator[Case]) -> None:
        for one in cases:
            await self._one(client, one)

    async def _one(self, client: AsyncClient, one: Case) -> None:
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                submitted = await client.submit(one.spec, request_id=f"chaos-{one.mark}")
                self.found.accepted += 1
                while True:
                    done = await client.wait(submitted.name)
                    if done.termination is not None:
                        self._ended.append(Ended(one, done))
                        return
        except TimeoutError:
            self._without_end(one, f"was not at its end {_STUCK_SECONDS:.0f} s after it was submitted")
        except CallError as error:  # the client bears it when a server is away: this is an answer
            self._without_end(one, f"was given up, for a call of it failed: {error}")

    def _without_end(self, one: Case, what: str) -> None:
        text = f"program {one.mark} {what}"
        self.say(text)
        self.found.wrong.append(Wrong(Promise.END, text))
        self.found.endless.append(one.mark)
        self._over.set()

    async def _long_ones(self, client: AsyncClient) -> None:
        """One long program after the other, so that every fault meets one."""
        steady = random.Random(0)  # noqa: S311
        for number in itertools.count():
            if self._over.is_set():
                return
            await self._one(client, case(f"long{number}", steady, seconds=self.long_seconds))

    def _meet(self, client: AsyncClient, seconds: float) -> str:
        """Begins a program that a fault is to meet; returns its mark."""
        mark = f"met{len(self._met)}"
        one = case(mark, random.Random(0), seconds=seconds)  # noqa: S311
        self._met.append(asyncio.create_task(self._one(client, one)))
        return mark

    async def _harm(self, client: AsyncClient) -> None:
        """Fault after fault, each to its end: a server that is stopped is started again."""
        chance = random.Random(self.found.seed + 1)  # noqa: S311
        scene = replace(self.scene, begin=partial(self._meet, client))
        for fault in in_order(self.faults, chance):
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(*self.calm)):
                    await self._over.wait()
                return
            self.say(fault.name)
            self.found.wrong += await fault.happen(scene, chance)
            self.found.faults[fault.name] += 1

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(_TOLD_SECONDS)
            passed, rate = self._passed(), len(self._ended) / self._passed()
            self.say(
                f"{len(self._ended)} of {self.found.asked} ended in {passed:.0f} s, {rate:.1f} per s, "
                f"{self.found.faults.total()} faults"
            )


async def _all_ended(awaited: Sequence["asyncio.Task[None]"], *, beside: Sequence["asyncio.Task[None]"] = ()) -> None:
    """Waits for the tasks; raises what ended one of them, or one that goes on beside them."""
    left, others = set(awaited), set(beside)
    while left:
        done, _ = await asyncio.wait(left | others, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        left -= done
        others -= done
