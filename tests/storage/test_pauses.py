"""A paused queue gives nothing out, takes everything in, and stays paused over a restart."""

import asyncio
from datetime import timedelta

import pytest

from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible_rpc.errors import NotFoundError
from crucible_storage.clock import timestamp
from tests.storage import world as w
from tests.storage.world import finished, report, storage


async def test_nothing_is_leased_while_everything_is_paused_and_work_is_still_taken(world):
    await world.register()
    await world.create()
    pause = await world.service.pauses.pause("", "key-9", "maintenance")
    assert (pause.tenant, pause.by, pause.reason, pause.time) == ("", "key-9", "maintenance", timestamp(w.START))
    assert await world.lease(4) == []
    await world.create()
    assert (await world.service.pauses.resume("")) == pause
    assert len(await world.lease(4)) == 2


async def test_a_paused_tenant_stands_back_and_the_others_go_on(world):
    await world.register()
    await world.create("a", priority=100)
    await world.create("b")
    await world.service.pauses.pause("a", "key-9", "")
    [only] = await world.lease(4)
    assert (await world.get(only, "b")).state
    await world.service.pauses.resume("a")
    assert len(await world.lease(4)) == 1


async def test_what_runs_is_renewed_and_finished_during_a_pause(world):
    assignment = await world.running()
    await world.service.pauses.pause("", "key-9", "")
    assert await world.renew(assignment) == ([], [])
    assert await world.report(report(assignment, finished(assignment))) == []
    view = await world.service.pauses.look()
    assert (view.running, view.queued) == (0, 0)


async def test_resuming_wakes_who_waits_for_work(world):
    await world.register()
    await world.service.pauses.pause("", "key-9", "")
    await world.create()
    waiting = asyncio.create_task(world.lease(wait=30.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await world.service.pauses.resume("")
    assert len(await asyncio.wait_for(waiting, 4)) == 1  # the fallback poll would take 5 s


async def test_a_pause_outlives_the_process_and_the_first_one_counts(tmp_path, clock):
    async with storage(tmp_path / "state", clock=clock) as world:
        await world.create()
        first = await world.service.pauses.pause("t", "key-1", "first")
        clock.advance(timedelta(minutes=1))
        assert await world.service.pauses.pause("t", "key-2", "second") == first
    async with storage(tmp_path / "state", clock=clock) as world:
        await world.register()
        assert await world.lease() == []
        assert (await world.service.pauses.look()).pauses == [first]
        assert await world.service.pauses.resume("t") == first
        assert await world.service.pauses.resume("t") is None
        assert len(await world.lease()) == 1


async def test_a_tenant_that_is_not_there_cannot_be_paused(world):
    with pytest.raises(NotFoundError) as caught:
        await world.service.pauses.pause("nobody", "key-1", "")
    assert caught.value.reason == "TENANT_NOT_FOUND"
    assert (await world.service.pauses.look()).pauses == []


async def test_the_status_shows_work_pauses_and_what_waits_longest(world):
    await world.register()
    await world.service.tenants.create("b", Quota(weight=3, max_running=2))
    await world.create("b")
    await world.service.tenants.create("idle", Quota())
    await world.service.tenants.create("paused", Quota())
    await world.service.pauses.pause("paused", "key-1", "")
    await world.service.pauses.pause("", "key-1", "")
    await world.service.pauses.resume("")
    await world.lease()
    world.clock.advance(timedelta(minutes=1))
    oldest = timestamp(world.clock.now())
    await world.create("b")
    world.clock.advance(timedelta(minutes=1))
    await world.create("b", priority=100)
    view = await world.service.pauses.look()
    assert [one.tenant for one in view.tenants] == ["b", "paused"]
    b = view.tenants[0]
    assert (b.queued, b.running, b.weight, b.max_running, b.oldest_create_time) == (2, 1, 3, 2, oldest)
    assert not view.tenants[1].HasField("oldest_create_time")
    assert (view.queued, view.running) == (2, 1)
    assert [pause.tenant for pause in view.pauses] == ["paused"]
