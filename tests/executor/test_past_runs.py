"""What an executor remembers of runs that are not there, and for how long"""

import pytest

from crucible_executor import past_runs
from crucible_executor.past_runs import PastRuns
from crucible_rpc.errors import FailedPreconditionError, ResourceExhaustedError

KEPT = 75.0


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def past(clock):
    return PastRuns(clock, KEPT)


def test_a_run_that_ended_does_not_start_again_while_a_ticket_could_ask_for_it(past, clock):
    assert past.may_start("r", 1)
    past.end("r")
    clock.now += KEPT - 0.1
    past.end("other")
    assert not past.may_start("r", 1)
    clock.now += 0.2
    past.end("another")
    assert past.may_start("r", 1)
    assert not past.may_start("other", 9)


def test_a_refused_run_never_starts_until_that_is_acknowledged_and_its_tickets_have_ended(past, clock):
    assert past.refuse("r")
    assert not past.refuse("r")
    clock.now += 1000 * KEPT
    past.end("other")
    assert past.is_refused("r")
    assert list(past.refused) == ["r"]
    assert not past.may_start("r", 99)
    assert past.acknowledge_refused("r")
    assert not past.acknowledge_refused("r")
    assert (past.is_refused("r"), list(past.refused), past.may_start("r", 99), past.refuse("r")) == (
        False, [], False, False,
    )  # fmt: skip
    clock.now += KEPT
    past.end("another")
    assert past.may_start("r", 99)


def test_what_an_earlier_start_refused_is_refused(past):
    past.take_over(["a", "b"])
    assert not past.may_start("a", 1)
    assert past.is_refused("b")


def test_a_withdrawn_run_comes_again_under_another_lease_only(past, clock):
    refusal = FailedPreconditionError("ENGINE_NOT_AVAILABLE", "broken")
    past.withdraw("r", 3, refusal)
    assert past.refusal("r") is refusal
    assert [past.may_start("r", epoch) for epoch in (2, 3, 4)] == [False, False, True]
    past.started("r")
    assert past.refusal("r") is None
    assert past.may_start("r", 3)
    past.withdraw("r", 4, refusal)
    clock.now += KEPT
    past.end("other")
    assert past.refusal("r") is None


def test_what_is_remembered_is_bounded(past, clock, monkeypatch):
    monkeypatch.setattr(past_runs, "MAX_REFUSED", 3)
    for run_id in ("a", "b", "c"):
        assert past.refuse(run_id)
    past.acknowledge_refused("a")
    with pytest.raises(ResourceExhaustedError):
        past.refuse("d")
    assert past.may_start("d", 1)
    clock.now += KEPT
    assert past.refuse("d")
