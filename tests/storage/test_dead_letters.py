"""What ended as an infrastructure failure: listed with its attempts, and run again as a new evaluation, once."""

import asyncio
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible_rpc.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from tests.storage import world as w
from tests.storage.world import exited, finished, report


async def lose(world, assignment, reason="gone"):
    lost = w.work.RunLost(reason=reason, confirmed_gone=True)
    assert await world.report(report(assignment, lost=lost)) == []


async def dead(world, tenant="t", **parts):
    """An evaluation that failed at its last attempt."""
    created = await world.create(tenant, **parts)
    await world.register()
    for attempt in range(1, world.policy.max_attempts + 1):
        await lose(world, await world.lease_one(), f"reason {attempt}")
        world.clock.advance(timedelta(minutes=5))
    return created


async def listed(world, tenant="", *, retried=False, size=100):
    letters, token = [], ""
    while True:
        page, token = await world.service.dead_letters.page(tenant, size, token, retried=retried)
        letters += page
        assert len(page) == size or not token
        if not token:
            return letters


async def retry(world, evaluation):
    return await world.service.dead_letters.retry(evaluation.name.removeprefix("evaluations/"), "key-9")


async def test_an_evaluation_that_failed_at_the_last_attempt_is_listed_with_its_attempts(world):
    created = await dead(world)
    [letter] = await listed(world)
    assert (letter.evaluation, letter.tenant, letter.attempts, letter.reason) == (created.name, "t", 3, "reason 3")
    assert [(one.attempt, one.reason) for one in letter.failed_attempts] == [(1, "reason 1"), (2, "reason 2")]
    ended = await world.get(created)
    assert (letter.create_time, letter.end_time) == (ended.create_time, ended.end_time)
    assert letter.retried_as == ""
    assert (await world.service.pauses.look()).dead_letters == 1


async def test_other_ends_are_no_dead_letters(world):
    assignment = await world.running()
    await world.report(report(assignment, finished(assignment, exited(1))))
    await world.cancel(await world.create())
    await world.running()
    assert await listed(world) == []


async def test_pages_are_newest_first_by_tenant_and_bound_to_their_list(world):
    made = [(await dead(world, "t" if number % 2 else "u")).name for number in range(5)]
    assert [letter.evaluation for letter in await listed(world, size=2)] == made[::-1]
    assert [letter.evaluation for letter in await listed(world, "u", size=2)] == made[::-2]
    _, token = await world.service.dead_letters.page("", 2, "", retried=False)
    with pytest.raises(InvalidArgumentError) as caught:
        await world.service.dead_letters.page("t", 2, token, retried=False)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


async def test_a_retry_is_a_new_evaluation_of_the_same_spec_and_the_old_one_stays(world):
    created = await dead(world, code=b"print(7)", priority=5, labels={"a": "b"})
    before = await world.get(created)
    new, repeated = await retry(world, created)
    assert not repeated
    made = await world.get(f"evaluations/{new}")
    assert (made.state, made.creator, made.attempt) == (pb.EVALUATION_STATE_QUEUED, "key-9", 0)
    assert made.spec.program == before.spec.program
    assert (made.spec.limits, made.spec.priority, made.spec.engine) == (before.spec.limits, 5, "gvisor")
    assert dict(made.labels) == {"a": "b", "crucible.retry-of": created.name}
    assert await world.get(created) == before
    assert await listed(world) == []
    [letter] = await listed(world, retried=True)
    assert letter.retried_as == made.name
    assert (await world.service.pauses.look()).dead_letters == 0
    assignment = await world.lease_one()
    await world.report(report(assignment, finished(assignment)))
    assert (await world.get(made)).state == pb.EVALUATION_STATE_SUCCEEDED


async def test_a_repeated_retry_answers_the_same_evaluation(world):
    created = await dead(world)
    answers = await asyncio.gather(*(retry(world, created) for _ in range(20)))
    assert len({new for new, _ in answers}) == 1
    assert sorted(repeated for _, repeated in answers) == [False] + [True] * 19
    assert world.service.database.queued == 1


async def test_a_retry_counts_in_its_tenants_quotas_and_what_is_refused_stays_a_dead_letter(world):
    created = await dead(world)
    await world.service.tenants.set_quota("t", Quota(evaluations_per_day=1))
    with pytest.raises(ResourceExhaustedError) as caught:
        await retry(world, created)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert len(await listed(world)) == 1
    world.clock.advance(caught.value.retry_after)
    assert (await retry(world, created))[1] is False


async def test_only_dead_letters_can_be_retried(world):
    created = await world.create()
    for evaluation in (created, pb.Evaluation(name="evaluations/00000000-0000-0000-0000-000000000000")):
        with pytest.raises(NotFoundError) as caught:
            await retry(world, evaluation)
        assert caught.value.reason == "DEAD_LETTER_NOT_FOUND"


async def test_a_retry_that_fails_again_is_a_dead_letter_of_its_own(world):
    created = await dead(world)
    new, _ = await retry(world, created)
    for _ in range(world.policy.max_attempts):
        await lose(world, await world.lease_one())
        world.clock.advance(timedelta(minutes=5))
    assert [letter.evaluation for letter in await listed(world)] == [f"evaluations/{new}"]
    assert len(await listed(world, retried=True)) == 2


async def test_work_that_no_executor_will_ever_take_is_a_dead_letter_too(world):
    await world.create()
    await world.register()
    refused = w.work.Refused(reason="no such image", permanent=True)
    assert await world.report(report(await world.lease_one(), refused=refused)) == []
    [letter] = await listed(world)
    assert (letter.attempts, letter.reason) == (0, "no such image")
