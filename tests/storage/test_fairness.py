"""The fair share between tenants, by the meters alone: slots and time are numbers here."""

import heapq
import random
from collections import Counter

import pytest

from crucible_storage.fairness import AHEAD, HISTORY, Fairness, Share

SECOND = 1_000_000
pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]  # none is used


def leases(weights, slots, seconds, length, *, start=None):
    """Slot time of tenants that always have work; `length` gives the seconds of a run of a tenant."""
    fairness, running, had = Fairness(), Counter(), Counter()
    ends, now = [], 0
    for tenant, count in (start or {}).items():
        for _ in range(count):
            heapq.heappush(ends, (int(length(tenant) * SECOND), tenant))
            running[tenant] += 1
    while now < seconds * SECOND:
        shares = {name: Share(name, weight, running[name]) for name, weight in weights.items()}
        fairness.begin(shares.values(), now)
        while len(ends) < slots:
            share = fairness.next(shares.values())
            fairness.served(share)
            running[share.tenant] += 1
            heapq.heappush(ends, (now + max(1, int(length(share.tenant) * SECOND)), share.tenant))
        after, tenant = heapq.heappop(ends)
        for name in weights:
            had[name] += running[name] * (after - now)
        running[tenant] -= 1
        now = after
    total = sum(had.values())
    return {name: had[name] / total for name in weights}


@pytest.mark.parametrize("slots", [1, 2, 3, 16, 100])
def test_time_of_slots_is_shared_by_weight_with_few_slots_and_with_many(slots):
    chance = random.Random(1)
    shares = leases({"a": 1, "b": 2, "c": 5}, slots, 3000, lambda _: chance.uniform(0.1, 5))
    assert shares == {
        "a": pytest.approx(1 / 8, abs=0.02),
        "b": pytest.approx(1 / 4, abs=0.02),
        "c": pytest.approx(5 / 8, abs=0.02),
    }


@pytest.mark.parametrize("slots", [1, 16])
def test_who_has_long_runs_gets_no_more_time_than_who_has_short_ones(slots):
    chance = random.Random(2)
    shares = leases(
        {"long": 1, "short": 1}, slots, 5000, lambda name: chance.uniform(0.5, 1.5) * {"long": 20, "short": 0.2}[name]
    )
    assert shares["long"] == pytest.approx(0.5, abs=0.04)


def test_runs_that_take_no_time_are_shared_by_weight_too():
    fairness, served = Fairness(), Counter()
    for _ in range(3000):
        shares = [Share("a", 1, 0), Share("b", 2, 0)]
        fairness.begin(shares, 0)
        served[(share := fairness.next(shares)).tenant] += 1
        fairness.served(share)
    assert served["b"] / served["a"] == pytest.approx(2, rel=0.01)


def test_a_newcomer_gets_its_share_and_not_all_that_it_missed():
    fairness = Fairness()
    now = 0
    for _ in range(100):  # an hour alone, with 40 slots
        share = Share("a", 1, 40)
        fairness.begin([share], now)
        now += 36 * SECOND
    shares = [Share("a", 1, 20), Share("b", 1, 0)]
    fairness.begin(shares, now)
    order = []
    for _ in range(40):
        share = fairness.next(shares)
        fairness.served(share)
        order.append(share.tenant)
    assert order[:20] == ["b"] * 20
    assert Counter(order[20:]) == {"a": 10, "b": 10}


def test_who_could_not_be_served_for_long_catches_up_no_more_than_the_history():
    fairness = Fairness()
    now = 0
    for _ in range(100):
        shares = [Share("a", 1, 10), Share("b", 1, 1, max_running=1)]
        fairness.begin(shares, now)
        now += 36 * SECOND
    shares = [Share("a", 1, 1), Share("b", 1, 1)]
    fairness.begin(shares, now)
    ahead = 0
    while (share := fairness.next(shares)).tenant == "b":
        fairness.served(share)
        ahead += 1
    assert ahead <= HISTORY / AHEAD + 1


def test_nobody_is_served_beyond_the_quota_of_running():
    fairness = Fairness()
    shares = [Share("a", 1, 0, max_running=2), Share("b", 1000, 3, max_running=3)]
    fairness.begin(shares, 0)
    for _ in range(2):
        share = fairness.next(shares)
        assert share.tenant == "a"
        fairness.served(share)
    assert fairness.next(shares) is None


def test_a_clock_that_is_set_moves_no_meter_far():
    fairness = Fairness()
    shares = [Share("a", 1, 10), Share("b", 1, 10)]
    fairness.begin([shares[0]], 0)
    fairness.begin([shares[0]], -(10**18))
    fairness.begin([shares[0]], 10**18)
    fairness.begin(shares, 10**18)
    for _ in range(100):
        fairness.served(fairness.next(shares))
    assert abs(shares[0].running - shares[1].running) <= HISTORY / AHEAD + 1


def test_tenants_of_long_ago_are_forgotten():
    fairness = Fairness()
    for number in range(5000):
        fairness.begin([Share(f"t{number}", 1, 0)], number)
    assert len(fairness._meters) < 2000
