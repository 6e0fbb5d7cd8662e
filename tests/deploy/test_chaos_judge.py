"""The judge of the chaos can say that a promise was broken, for each promise."""

import hashlib
import random

import pytest

from crucible_client import results
from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.judge import Ended, Promise, Wrong, wrongs
from crucible_deploy.chaos.programs import case
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths

MOST = 3
FAILED = (results.FailedAttempt(1, "the executor was lost", None),)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher(Layout(Paths()))


def ended(number: int = 0, **changes) -> Ended:
    """A program that came to what it must, but for `changes`."""
    one = case(str(number), random.Random(number))
    out = results.OutputSummary(
        len(one.stdout), len(one.stdout), False, one.stdout, hashlib.sha256(one.stdout).digest()
    )
    values = dict.fromkeys(results.Evaluation.__dataclass_fields__) | {
        "name": f"evaluations/{number}",
        "state": results.State.SUCCEEDED if one.code == 0 else results.State.FAILED,
        "termination": results.Exited(one.code),
        "attempt": 1,
        "failed_attempts": (),
        "stdout": out,
    }
    return Ended(one, results.Evaluation(**values | changes))


def judged(ended: list[Ended], starts: dict[str, list[str]], watcher: Watcher) -> list[Wrong]:
    return list(wrongs(ended, starts, watcher, max_attempts=MOST))


def given_up(attempt: int) -> Ended:
    """A program that failed for the infrastructure, at this attempt."""
    return ended(
        state=results.State.FAILED,
        termination=results.InfrastructureFailure("lost"),
        attempt=attempt,
        failed_attempts=tuple(results.FailedAttempt(number, "lost", None) for number in range(1, attempt)),
    )


def test_what_went_well_is_no_wrong(watcher):
    retried = ended(1, attempt=2, failed_attempts=FAILED)
    assert judged([ended(), retried], {"0": ["s0"], "1": ["s1", "s2"]}, watcher) == []


def test_a_failure_of_the_infrastructure_at_the_last_attempt_is_an_end_too(watcher):
    assert judged([given_up(MOST)], {"0": ["s0"]}, watcher) == []


@pytest.mark.parametrize("attempt", [0, 1, MOST - 1, MOST + 1])
def test_giving_up_at_another_attempt_than_the_last_breaks_a_promise(watcher, attempt):
    told = judged([given_up(attempt)], {}, watcher)
    assert [(one.promise, f"given up at attempt {attempt} of {MOST}" in one.text) for one in told] == [
        (Promise.END, True)
    ]


@pytest.mark.parametrize(
    ("changes", "starts", "said"),
    [
        ({}, {"0": ["s0", "s1"]}, "started 2 times in 1 attempts"),
        ({}, {}, "has a result and was never started"),
        ({}, {"0": ["s0"], "9": ["s9"]}, "program 9 was started and is no accepted evaluation"),
        ({"attempt": 2}, {"0": ["s0"]}, "at attempt 2 and has recorded failures of []"),
        ({"attempt": 3, "failed_attempts": FAILED}, {"0": ["s0"]}, "at attempt 3 and has recorded failures of [1]"),
        ({"termination": results.Exited(99)}, {"0": ["s0"]}, "exited with 99 instead of"),
        ({"stdout": results.OutputSummary()}, {"0": ["s0"]}, "not what it prints"),
        ({"termination": results.Signalled(9)}, {"0": ["s0"]}, "ended as Signalled"),
    ],
)
def test_each_broken_promise_is_told(watcher, changes, starts, said):
    (told, *_) = judged([ended(**changes)], starts, watcher)
    assert said in told.text


def test_start_of_a_program_without_an_end_is_no_start_of_something_else(watcher):
    assert not list(wrongs([], {"9": ["s9"]}, watcher, max_attempts=MOST, endless=["9"]))


def test_two_attempts_that_lived_at_once_are_told(watcher):
    watcher.spans |= {"s0": (1.0, 3.0), "s1": (2.0, 4.0)}
    one = ended(attempt=2, failed_attempts=FAILED)
    assert any("alive at once" in told.text for told in judged([one], {"0": ["s0", "s1"]}, watcher))
    watcher.spans["s1"] = (3.5, 4.0)
    assert not judged([one], {"0": ["s0", "s1"]}, watcher)
