"""Expired leases are taken back late rather than early, whatever becomes of the clock."""

from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.storage.v1 import work_service_pb2 as work
from crucible_storage.sweeper import Sweeper
from tests.storage.world import FENCE, report, storage

SECOND = timedelta(seconds=1)
QUEUED, RUNNING = pb.EVALUATION_STATE_QUEUED, pb.EVALUATION_STATE_RUNNING


@pytest.fixture
def sweeper(world):
    return Sweeper(world.service.leases, world.policy, world.clock)


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
    world.clock.advance(FENCE)
    assignment = await world.running()
    for _ in range(int(FENCE / SECOND) - 1):
        world.clock.advance(SECOND)
        assert await sweeper.look() == 0
    world.clock.advance(SECOND)
    assert await sweeper.look() == 1
    assert (await world.get(assignment)).state == QUEUED


async def test_after_a_restart_workers_have_time_to_renew_first(tmp_path, clock):
    async with storage(tmp_path, clock=clock) as world:
        assignment = await world.running()
    clock.advance(timedelta(hours=1))  # storage was down
    async with storage(tmp_path, clock=clock) as world:
        sweeper = Sweeper(world.service.leases, world.policy, clock)
        clock.advance(SECOND)
        assert await sweeper.look() == 0
        assert await world.renew(assignment) == ([], [])
        clock.advance(FENCE - SECOND)
        assert await sweeper.look() == 0
        assert (await world.get(assignment)).state == RUNNING


async def test_a_clock_set_forward_does_not_expire_leases(world, sweeper):
    world.clock.advance(FENCE)
    assert await sweeper.look() == 0
    assignment = await world.running()
    world.clock.wall += 3600 * 1_000_000
    assert await sweeper.look() == 0
    world.clock.advance(SECOND)
    assert await sweeper.look() == 0
    assert await world.renew(assignment) == ([], [])
    world.clock.advance(FENCE - SECOND)
    assert await sweeper.look() == 0
    assert (await world.get(assignment)).state == RUNNING
    world.clock.advance(FENCE)
    assert await sweeper.look() == 1


async def test_a_clock_set_back_keeps_no_lease_of_a_dead_worker_for_ever(world, sweeper):
    world.clock.advance(FENCE)
    assert await sweeper.look() == 0
    dead = await world.running()
    await world.create()
    alive = await world.lease_one()
    world.clock.wall -= 24 * 3600 * 1_000_000
    assert await sweeper.look() == 0
    for _ in range(int(FENCE / SECOND)):
        assert await world.renew(alive) == ([], [])
        assert await sweeper.look() == 0
        world.clock.advance(SECOND)
    assert await sweeper.look() == 1
    assert (await world.get(dead)).state == QUEUED
    assert await world.renew(alive) == ([], [])


async def test_a_clock_set_back_delays_the_next_attempt_by_no_day(world, sweeper):
    assignment = await world.running()
    lost = work.RunLost(reason="gone", confirmed_gone=True)
    assert await world.report(report(assignment, lost=lost)) == []
    world.clock.wall -= 24 * 3600 * 1_000_000
    assert (await world.lease_one()).run_id.endswith(".2")
