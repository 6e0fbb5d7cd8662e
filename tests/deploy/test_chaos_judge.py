"""The judge of the chaos can say that a promise was broken, for each promise."""

import hashlib
import random

import pytest

from crucible_client import results
from crucible_deploy.chaos.alive import Watcher
from crucible_deploy.chaos.judge import Ended, wrongs
from crucible_deploy.chaos.programs import case
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths

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


def test_what_went_well_is_no_wrong(watcher):
    retried = ended(1, attempt=2, failed_attempts=FAILED)
    assert list(wrongs([ended(), retried], {"0": ["s0"], "1": ["s1", "s2"]}, watcher)) == []


def test_a_failure_of_the_infrastructure_is_an_end_too(watcher):
    given_up = ended(
        state=results.State.FAILED,
        termination=results.InfrastructureFailure("lost"),
        attempt=2,
        failed_attempts=FAILED,
    )
    assert list(wrongs([given_up], {"0": ["s0"]}, watcher)) == []


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
    (told, *_) = wrongs([ended(**changes)], starts, watcher)
    assert said in told.text


def test_two_attempts_that_lived_at_once_are_told(watcher):
    watcher.spans |= {"s0": (1.0, 3.0), "s1": (2.0, 4.0)}
    one = ended(attempt=2, failed_attempts=FAILED)
    assert any("alive at once" in told.text for told in wrongs([one], {"0": ["s0", "s1"]}, watcher))
    watcher.spans["s1"] = (3.5, 4.0)
    assert not list(wrongs([one], {"0": ["s0", "s1"]}, watcher))
