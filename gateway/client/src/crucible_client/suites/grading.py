"""Runs samples of HumanEval and grades each as it ends."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from crucible_client import errors, results
from crucible_client.async_client import AsyncClient
from crucible_client.many import Outcome
from crucible_client.specs import EvaluationSpec, Limits
from crucible_client.suites import humaneval
from crucible_client.suites.humaneval import Sample

_END_BYTES = 128
_MAX_DETAIL = 500


@dataclass(frozen=True, slots=True)
class Grade:
    """What became of one sample.

    Attributes:
        index: the sample's place in its file.
        task_id: its problem.
        digest: names what was graded, see `humaneval.digest`.
        passed: None when the infrastructure failed: then nothing is known about the sample, and it is to be run again.
        ended: `EXITED 0`, `LIMIT_EXCEEDED WALL_TIME`, …; `ERROR` when the call failed.
        detail: the evidence or the error, in words.
        evaluation: its name; empty when there is none.
        seconds: from its creation to its end, by storage's clock; None when there is no end.
    """

    index: int
    task_id: str
    digest: str
    passed: bool | None
    ended: str
    detail: str
    evaluation: str
    seconds: float | None


async def graded(
    client: AsyncClient,
    samples: Sequence[Sample],
    *,
    concurrency: int,
    limits: Limits,
    engine: str = "",
) -> AsyncGenerator[Grade, None]:
    """Runs `samples`, at most `concurrency` at once, and yields each grade as it comes, in no order."""
    marks: list[str] = []

    def specs() -> Iterator[EvaluationSpec]:
        for sample in samples:
            marks.append(humaneval.new_mark())
            yield humaneval.spec(sample, marks[-1], limits, engine)

    async with aclosing(client.run_many(specs(), concurrency=concurrency)) as outcomes:
        async for outcome in outcomes:
            sample = samples[outcome.index]
            named = humaneval.digest(sample, limits, engine)
            yield await _grade(client, sample, named, marks[outcome.index], outcome)


async def _grade(client: AsyncClient, sample: Sample, digest: str, mark: str, outcome: Outcome) -> Grade:
    evaluation = outcome.evaluation
    if evaluation is None:
        return _failed(sample, digest, outcome.error)
    try:
        end = await _stdout_end(client, evaluation)
    except errors.CallError as error:
        return _failed(sample, digest, error, evaluation.name)
    kind, words = ending(evaluation.termination)
    decided = not isinstance(evaluation.termination, results.InfrastructureFailure | results.Cancelled)
    return Grade(
        index=sample.index,
        task_id=sample.task_id,
        digest=digest,
        passed=humaneval.passed(evaluation, end, mark) if decided else None,
        ended=kind,
        detail=words[:_MAX_DETAIL],
        evaluation=evaluation.name,
        seconds=_seconds(evaluation),
    )


def _failed(sample: Sample, digest: str, error: errors.CallError | None, name: str = "") -> Grade:
    return Grade(sample.index, sample.task_id, digest, None, "ERROR", str(error)[:_MAX_DETAIL], name, None)


async def _stdout_end(client: AsyncClient, evaluation: results.Evaluation) -> bytes:
    """The last bytes of the standard output; costs a call only when the preview does not hold them."""
    stdout = evaluation.stdout
    if stdout.bytes_kept <= len(stdout.preview):
        return stdout.preview[-_END_BYTES:]
    offset = max(0, stdout.bytes_kept - _END_BYTES)
    return await client.output(evaluation.name, offset=offset, max_bytes=_END_BYTES)


def _seconds(evaluation: results.Evaluation) -> float | None:
    if evaluation.create_time is None or evaluation.end_time is None:
        return None
    return (evaluation.end_time - evaluation.create_time).total_seconds()


def ending(termination: Any) -> tuple[str, str]:
    """How an evaluation ended, in a word or two, and what shows it."""
    evidence = termination.evidence.detail if termination is not None and termination.evidence else ""
    match termination:
        case results.Exited(code):
            return f"EXITED {code}", evidence
        case results.Signalled(signal):
            return f"SIGNALLED {signal}", evidence
        case results.LimitExceeded(limit):
            return f"LIMIT_EXCEEDED {limit}", evidence
        case results.Cancelled():
            return "CANCELLED", termination.reason or evidence
        case results.InfrastructureFailure(reason):
            return "INFRASTRUCTURE_FAILURE", reason
    return "UNKNOWN", evidence
