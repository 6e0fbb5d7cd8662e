"""Tenants, quotas, pauses and dead letters: for administrators' keys alone, and as storage says."""

from datetime import timedelta

import pytest
from google.protobuf import message_factory

from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible.gateway.v1 import admin_service_pb2 as api
from crucible.gateway.v1 import evaluation_service_pb2 as evaluations
from crucible_rpc.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from tests.gateway.conftest import ADMIN_KEY, USER_KEY

METHODS = list(api.DESCRIPTOR.services_by_name["AdminService"].methods)
NAME = "evaluations/00000000-0000-0000-0000-000000000000"


@pytest.fixture
def admin(gateway, dial):
    return dial(gateway, ADMIN_KEY).admin


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("key", "error"), [(USER_KEY, PermissionDeniedError), ("crucible_x", UnauthenticatedError)])
async def test_every_call_needs_an_administrators_key(gateway, dial, store, method, key, error):
    request = message_factory.GetMessageClass(method.input_type)()
    with pytest.raises(error):
        await getattr(dial(gateway, key).admin, method.name)(request)
    assert not store.administered


async def test_tenants_are_made_listed_and_changed(admin, store):
    quota = Quota(weight=2, max_queued=5)
    made = await admin.CreateTenant(api.CreateTenantRequest(tenant="acme", quota=quota))
    assert (made.tenant.name, made.tenant.quota) == ("acme", quota)
    changed = await admin.SetQuota(api.SetQuotaRequest(tenant="acme", quota=Quota(max_queued=0)))
    assert changed.tenant.quota == Quota(max_queued=0)
    assert store.administered[-1].quota.HasField("max_queued")
    assert [one.name for one in (await admin.ListTenants(api.ListTenantsRequest())).tenants] == ["acme"]


async def test_pauses_name_the_key_that_asked(admin, store):
    paused = await admin.PauseQueue(api.PauseQueueRequest(tenant="acme", reason="why"))
    assert (paused.pause.tenant, paused.pause.by, paused.pause.reason) == ("acme", "key-2", "why")
    assert not (await admin.ResumeQueue(api.ResumeQueueRequest())).HasField("ended")
    status = await admin.GetQueueStatus(api.GetQueueStatusRequest())
    assert (status.queued, status.max_queued, status.running, status.dead_letters) == (2, 9, 1, 3)
    assert ([one.tenant for one in status.tenants], [one.by for one in status.pauses]) == (["acme"], ["key-0"])


async def test_dead_letters_are_listed_and_retried(admin, store):
    page = await admin.ListDeadLetters(api.ListDeadLettersRequest(tenant="acme", retried=True))
    assert ([one.reason for one in page.dead_letters], page.next_page_token) == (["gone"], "more")
    asked = store.administered[-1]
    assert (asked.tenant, asked.page_size, asked.retried) == ("acme", 50, True)
    made = await admin.RetryDeadLetter(api.RetryDeadLetterRequest(name=NAME))
    assert (made.evaluation, made.repeated_call) == ("evaluations/new", True)
    assert (store.administered[-1].name, store.administered[-1].by) == (NAME, "key-2")


@pytest.mark.parametrize(
    ("rpc", "request_", "field"),
    [
        ("CreateTenant", api.CreateTenantRequest(tenant="A"), "tenant"),
        ("CreateTenant", api.CreateTenantRequest(tenant="a" * 64), "tenant"),
        ("CreateTenant", api.CreateTenantRequest(tenant="a", quota=Quota(weight=0)), "quota.weight"),
        ("SetQuota", api.SetQuotaRequest(tenant="a", quota=Quota(max_priority=101)), "quota.max_priority"),
        ("SetQuota", api.SetQuotaRequest(tenant="a", quota=Quota(max_running=-1)), "quota.max_running"),
        ("SetQuota", api.SetQuotaRequest(tenant="a", quota=Quota(max_stored_bytes=1 << 51)), "quota.max_stored_bytes"),
        ("SetQuota", api.SetQuotaRequest(tenant="a"), "quota"),
        ("PauseQueue", api.PauseQueueRequest(tenant="*"), "tenant"),
        ("PauseQueue", api.PauseQueueRequest(reason="x" * 257), "reason"),
        ("ResumeQueue", api.ResumeQueueRequest(tenant="*"), "tenant"),
        ("ListDeadLetters", api.ListDeadLettersRequest(page_size=1001), "page_size"),
        ("ListDeadLetters", api.ListDeadLettersRequest(page_token="x" * 2000), "page_token"),
        ("RetryDeadLetter", api.RetryDeadLetterRequest(name="x"), "name"),
    ],
)  # fmt: skip
async def test_bad_requests_name_the_field_and_reach_nobody(admin, store, rpc, request_, field):
    with pytest.raises(InvalidArgumentError) as caught:
        await getattr(admin, rpc)(request_)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not store.administered


async def test_what_storage_refuses_reaches_the_caller_whole(admin, client, store, spec):
    store.admin_error = AlreadyExistsError("TENANT_EXISTS", "there is one")
    with pytest.raises(AlreadyExistsError) as exists:
        await admin.CreateTenant(api.CreateTenantRequest(tenant="acme"))
    assert exists.value.reason == "TENANT_EXISTS"
    facts = {"quota": "evaluations_per_day", "limit": "5", "use": "5"}
    until = timedelta(hours=7, seconds=3)
    store.create_error = ResourceExhaustedError("QUOTA_EXCEEDED", "used up", retry_after=until, metadata=facts)
    with pytest.raises(ResourceExhaustedError) as caught:
        await client.evaluations.CreateEvaluation(evaluations.CreateEvaluationRequest(spec=spec))
    assert (caught.value.reason, caught.value.metadata, caught.value.retry_after) == ("QUOTA_EXCEEDED", facts, until)
