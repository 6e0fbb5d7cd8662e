"""Two storage processes on one PostgreSQL: together they hold a tenant to its quotas, and make nothing twice."""

import asyncio
import os
from contextlib import AsyncExitStack

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.tenant_pb2 import Quota
from tests.storage.test_dead_letters import dead
from tests.storage.world import storage

pytestmark = pytest.mark.database("postgresql")


@pytest.fixture
async def two(tmp_path, clock, databases):
    """Two over one database, each with a state folder of its own."""
    folders = tmp_path / "first", tmp_path / "second"
    databases.url(folders[0])
    databases._names[os.fspath(folders[1])] = databases._names[os.fspath(folders[0])]
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(storage(folder, clock=clock)) for folder in folders]


async def test_together_they_admit_no_more_than_the_quota(two):
    first, second = two
    await first.service.tenants.create("t", Quota(evaluations_per_day=7, max_queued=100))
    made = await asyncio.gather(*(world.create() for _ in range(15) for world in two), return_exceptions=True)
    assert sum(isinstance(one, pb.Evaluation) for one in made) == 7
    assert {one.metadata["use"] for one in made if isinstance(one, Exception)} == {"7"}
    [tenant] = await second.service.tenants.list()
    assert (tenant.use.evaluations_today, tenant.use.queued) == (7, 7)


async def test_together_they_lease_no_more_than_may_run(two):
    first, second = two
    await first.service.tenants.create("t", Quota(max_running=3))
    for _ in range(10):
        await first.create()
    await first.register(executor_id="ex-1")
    await second.register(executor_id="ex-2")
    both = (first.lease(4, executor_id="ex-1"), second.lease(4, executor_id="ex-2"))
    given = [one for some in await asyncio.gather(*both) for one in some]
    assert len(given) == len({one.evaluation for one in given}) == 3


async def test_a_pause_by_one_holds_for_the_other(two):
    first, second = two
    await second.register()
    await first.create()
    await first.service.pauses.pause("", "key-1", "")
    assert await second.lease() == []
    await first.service.pauses.resume("")
    assert len(await second.lease()) == 1


async def test_a_dead_letter_is_retried_once(two):
    first, _ = two
    name = (await dead(first)).name.removeprefix("evaluations/")
    retries = [world.service.dead_letters.retry(name, "key-9") for _ in range(5) for world in two]
    answers = await asyncio.gather(*retries)
    assert len({made for made, _ in answers}) == 1
    assert sum(not repeated for _, repeated in answers) == 1
