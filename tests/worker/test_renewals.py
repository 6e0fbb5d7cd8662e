"""Which permits a renewal of leases extends, and from when they count."""

from datetime import timedelta

import pytest

from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.errors import UnavailableError
from crucible_worker.renewals import Terms, renew

TERMS = Terms(lease=timedelta(seconds=10), orphan_grace=timedelta(seconds=15))


class Storage:
    """Renews all but `lost`."""

    def __init__(self, lost=()):
        self.lost = lost
        self.asked = []

    async def renew(self, executor_id, leases):
        self.asked.append(len(leases))
        return work.RenewLeasesResponse(lost=self.lost, stops=["s"])


class Permits:
    def __init__(self):
        self.given = {}

    async def extend(self, run_ids, permit, since):
        self.given.update(dict.fromkeys(run_ids, (permit, since.uptime.seconds)))


def refs(*names):
    return [work.LeaseRef(run_id=name, epoch=1) for name in names]


def at(seconds):
    made = ExecutorTime(boot_id="b")
    made.uptime.FromSeconds(seconds)
    return made


async def renewed(lost=(), names=("a", "b"), since=None):
    permits, storage = Permits(), Storage(lost)
    answer = await renew(storage, permits, "x", refs(*names), TERMS, since or at(7))
    return answer, permits.given, storage


async def test_permit_counts_from_what_the_executor_said_before_the_renewal():
    _, given_permits, _ = await renewed()
    assert given_permits == dict.fromkeys(("a", "b"), (TERMS.orphan_grace, 7))


async def test_lost_lease_gets_no_permit():
    answer, given_permits, _ = await renewed(lost=("b",))
    assert set(given_permits) == {"a"}
    assert (answer.lost, answer.stops) == (("b",), ("s",))


async def test_executor_that_was_never_asked_gets_no_permits():
    permits = Permits()
    await renew(Storage(), permits, "x", refs("a"), TERMS, None)
    assert permits.given == {}


async def test_failed_renewal_gives_no_permit():
    class Away:
        async def renew(self, executor_id, leases):
            raise UnavailableError("X", "away")

    permits = Permits()
    with pytest.raises(UnavailableError):
        await renew(Away(), permits, "x", refs("a"), TERMS, at(1))
    assert permits.given == {}


async def test_no_more_than_a_thousand_leases_in_one_call():
    _, given_permits, storage = await renewed(names=tuple(f"r{n}" for n in range(2500)))
    assert storage.asked == [1000, 1000, 500]
    assert len(given_permits) == 2500
