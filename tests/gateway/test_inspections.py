"""Self-tests and attack suites as public callers get them."""

import asyncio

import pytest

from crucible.gateway.v1 import platform_service_pb2 as api
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible.storage.v1 import inspection_service_pb2 as store_api
from crucible_rpc.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.gateway.conftest import ADMIN_KEY, USER_KEY
from tests.gateway.fake_servicer import an_executor

SELF_TEST, VERIFY = pb.INSPECTION_KIND_SELF_TEST, pb.INSPECTION_KIND_VERIFY_ISOLATION
CHECK = pb.CheckResult(component="journal", name="fsync", status=pb.CHECK_STATUS_PASSED, evidence="1 ms")
ATTEMPT = pb.AttemptResult(name="mount", verdict=pb.VERDICT_VULNERABLE, promised=True)


def events(**found):
    return [store_api.RunInspectionResponse(event=pb.InspectionEvent(**{name: one})) for name, one in found.items()]


def lost(reason):
    return store_api.RunInspectionResponse(lost=store_api.InspectionLost(reason=reason))


def refused(reason, message="no"):
    return store_api.RunInspectionResponse(refused=store_api.InspectionRefused(reason=reason, message=message))


async def take(stream):
    return [one async for one in stream]


@pytest.fixture
def admin(gateway, dial):
    return dial(gateway, ADMIN_KEY).platform


@pytest.fixture
def user(gateway, dial):
    return dial(gateway, USER_KEY).platform


async def test_a_self_test_is_for_every_key_and_ends_with_its_summary(user, store):
    store.found = events(check=CHECK, self_test=pb.SelfTestSummary(executor="x1", passed=1))
    results = await take(user.RunSelfTest(api.RunSelfTestRequest(engine="gvisor", service="executor")))
    assert results[0].check == CHECK
    assert results[1].summary.passed == 1
    (asked,) = store.inspections
    assert (asked.kind, asked.engine, asked.tenant, asked.creator) == (SELF_TEST, "gvisor", "acme", "key-0")


async def test_without_an_engine_a_self_test_is_for_all_and_an_attack_for_the_default_one(user, admin, store):
    await take(user.RunSelfTest(api.RunSelfTestRequest()))
    await take(admin.VerifyIsolation(api.VerifyIsolationRequest(attempts=["mount"])))
    assert [(one.kind, one.engine) for one in store.inspections] == [(SELF_TEST, ""), (VERIFY, "gvisor")]
    assert list(store.inspections[1].attempts) == ["mount"]


async def test_verdicts_come_as_they_are_and_the_summary_last(admin, store):
    store.found = events(attempt=ATTEMPT, verification=pb.VerificationSummary(vulnerable=1, short_of_promise=1))
    results = await take(admin.VerifyIsolation(api.VerifyIsolationRequest(engine="gvisor")))
    assert results[0].attempt == ATTEMPT
    assert results[1].summary.short_of_promise == 1


async def test_attacks_are_for_administrators_and_nothing_is_asked_of_storage_for_others(user, gateway, dial, store):
    with pytest.raises(PermissionDeniedError) as denied:
        await take(user.VerifyIsolation(api.VerifyIsolationRequest()))
    assert denied.value.reason == "NOT_PERMITTED"
    for method, request in (
        ("RunSelfTest", api.RunSelfTestRequest()),
        ("VerifyIsolation", api.VerifyIsolationRequest()),
    ):
        with pytest.raises(UnauthenticatedError):
            await take(getattr(dial(gateway, "").platform, method)(request))
    assert store.inspections == []


async def test_what_was_found_before_a_loss_comes_and_then_the_loss(user, store):
    store.found = [*events(check=CHECK), lost("its executor's worker was not heard of for 10 s")]
    stream = aiter(user.RunSelfTest(api.RunSelfTestRequest()))
    assert (await anext(stream)).check == CHECK
    with pytest.raises(UnavailableError, match="was not heard of for 10 s") as error:
        await anext(stream)
    assert error.value.reason == "INSPECTION_LOST"


@pytest.mark.parametrize(
    ("reason", "error", "told"),
    [
        ("CANNOT_VERIFY", FailedPreconditionError, "CANNOT_VERIFY"),
        ("ENGINE_NOT_AVAILABLE", FailedPreconditionError, "ENGINE_NOT_AVAILABLE"),
        ("INSPECTION_RUNNING", ResourceExhaustedError, "INSPECTION_RUNNING"),
        ("INVALID_FIELD", InvalidArgumentError, "INVALID_FIELD"),
        ("INVALID_TICKET", UnavailableError, "INSPECTION_LOST"),
    ],
)
async def test_an_executors_refusal_is_told_as_what_it_is(admin, store, reason, error, told):
    store.found = [refused(reason, "since it is so")]
    with pytest.raises(error, match="since it is so") as caught:
        await take(admin.VerifyIsolation(api.VerifyIsolationRequest()))
    assert caught.value.reason == told


@pytest.mark.parametrize(
    "error",
    [
        FailedPreconditionError("ENGINE_NOT_AVAILABLE", "no live executor has it"),
        ResourceExhaustedError("INSPECTION_RUNNING", "one is under way"),
    ],
)
async def test_storages_refusal_passes(user, store, error):
    store.inspection_error = error
    with pytest.raises(type(error), match=error.message) as caught:
        await take(user.RunSelfTest(api.RunSelfTestRequest()))
    assert caught.value.reason == error.reason


async def test_a_storage_that_dies_meanwhile_is_named(user, store, storage):
    store.found, store.inspection_endless = events(check=CHECK), True
    stream = aiter(user.RunSelfTest(api.RunSelfTestRequest()))
    await anext(stream)
    await storage.stop()
    with pytest.raises(UnavailableError) as error:
        await anext(stream)
    assert error.value.metadata["peer"] == "storage"


async def test_a_caller_who_leaves_ends_it_at_storage(user, store):
    store.found, store.inspection_endless = events(check=CHECK), True
    call = user.RunSelfTest(api.RunSelfTestRequest())
    await anext(aiter(call))
    call.cancel()
    await asyncio.wait_for(store.inspection_left.wait(), 10)


async def test_a_gateway_that_stops_ends_it(gateway, user, store):
    store.found, store.inspection_endless = events(check=CHECK), True
    stream = aiter(user.RunSelfTest(api.RunSelfTestRequest()))
    await anext(stream)
    draining = asyncio.ensure_future(gateway.drain())
    with pytest.raises(UnavailableError) as error:
        await anext(stream)
    assert error.value.reason == "SHUTTING_DOWN"
    await draining
    await asyncio.wait_for(store.inspection_left.wait(), 10)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RunSelfTest", api.RunSelfTestRequest(service="storage")),
        ("RunSelfTest", api.RunSelfTestRequest(engine="../runsc")),
        ("VerifyIsolation", api.VerifyIsolationRequest(engine="--engine")),
        ("VerifyIsolation", api.VerifyIsolationRequest(attempts=["--only"])),
        ("VerifyIsolation", api.VerifyIsolationRequest(attempts=["a"] * 201)),
    ],
)
async def test_a_request_that_names_what_cannot_be_is_refused_by_field(admin, store, method, request_):
    with pytest.raises(InvalidArgumentError) as caught:
        await take(getattr(admin, method)(request_))
    assert caught.value.violations
    assert store.inspections == []


async def test_an_executor_that_takes_no_work_is_shown_with_the_reason(user, store):
    broken = an_executor("x2")
    broken.executor.not_serving_reason = "the default engine gvisor cannot be used: its self-test failed"
    store.executors = [an_executor("x1"), broken]
    status = await user.GetStatus(api.GetStatusRequest())
    shown = {one.process: (one.serving, one.detail) for one in status.processes}
    assert shown["executor/x1"] == (True, "")
    reason = "it takes no work: the default engine gvisor cannot be used: its self-test failed"
    assert shown["executor/x2"] == (False, reason)
