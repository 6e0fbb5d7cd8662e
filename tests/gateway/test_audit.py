"""The audit log and receipts through the gateway: who may have what, and what storage is asked."""

import asyncio

import pytest

from crucible.audit.v1 import audit_pb2 as pb
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.gateway.v1 import admin_service_pb2 as admin_api
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible.gateway.v1 import platform_service_pb2 as platform_api
from crucible_rpc.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, UnavailableError
from tests.gateway.conftest import ADMIN_KEY, OTHER_KEY, USER_KEY


async def take(stream):
    return [one async for one in stream]


@pytest.fixture
def admin(gateway, dial):
    return dial(gateway, ADMIN_KEY).admin


async def test_the_log_is_for_administrators_and_nothing_is_asked_of_storage_for_others(gateway, dial, store):
    user = dial(gateway, USER_KEY).admin
    with pytest.raises(PermissionDeniedError):
        await user.ListAuditRecords(admin_api.ListAuditRecordsRequest())
    with pytest.raises(PermissionDeniedError):
        await take(user.VerifyAudit(admin_api.VerifyAuditRequest()))
    assert store.audit_requests == []


async def test_a_page_of_the_log_has_the_default_size_and_goes_on_by_its_token(admin, store):
    page = await admin.ListAuditRecords(admin_api.ListAuditRecordsRequest(subject="keys/k", page_token="t"))
    assert [one.position for one in page.records] == [2, 1]
    assert page.next_page_token == "more"
    (asked,) = store.audit_requests
    assert (asked.page_size, asked.subject, asked.page_token) == (50, "keys/k", "t")


async def test_a_check_streams_findings_and_ends_with_the_summary(admin, store):
    since = SignedBytes(payload=b"head", key_id="k", signature=b"s")
    answers = await take(admin.VerifyAudit(admin_api.VerifyAuditRequest(since=since)))
    assert [one.WhichOneof("kind") for one in answers] == ["records", "finding", "summary"]
    assert (answers[1].finding.fault, answers[1].finding.position) == (pb.AUDIT_FAULT_CHANGED, 17)
    assert answers[2].summary.findings == 1
    assert store.audit_requests[0].since == since
    await take(admin.VerifyAudit(admin_api.VerifyAuditRequest()))
    assert not store.audit_requests[1].HasField("since")


async def test_a_check_ends_with_its_caller_and_with_the_gateway(gateway, admin, store):
    store.verify_endless = True
    call = admin.VerifyAudit(admin_api.VerifyAuditRequest())
    await anext(aiter(call))
    call.cancel()
    await asyncio.wait_for(store.verify_left.wait(), 10)
    stream = aiter(admin.VerifyAudit(admin_api.VerifyAuditRequest()))
    await anext(stream)
    await anext(stream)
    draining = asyncio.ensure_future(gateway.drain())
    with pytest.raises(UnavailableError) as error:
        await anext(stream)
    assert error.value.reason == "SHUTTING_DOWN"
    await draining


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ListAuditRecords", admin_api.ListAuditRecordsRequest(page_size=1001)),
        ("ListAuditRecords", admin_api.ListAuditRecordsRequest(page_size=-1)),
        ("ListAuditRecords", admin_api.ListAuditRecordsRequest(subject="s" * 257)),
        ("ListAuditRecords", admin_api.ListAuditRecordsRequest(subject="a\0b")),
        ("ListAuditRecords", admin_api.ListAuditRecordsRequest(page_token="t" * 2000)),
    ],
)
async def test_absurd_requests_are_refused_by_field(admin, store, method, request_):
    with pytest.raises(InvalidArgumentError) as caught:
        await getattr(admin, method)(request_)
    assert caught.value.violations
    assert store.audit_requests == []


async def test_an_earlier_head_that_is_too_large_is_refused(admin, store):
    with pytest.raises(InvalidArgumentError):
        await take(admin.VerifyAudit(admin_api.VerifyAuditRequest(since=SignedBytes(payload=bytes(9000)))))
    assert store.audit_requests == []


async def test_a_receipt_is_its_tenants_alone(client, gateway, dial, spec):
    made = (await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))).evaluation
    request = api.GetReceiptRequest(name=made.name)
    assert (await client.evaluations.GetReceipt(request)).receipt.position == 7
    with pytest.raises(NotFoundError):
        await dial(gateway, OTHER_KEY).evaluations.GetReceipt(request)
    with pytest.raises(InvalidArgumentError):
        await client.evaluations.GetReceipt(api.GetReceiptRequest(name="evaluations/x"))


async def test_public_keys_are_for_every_key(client):
    answer = await client.platform.ListPublicKeys(platform_api.ListPublicKeysRequest())
    assert [(one.key_id, one.current) for one in answer.public_keys] == [("k", True)]


async def test_storage_is_told_whose_key_made_or_revoked_a_key(admin, store):
    made = await admin.CreateApiKey(admin_api.CreateApiKeyRequest(tenant="acme"))
    await admin.RevokeApiKey(admin_api.RevokeApiKeyRequest(id=made.api_key.id))
    assert [one.by for one in store.key_requests] == ["key-2", "key-2"]
