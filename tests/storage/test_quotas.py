"""What a tenant may use, and that the counters behind it are those of what is stored."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible_rpc.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, ResourceExhaustedError
from crucible_storage import admission
from crucible_storage.policy import Policy
from tests.storage import world as w
from tests.storage.world import finished, report, storage

MIDNIGHT = timedelta(days=1)
SINCE_MIDNIGHT = timedelta(microseconds=w.START % 86_400_000_000)


@pytest.fixture
async def limited(world):
    """A tenant `t` with quotas."""

    async def limit(**quotas):
        await world.service.tenants.create("t", Quota(**quotas))
        return world

    return limit


async def refused(world, quota, **parts):
    with pytest.raises(ResourceExhaustedError) as caught:
        await world.create(**parts)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert caught.value.metadata["quota"] == quota
    return caught.value


async def use(world, tenant="t"):
    return next(one for one in await world.service.tenants.list() if one.name == tenant).use


async def finish(world, assignment, *, cpu=0.0, stdout=b""):
    usage = pb.Usage()
    usage.sandbox_cpu_time.FromTimedelta(timedelta(seconds=cpu))
    end = finished(assignment, usage=usage, stdout=stdout)
    assert await world.report(report(assignment, w.output(stdout), end) if stdout else report(assignment, end)) == []


async def stored_bytes(world, tenant="t"):
    """Counted anew, from the tables."""
    sums = """
        SELECT (SELECT coalesce(sum(run_spec_size), 0) FROM evaluation WHERE tenant = :tenant)
             + (SELECT coalesce(sum(size), 0) FROM output WHERE tenant = :tenant)
    """
    return await world.service.database.read(lambda one: one.execute(text(sums), {"tenant": tenant}).scalar_one())


async def test_evaluations_per_day_are_refused_until_midnight(limited):
    world = await limited(evaluations_per_day=2)
    await world.create()
    await world.create()
    error = await refused(world, "evaluations_per_day")
    assert (error.metadata["limit"], error.metadata["use"]) == ("2", "2")
    assert error.retry_after == MIDNIGHT - SINCE_MIDNIGHT
    world.clock.advance(error.retry_after - timedelta(seconds=1))
    assert (await refused(world, "evaluations_per_day")).retry_after == timedelta(seconds=1)
    world.clock.advance(timedelta(seconds=1))
    await world.create()
    assert (await use(world)).evaluations_today == 1


async def test_queued_evaluations_make_room_as_they_are_leased_or_cancelled(limited):
    world = await limited(max_queued=2)
    await world.register()
    first = await world.create()
    await world.create()
    error = await refused(world, "max_queued")
    assert (error.metadata["limit"], error.metadata["use"]) == ("2", "2")
    assert timedelta(0) < error.retry_after <= timedelta(seconds=5)
    await world.create("other")
    await world.cancel(first)
    await world.create()
    await refused(world, "max_queued")
    assert len(await world.lease(3)) == 3
    await world.create()


async def test_cpu_seconds_of_every_ended_attempt_count_and_nothing_is_taken_when_they_are_used_up(limited):
    world = await limited(cpu_seconds_per_day=10)
    await world.register()
    await world.create()
    await world.create()
    await finish(world, await world.lease_one(), cpu=4.5)
    assignment = await world.lease_one()
    failed = ex_failed(assignment, cpu=5.6)
    assert await world.report(report(assignment, failed)) == []
    error = await refused(world, "cpu_seconds_per_day")
    assert (error.metadata["limit"], error.metadata["use"]) == ("10", "10")
    assert error.retry_after == MIDNIGHT - SINCE_MIDNIGHT
    assert (await use(world)).cpu_seconds_today == pytest.approx(10.1)
    world.clock.advance(MIDNIGHT - SINCE_MIDNIGHT)
    await world.create()
    assert (await use(world)).cpu_seconds_today == 0


def ex_failed(assignment, *, cpu):
    usage = pb.Usage()
    usage.sandbox_cpu_time.FromTimedelta(timedelta(seconds=cpu))
    failed = w.ex.RunTermination(sandbox_failed=w.ex.SandboxFailed(reason="it broke"))
    return finished(assignment, failed, usage=usage)


async def test_stored_bytes_are_those_of_programs_and_output(limited):
    world = await limited()
    await world.register()
    program = len((await world.running()).run_spec)
    await world.service.tenants.set_quota("t", Quota(max_stored_bytes=2 * program + 10))
    await world.create()
    assert (await use(world)).stored_bytes == 2 * program
    error = await refused(world, "max_stored_bytes")
    assert (error.metadata["limit"], error.metadata["use"]) == (str(2 * program + 10), str(2 * program))
    assert error.retry_after >= timedelta(minutes=1)
    await finish(world, await world.lease_one(), stdout=b"x" * 50)
    assert (await use(world)).stored_bytes == 2 * program + 50 == await stored_bytes(world)


async def test_output_of_every_attempt_counts_once_also_after_a_refusal(world):
    await world.create()
    await world.register()
    first = await world.lease_one()
    lost = w.work.RunLost(reason="gone", confirmed_gone=True)
    assert await world.report(report(first, w.output(b"first attempt"), lost=lost)) == []
    assert (await use(world)).stored_bytes == await stored_bytes(world)
    world.clock.advance(timedelta(minutes=5))
    assert await world.report(report(await world.lease_one(), refused=w.work.Refused(reason="full"))) == []
    assert (await use(world)).stored_bytes == await stored_bytes(world)
    world.clock.advance(timedelta(minutes=5))
    await finish(world, await world.lease_one(), stdout=b"second")
    assert (await use(world)).stored_bytes == await stored_bytes(world)
    assert (await use(world)).evaluations_today == 1


async def test_running_is_respected_when_leasing_and_the_end_of_a_run_lets_the_next_one_in(limited):
    world = await limited(max_running=2)
    await world.register()
    for _ in range(5):
        await world.create()
    held = await world.lease(4)
    assert len(held) == 2
    assert (await use(world)).running == 2
    waiting = asyncio.create_task(world.lease(4, wait=30.0))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await finish(world, held[0])
    assert len(await asyncio.wait_for(waiting, 4)) == 1  # woken: the fallback poll would take 5 s
    await world.service.tenants.set_quota("t", Quota(max_running=0))
    assert len(await world.lease(4)) == 2


async def test_a_tenant_at_its_limit_leaves_the_slots_to_others(limited):
    world = await limited(max_running=1)
    await world.register()
    for _ in range(3):
        await world.create("t", priority=100)
        await world.create("u")
    held = await world.lease(10)
    assert len(held) == 4
    assert (await use(world, "u")).running == 3


async def test_a_priority_above_the_ceiling_is_the_fields_fault(limited):
    world = await limited(max_priority=10)
    await world.create(priority=10)
    with pytest.raises(InvalidArgumentError) as caught:
        await world.create(priority=11)
    assert caught.value.reason == "INVALID_FIELD"
    assert [violation.field for violation in caught.value.violations] == ["spec.priority"]
    await world.create("other", priority=100)


async def test_a_repeated_request_is_never_refused(limited):
    world = await limited(evaluations_per_day=1, max_queued=1)
    first = await world.create(request_id="r", priority=50)
    await refused(world, "max_queued")
    await world.service.tenants.set_quota("t", Quota(max_priority=0, max_stored_bytes=1))
    assert await world.create(request_id="r", priority=50) == first
    assert (await use(world)).evaluations_today == 1


async def test_what_is_refused_counts_nowhere(limited):
    world = await limited(evaluations_per_day=3)
    made = await asyncio.gather(*(world.create() for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(one, pb.Evaluation) for one in made) == 3
    assert (await use(world)).evaluations_today == 3
    assert (await use(world)).stored_bytes == await stored_bytes(world)


async def test_quotas_hold_within_one_group_commit_and_over_many(tmp_path):
    """Fifty creations at once share transactions; a quota set between them holds for what comes after it."""
    async with storage(tmp_path / "state") as world:
        await world.service.tenants.create("t", Quota(max_queued=1000))
        first = [asyncio.ensure_future(world.create()) for _ in range(10)]
        lowering = asyncio.ensure_future(world.service.tenants.set_quota("t", Quota(max_queued=12)))
        second = [asyncio.ensure_future(world.create()) for _ in range(10)]
        await lowering
        made = await asyncio.gather(*first, *second, return_exceptions=True)
        assert sum(isinstance(one, pb.Evaluation) for one in made) == 12


async def test_many_at_once_are_admitted_as_a_whole_or_not_at_all(world):
    await world.service.tenants.create("t", Quota(max_queued=10, evaluations_per_day=10, max_stored_bytes=1000))

    async def admit(**asked):
        def run(transaction):
            now = world.clock.now()
            admission.admit(transaction, world.policy, "t", now, **({"priority": 0, "stored_bytes": 0} | asked))

        await world.service.database.write(run)

    for asked, quota in (
        ({"count": 11}, "max_queued"),
        ({"count": 2, "stored_bytes": 1001}, "max_stored_bytes"),
    ):
        with pytest.raises(ResourceExhaustedError) as caught:
            await admit(**asked)
        assert caught.value.metadata["quota"] == quota
    assert (await use(world)).evaluations_today == 0
    await admit(count=10, stored_bytes=1000)
    assert ((await use(world)).evaluations_today, (await use(world)).stored_bytes) == (10, 1000)
    with pytest.raises(ResourceExhaustedError) as caught:
        await admit(count=1)
    assert caught.value.metadata == {"quota": "evaluations_per_day", "limit": "10", "use": "10"}
    with pytest.raises(ResourceExhaustedError) as full:
        await admit(count=world.policy.max_queued + 1)
    assert full.value.reason == "QUEUE_FULL"


async def test_the_use_of_a_write_that_fails_is_undone(world):
    await world.create()

    def fails(transaction):
        transaction.usage.created("t", world.clock.now(), 1, 1 << 40)
        raise ValueError("this write failed")

    with pytest.raises(ValueError, match="failed"):
        await world.service.database.write(fails)
    assert (await use(world)).stored_bytes == await stored_bytes(world)


async def test_use_and_quotas_outlive_the_process(tmp_path, clock):
    async with storage(tmp_path / "state", clock=clock) as world:
        await world.service.tenants.create("t", Quota(evaluations_per_day=1, weight=3))
        await world.create()
    async with storage(tmp_path / "state", clock=clock) as world:
        await refused(world, "evaluations_per_day")
        [tenant] = await world.service.tenants.list()
        assert (tenant.quota.weight, tenant.quota.max_priority, tenant.quota.evaluations_per_day) == (3, 100, 1)


async def test_keys_and_evaluations_make_their_tenants_without_quotas(world):
    await world.service.api_keys.create("by-key", "", bytes(32), admin=False)
    await world.create("by-evaluation")
    listed = {one.name: one for one in await world.service.tenants.list()}
    assert sorted(listed) == ["by-evaluation", "by-key"]
    quota = listed["by-key"].quota
    assert all(quota.HasField(field.name) for field in quota.DESCRIPTOR.fields)
    assert (quota.weight, quota.max_priority, quota.max_running, quota.max_stored_bytes) == (1, 100, 0, 0)
    assert listed["by-evaluation"].use.queued == 1
    with pytest.raises(AlreadyExistsError) as caught:
        await world.service.tenants.create("by-key", Quota())
    assert caught.value.reason == "TENANT_EXISTS"
    with pytest.raises(NotFoundError) as missing:
        await world.service.tenants.set_quota("nobody", Quota(weight=2))
    assert missing.value.reason == "TENANT_NOT_FOUND"


async def test_a_quota_that_is_not_set_stays(world):
    await world.service.tenants.create("t", Quota(weight=5, max_running=7))
    changed = await world.service.tenants.set_quota("t", Quota(max_running=0, max_priority=-1))
    assert (changed.quota.weight, changed.quota.max_running, changed.quota.max_priority) == (5, 0, -1)


async def test_the_queue_of_all_tenants_is_bounded_and_says_how_full_it_is(tmp_path):
    async with storage(tmp_path / "state", Policy(max_queued=2)) as world:
        await world.create("a")
        await world.create("b")
        with pytest.raises(ResourceExhaustedError) as caught:
            await world.create("c")
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.metadata == {"limit": "2", "use": "2"}


@pytest.mark.database("sqlite")
async def test_admission_costs_one_statement_and_the_commit_another(world):
    """Of a tenant with quotas; where several processes share a database, they lock its row and read again."""
    await world.service.tenants.create("t", Quota(evaluations_per_day=1000, max_queued=1000))
    await world.create()
    seen = []

    def trace(to):
        return lambda transaction: transaction.connection.connection.dbapi_connection.set_trace_callback(to)

    await world.service.database.write(trace(seen.append))
    await world.create()
    await world.service.database.write(trace(None))
    assert sum("FROM tenant" in statement for statement in seen) == 1
    assert sum("INTO tenant_use" in statement for statement in seen) == 2  # one statement; its rows are today, all days
    assert not [one for one in seen if "tenant" in one and "FROM tenant" not in one and "INTO" not in one]
