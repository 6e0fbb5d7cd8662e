"""Runs many evaluations with bounded concurrency: what suites are made of."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from crucible_client import errors, results
from crucible_client.calls import new_request_id
from crucible_client.specs import EvaluationSpec

DEFAULT_RETRY_FOR = timedelta(minutes=10)
ABANDON_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one spec: exactly one of `evaluation` and `error` is set.

    Attributes:
        index: its place among the specs, from 0.
        spec: what was asked.
        evaluation: terminal.
        error: why there is none.
    """

    index: int
    spec: EvaluationSpec
    evaluation: results.Evaluation | None
    error: errors.CallError | None


class _Runner(Protocol):
    async def run(
        self,
        spec: EvaluationSpec,
        *,
        request_id: str | None = None,
        within: timedelta | None = None,
        retry_for: timedelta | None = None,
    ) -> results.Evaluation: ...

    async def submit(self, spec: EvaluationSpec, *, request_id: str | None = None) -> results.Evaluation: ...

    async def cancel(self, name: str, *, reason: str = "") -> results.Evaluation: ...


async def run_many(
    client: _Runner,
    specs: Iterable[EvaluationSpec],
    *,
    concurrency: int,
    retry_for: timedelta = DEFAULT_RETRY_FOR,
) -> AsyncGenerator[Outcome, None]:
    """Runs all `specs`, at most `concurrency` at once; yields each outcome as it comes, in no order.

    Each spec has its own request id, so that repeating a call that failed in passing starts nothing twice. A spec that
    is refused or whose server stays away is an outcome with an error, and the others go on. Ending the iteration early
    (`aclose`, cancellation) asks the server to cancel what is under way.

    Args:
        client: calls the server.
        specs: taken one by one, never more than `concurrency` ahead.
        concurrency: at least 1.
        retry_for: how long one spec may find the server away or its queue full, in a row.
    """
    if concurrency < 1:
        raise ValueError("concurrency must be at least 1")
    numbered = enumerate(specs)
    under_way: dict[asyncio.Task[Outcome], tuple[str, EvaluationSpec]] = {}
    try:
        _start(client, numbered, under_way, concurrency, retry_for)
        while under_way:
            done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            outcomes = [task.result() for task in done]
            for task in done:
                del under_way[task]
            _start(client, numbered, under_way, concurrency, retry_for)
            for outcome in outcomes:
                yield outcome
    finally:
        await _abandon(client, under_way)


def _start(
    client: _Runner,
    numbered: Iterator[tuple[int, EvaluationSpec]],
    under_way: dict[asyncio.Task[Outcome], tuple[str, EvaluationSpec]],
    concurrency: int,
    retry_for: timedelta,
) -> None:
    while len(under_way) < concurrency:
        following = next(numbered, None)
        if following is None:
            return
        index, spec = following
        request_id = new_request_id()
        task = asyncio.create_task(_outcome(client, index, spec, request_id, retry_for))
        under_way[task] = (request_id, spec)


async def _outcome(client: _Runner, index: int, spec: EvaluationSpec, request_id: str, retry_for: timedelta) -> Outcome:
    try:
        evaluation = await client.run(spec, request_id=request_id, retry_for=retry_for)
    except errors.CallError as error:
        return Outcome(index, spec, None, error)
    return Outcome(index, spec, evaluation, None)


async def _abandon(client: _Runner, under_way: dict[asyncio.Task[Outcome], tuple[str, EvaluationSpec]]) -> None:
    """Cancels what is under way, here and, as far as it can be reached in a few seconds, at the server."""
    left = [pair for task, pair in under_way.items() if not task.done()]
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    if not left:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(ABANDON_SECONDS):
            await asyncio.gather(*(_cancel(client, *pair) for pair in left))


async def _cancel(client: _Runner, request_id: str, spec: EvaluationSpec) -> None:
    # A call that waits never told its evaluation's name; creating it again by the same id does.
    with suppress(errors.CallError):
        evaluation = await client.submit(spec, request_id=request_id)
        if not evaluation.state.terminal:
            await client.cancel(evaluation.name, reason="the caller ended the suite")
