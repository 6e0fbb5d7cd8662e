"""What is repeated, when, and for how long."""

from datetime import timedelta

import pytest

from crucible_client.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from crucible_client.retry import Patience


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def away(hint: float | None = None) -> UnavailableError:
    return UnavailableError("R", "away", retry_after=None if hint is None else timedelta(seconds=hint))


def test_gives_up_when_failures_in_a_row_last_too_long():
    clock = Clock()
    patience = Patience(timedelta(seconds=10), clock=clock)
    assert patience.delay(away()) is not None
    clock.now += 9.9
    assert patience.delay(away(0.5)) is None
    patience.renew()
    assert patience.delay(away(0.5)) is not None


def test_delay_grows_and_is_at_least_the_hint():
    patience = Patience(timedelta(hours=1))
    delays = [patience.delay(away()) for _ in range(12)]
    assert delays[0] <= 0.1
    assert 2.5 <= delays[-1] <= 5
    assert 30 <= patience.delay(away(30)) <= 36


@pytest.mark.parametrize("kind", [NotFoundError, InvalidArgumentError, ResourceExhaustedError])
def test_what_will_not_pass_is_not_repeated(kind):
    assert Patience(timedelta(hours=1)).delay(kind("R", "m")) is None


def test_no_patience_means_one_try():
    assert Patience(timedelta(0)).delay(away()) is None


def test_deadline_of_a_call_that_waits_is_no_failure():
    clock = Clock()
    patience = Patience(timedelta(0), within=timedelta(seconds=400), clock=clock)
    late = DeadlineExceededError("R", "m")
    assert patience.timeout(300) == 300
    assert patience.delay(late, waits=True) == 0
    assert patience.delay(late) is None
    clock.now += 300
    assert patience.timeout(300) == 100
    clock.now += 100
    assert patience.delay(late, waits=True) is None
