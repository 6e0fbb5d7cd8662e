"""The arithmetic of leases and permits, with a clock that the test moves."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.errors import UnavailableError
from crucible_worker.renewals import Terms, permit_after, renew

TERMS = Terms(lease=timedelta(seconds=10), orphan_grace=timedelta(seconds=15))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class SlowStorage:
    """Answers a renewal after `takes` seconds of the test's clock."""

    def __init__(self, clock, takes, lost=()):
        self.clock, self.takes, self.lost = clock, takes, lost
        self.asked = []

    async def renew(self, executor_id, leases):
        self.asked.append(len(leases))
        self.clock.now += self.takes
        return work.RenewLeasesResponse(lost=self.lost, stops=["s"])


class Permits:
    def __init__(self):
        self.given = {}

    async def extend(self, run_ids, permit):
        self.given.update(dict.fromkeys(run_ids, permit))


def refs(*names):
    return [work.LeaseRef(run_id=name, epoch=1) for name in names]


async def renewed(takes, lost=(), names=("a", "b")):
    clock, permits = Clock(), Permits()
    storage = SlowStorage(clock, takes, lost)
    answer = await renew(storage, permits, "x", refs(*names), TERMS, clock)
    return answer, permits.given, storage


async def test_permit_counts_from_when_the_renewal_was_sent():
    _, given_permits, _ = await renewed(takes=4)
    assert given_permits == {"a": timedelta(seconds=11), "b": timedelta(seconds=11)}


async def test_lost_lease_gets_no_permit():
    answer, given_permits, _ = await renewed(takes=0, lost=("b",))
    assert set(given_permits) == {"a"}
    assert (answer.lost, answer.stops) == (("b",), ("s",))


async def test_answer_that_comes_too_late_gives_no_permit():
    _, given_permits, _ = await renewed(takes=16)
    assert given_permits == {}


async def test_failed_renewal_gives_no_permit():
    class Away:
        async def renew(self, executor_id, leases):
            raise UnavailableError("X", "away")

    permits = Permits()
    with pytest.raises(UnavailableError):
        await renew(Away(), permits, "x", refs("a"), TERMS, Clock())
    assert permits.given == {}


async def test_no_more_than_a_thousand_leases_in_one_call():
    _, given_permits, storage = await renewed(takes=0, names=tuple(f"r{n}" for n in range(2500)))
    assert storage.asked == [1000, 1000, 500]
    assert len(given_permits) == 2500


@given(sent=st.floats(0, 1e6), handled=st.floats(0, 100), answered=st.floats(0, 100))
def test_permit_ends_before_storage_may_give_the_next_attempt(sent, handled, answered):
    elapsed = timedelta(seconds=handled + answered)
    permit = permit_after(TERMS, elapsed)
    if permit > timedelta(0):
        ends = elapsed + permit
        assert ends <= timedelta(seconds=handled) + TERMS.orphan_grace
