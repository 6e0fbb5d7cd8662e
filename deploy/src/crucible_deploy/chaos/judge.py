"""What must hold after the faults: told as sentences, one for each thing that does not."""

import enum
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crucible_client.results import Evaluation, Exited, InfrastructureFailure, State
from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.programs import Case


class Promise(enum.StrEnum):
    """What is promised, as the table of verdicts words it."""

    END = "each accepted evaluation has one terminal state, and the output of its program"
    START = "at most one start for each attempt, and of nothing else"
    FAILURE = "each further attempt has its recorded infrastructure failure"
    ALONE = "two attempts of an evaluation are never alive at once"
    GRACE = "what runs without its worker is dead when the grace has passed"
    GONE = "nothing is left on the host"
    REBUILT = "the event log rebuilds every state (crucible storage check)"
    AUDIT = "the audit log verifies"


class Wrong(NamedTuple):
    """Something that contradicts a promise, or that kept it from being judged."""

    promise: Promise
    text: str


@dataclass(frozen=True)
class Ended:
    """A program and the record of its evaluation."""

    case: Case
    evaluation: Evaluation


def wrongs(
    ended: Sequence[Ended],
    starts: Mapping[str, Sequence[str]],
    watcher: Watcher,
    *,
    max_attempts: int,
    endless: Iterable[str] = (),
) -> Iterator[Wrong]:
    """Everything that contradicts the promises.

    Args:
        ended: every evaluation that came to an end.
        starts: sandboxes by mark, as the counting runsc wrote them down.
        watcher: what lived when.
        max_attempts: after how many the stack gives up: neither earlier nor later.
        endless: marks of those that came to no end, which is told already.
    """
    for one in ended:
        yield from (Wrong(Promise.END, text) for text in _wrong_end(one, max_attempts))
        yield from _wrong_starts(one, starts.get(one.case.mark, ()), watcher)
    for mark in starts.keys() - {one.case.mark for one in ended} - set(endless):
        yield Wrong(Promise.START, f"program {mark} was started and is no accepted evaluation")


def _wrong_end(one: Ended, max_attempts: int) -> Iterator[str]:
    done = one.evaluation
    name = f"program {one.case.mark} ({done.name})"
    match done.termination:
        case Exited(code=code):
            if code != one.case.code:
                yield f"{name} exited with {code} instead of {one.case.code}"
            if done.state is not (State.SUCCEEDED if code == 0 else State.FAILED):
                yield f"{name} exited with {code} and is {done.state.value}"
            if done.stdout.sha256 != hashlib.sha256(one.case.stdout).digest():
                yield f"{name} has {done.stdout.bytes_total} bytes of output that are not what it prints"
        case InfrastructureFailure():
            if done.state is not State.FAILED:
                yield f"{name} failed for the infrastructure and is {done.state.value}"
            if done.attempt != max_attempts:
                yield f"{name} was given up at attempt {done.attempt} of {max_attempts}"
        case other:
            yield f"{name} ended as {other!r}, state {done.state.value}"


def _wrong_starts(one: Ended, sandboxes: Sequence[str], watcher: Watcher) -> Iterator[Wrong]:
    done = one.evaluation
    name = f"program {one.case.mark} ({done.name})"
    if len(sandboxes) > done.attempt:
        yield Wrong(Promise.START, f"{name} was started {len(sandboxes)} times in {done.attempt} attempts")
    if not sandboxes and isinstance(done.termination, Exited):
        yield Wrong(Promise.START, f"{name} has a result and was never started")
    numbers = [failed.attempt for failed in done.failed_attempts]
    if numbers != list(range(1, done.attempt)) or not all(failed.reason for failed in done.failed_attempts):
        yield Wrong(Promise.FAILURE, f"{name} is at attempt {done.attempt} and has recorded failures of {numbers}")
    if watcher.overlap(sandboxes):
        yield Wrong(Promise.ALONE, f"{name} had two attempts alive at once: {', '.join(sandboxes)}")
