"""Programs sent through a whole stack, one by one and many at once, each timed as its caller sees it."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from crucible_client import AsyncClient, EvaluationSpec, File, Program, State
from crucible_client.results import Evaluation, StartKind
from crucible_deploy.bench.errors import BenchError

PROGRAM = "print('hello')\n"
"""What every side of a comparison runs."""


def python(code: str, *, engine: str = "", labels: Mapping[str, str] | None = None) -> EvaluationSpec:
    """An evaluation of one Python file."""
    return EvaluationSpec(Program("python", (File("main.py", code.encode()),)), engine=engine, labels=labels or {})


def trivial(engine: str = "") -> EvaluationSpec:
    """The evaluation that is compared with one bare run."""
    return python(PROGRAM, engine=engine)


@dataclass(frozen=True)
class Done:
    """One evaluation that succeeded.

    Attributes:
        ms: from the call to its answer.
        warm: whether its sandbox had been booted ahead.
        evaluation: the answer.
        ended: when the answer was there, on the monotonic clock, in seconds.
    """

    ms: float
    warm: bool
    evaluation: Evaluation
    ended: float


@dataclass(frozen=True)
class Many:
    """Evaluations that ran at once.

    Attributes:
        seconds: from the first's call, or the end of the lead, to the last's answer.
        done: in the order of their answers, without the lead.
        programs: how many that was: of one that was under way when the lead ended, the share of its time that came
            after that.
    """

    seconds: float
    done: tuple[Done, ...]
    programs: float

    @property
    def per_second(self) -> float:
        """The rate."""
        return self.programs / self.seconds

    @property
    def ms(self) -> list[float]:
        """Of each evaluation."""
        return [one.ms for one in self.done]

    @property
    def warm(self) -> int:
        """How many had a sandbox that was booted ahead."""
        return sum(one.warm for one in self.done)


async def one(client: AsyncClient, spec: EvaluationSpec | None = None) -> Done:
    """Runs one evaluation, of the trivial program when none is given.

    Raises:
        BenchError: it did not succeed.
        CallError: the call failed.
    """
    began = time.perf_counter()
    evaluation = await client.run(spec or trivial())
    ms = (time.perf_counter() - began) * 1000
    if evaluation.state is not State.SUCCEEDED or evaluation.provenance is None:
        raise BenchError(f"{evaluation.name} did not succeed: {evaluation.termination}")
    return Done(ms, evaluation.provenance.start_kind is StartKind.WARM, evaluation, time.monotonic())


async def many(
    client: AsyncClient,
    specs: Sequence[EvaluationSpec],
    concurrency: int,
    *,
    lead: int = 0,
    on_counting: Callable[[], None] | None = None,
) -> Many:
    """Runs all, at most `concurrency` at once.

    Args:
        client: calls the stack.
        specs: what to run.
        concurrency: at least 1.
        lead: how many of them are let run first and not counted: until what was booted ahead is used up.
        on_counting: called when the lead has ended.

    Raises:
        BenchError: one did not succeed.
        CallError: a call failed.
    """
    left: Iterator[EvaluationSpec] = iter(specs)
    done: list[Done] = []

    async def lane() -> None:
        for spec in left:
            done.append(await one(client, spec))
            if len(done) == lead and on_counting is not None:
                on_counting()

    began = time.monotonic()
    lanes = [asyncio.create_task(lane()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*lanes)
    finally:
        for task in lanes:
            task.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)
    if lead:
        began = done[lead - 1].ended
    counted = tuple(done[lead:])
    return Many(done[-1].ended - began, counted, sum(_share_after(began, one) for one in counted))


def _share_after(moment: float, one: Done) -> float:
    seconds = one.ms / 1000
    return min(1.0, (one.ended - moment) / seconds) if seconds else 1.0


def combined(parts: Sequence[Many]) -> Many:
    """Several measurements as one."""
    first = parts[0]
    done, programs = tuple(d for part in parts for d in part.done), sum(part.programs for part in parts)
    return replace(first, seconds=sum(p.seconds for p in parts), done=done, programs=programs)
