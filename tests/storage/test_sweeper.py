"""A lease lasts as long as its durations say, whatever becomes of anybody's wall clock."""

import random
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.storage.v1 import work_service_pb2 as work
from crucible_storage.sweeper import Sweeper
from tests.storage import world as w
from tests.storage.world import FENCE, FakeClock, report, storage

SECOND = timedelta(seconds=1)
DAY = 24 * 3600 * 1_000_000
QUEUED, RUNNING = pb.EVALUATION_STATE_QUEUED, pb.EVALUATION_STATE_RUNNING


class WildClock(FakeClock):
    """Its wall clock is set to another day each time that it is read; time passes for the monotonic one alone."""

    def __init__(self):
        super().__init__()
        self.random = random.Random(1)

    def now(self):
        return w.START + self.random.randint(-10 * DAY, 10 * DAY)


def sweeper_of(world, clock=None):
    return Sweeper(world.service.database, world.policy, clock or world.clock)


@pytest.fixture
def sweeper(world):
    return sweeper_of(world)


async def test_a_look_that_finds_nothing_writes_nothing(world, sweeper, monkeypatch):
    await world.running()
    world.clock.advance(FENCE / 2)
    assert await world.sweep() == 0

    def write(run):
        raise AssertionError

    monkeypatch.setattr(world.service.database, "write", write)
    assert await world.sweep() == 0
    world.clock.advance(FENCE)
    with pytest.raises(AssertionError):
        await world.sweep()


async def test_an_expired_lease_is_taken_back(world, sweeper):
    assignment = await world.running()
    for _ in range(int(FENCE / SECOND)):
        assert await sweeper.look() == 0
        world.clock.advance(SECOND)
    assert await sweeper.look() == 1
    assert (await world.get(assignment)).state == QUEUED


async def test_after_a_restart_workers_have_time_to_renew_first(tmp_path, clock):
    async with storage(tmp_path, clock=clock) as world:
        assignment = await world.running()
        dead = (await world.create(), await world.lease_one())[1]
    clock.advance(timedelta(hours=1))  # storage was down
    async with storage(tmp_path, clock=clock) as world:
        sweeper = sweeper_of(world)
        for _ in range(int(FENCE / SECOND)):
            assert await sweeper.look() == 0
            assert await world.renew(assignment) == ([], [])
            clock.advance(SECOND)
        assert await sweeper.look() == 1
        assert (await world.get(assignment)).state == RUNNING
        assert (await world.get(dead)).state == QUEUED


async def test_a_clock_that_jumps_at_every_look_neither_expires_a_lease_early_nor_keeps_one(tmp_path):
    clock = WildClock()
    async with storage(tmp_path, clock=clock) as world:
        sweeper = sweeper_of(world)
        dead = await world.running()
        await world.create()
        alive = await world.lease_one()
        for second in range(int(FENCE / SECOND)):
            assert await sweeper.look() == 0
            if second % 3 == 0:
                assert await world.renew(alive) == ([], [])
            clock.advance(SECOND)
        assert await sweeper.look() == 1
        assert (await world.get(dead)).state == QUEUED
        for _ in range(int(2 * FENCE / SECOND)):
            assert await sweeper.look() == 0
            assert await world.renew(alive) == ([], [])
            clock.advance(SECOND)


@pytest.mark.parametrize("step", [-900_000, 900_000])
async def test_small_steps_of_the_clock_do_not_add_up(world, sweeper, step):
    """A clock that is slewed, or set a little again and again, never makes one step that is worth a word."""
    await world.running()
    for _ in range(2 * int(FENCE / SECOND)):
        assert await sweeper.look() == 0
        world.clock.advance(SECOND / 2)
        world.clock.wall += step
    assert await sweeper.look() == 1


async def test_a_renewal_counts_when_the_clock_was_set_back_by_just_as_much_as_has_passed(world, sweeper):
    assignment = await world.running()
    assert await sweeper.look() == 0
    for _ in range(4):
        world.clock.advance(FENCE - SECOND)
        world.clock.wall = w.START
        assert await world.renew(assignment) == ([], [])
        assert await sweeper.look() == 0
    assert (await world.get(assignment)).state == RUNNING


async def test_a_renewal_that_comes_between_the_look_and_its_transaction_counts(world, sweeper, monkeypatch):
    assignment = await world.running()
    await sweeper.observe()
    world.clock.advance(FENCE)
    observe = sweeper.observe

    async def and_then_it_is_renewed():
        now = await observe()
        assert await world.renew(assignment) == ([], [])
        return now

    monkeypatch.setattr(sweeper, "observe", and_then_it_is_renewed)
    assert await sweeper.look() == 0
    assert (await world.get(assignment)).state == RUNNING


@pytest.mark.database("postgresql")
async def test_processes_whose_clocks_differ_by_days_agree_on_what_has_expired(tmp_path, databases):
    databases.share(tmp_path / "a", tmp_path / "b")
    ahead, behind = FakeClock(), FakeClock()
    ahead.wall += 3 * DAY
    behind.steady = 1e6
    async with storage(tmp_path / "a", clock=ahead) as first, storage(tmp_path / "b", clock=behind) as second:
        sweepers = [sweeper_of(first), sweeper_of(second)]
        alive = await first.running()
        await second.create()
        dead = await second.lease_one()
        for second_passed in range(int(FENCE / SECOND)):
            assert [await one.look() for one in sweepers] == [0, 0]
            renewing = (first, second)[second_passed // 4 % 2]
            assert await renewing.renew(alive) == ([], [])
            ahead.advance(SECOND)
            behind.advance(SECOND)
        late = sweeper_of(second)  # of a process that starts only now
        assert await late.look() == 0
        assert sum([await one.look() for one in sweepers]) == 1
        assert (await first.get(dead)).state == QUEUED
        assert len((await first.get(dead)).failed_attempts) == 1
        assert (await second.get(alive)).state == RUNNING


async def test_a_clock_set_back_delays_the_next_attempt_by_no_day(world, sweeper):
    assignment = await world.running()
    lost = work.RunLost(reason="gone", confirmed_gone=True)
    assert await world.report(report(assignment, lost=lost)) == []
    world.clock.wall -= DAY
    assert (await world.lease_one()).run_id.endswith(".2")
