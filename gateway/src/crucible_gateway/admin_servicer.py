"""`AdminService`: checks a request, calls `ApiKeys`, `Evaluations`, `QueueControl` or `Audit`, converts the answer."""

from contextlib import aclosing
from typing import Any

from crucible.gateway.v1 import admin_service_pb2 as api
from crucible.gateway.v1 import admin_service_pb2_grpc
from crucible.storage.v1 import api_key_service_pb2 as store
from crucible_gateway import caller, validation
from crucible_gateway.api_keys import ApiKeys
from crucible_gateway.audit import Audit
from crucible_gateway.evaluations import Evaluations
from crucible_gateway.interruption import Interruption
from crucible_gateway.queue_control import QueueControl


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """The public RPCs for administrators; that the caller is one was checked before (see `authentication`).

    Args:
        keys: all API keys.
        evaluations: to be deleted.
        queue: tenants, quotas and pauses.
        audit: the audit log.
        interruption: ends streams when the gateway stops.
    """

    def __init__(
        self, keys: ApiKeys, evaluations: Evaluations, queue: QueueControl, audit: Audit, interruption: Interruption
    ) -> None:
        self._keys = keys
        self._evaluations = evaluations
        self._queue = queue
        self._audit = audit
        self._interruption = interruption

    async def CreateApiKey(self, request: api.CreateApiKeyRequest, _context: Any) -> api.CreateApiKeyResponse:
        """See the contract."""
        validation.check_create_key(request)
        admin = request.role == api.ROLE_ADMIN
        key, secret = await self._keys.create(
            request.tenant, admin=admin, description=request.description, by=caller.current().key_id
        )
        return api.CreateApiKeyResponse(api_key=public_key(key), secret=secret)

    async def ListApiKeys(self, _request: api.ListApiKeysRequest, _context: Any) -> api.ListApiKeysResponse:
        """See the contract."""
        return api.ListApiKeysResponse(api_keys=[public_key(key) for key in await self._keys.list()])

    async def RevokeApiKey(self, request: api.RevokeApiKeyRequest, _context: Any) -> api.RevokeApiKeyResponse:
        """See the contract."""
        validation.check_revoke_key(request)
        revoked = await self._keys.revoke(request.id, by=caller.current().key_id)
        return api.RevokeApiKeyResponse(api_key=public_key(revoked))

    async def ListAuditRecords(
        self, request: api.ListAuditRecordsRequest, _context: Any
    ) -> api.ListAuditRecordsResponse:
        """See the contract."""
        return await self._audit.page(request)

    async def VerifyAudit(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes too
        self, request: api.VerifyAuditRequest, context: Any
    ) -> None:
        """See the contract. Writes by itself, so that a write to a reader that does not read is interrupted too."""
        with self._interruption.waiting():
            async with aclosing(self._audit.verify(request)) as answers:
                async for answer in answers:
                    await context.write(answer)

    async def CreateTenant(self, request: api.CreateTenantRequest, _context: Any) -> api.CreateTenantResponse:
        """See the contract."""
        validation.check_tenant(request.tenant, request.quota)
        return await self._queue.create_tenant(caller.current(), request)

    async def ListTenants(self, _request: api.ListTenantsRequest, _context: Any) -> api.ListTenantsResponse:
        """See the contract."""
        return await self._queue.list_tenants()

    async def SetQuota(self, request: api.SetQuotaRequest, _context: Any) -> api.SetQuotaResponse:
        """See the contract."""
        validation.check_tenant(request.tenant, request.quota, some=True)
        return await self._queue.set_quota(caller.current(), request)

    async def PauseQueue(self, request: api.PauseQueueRequest, _context: Any) -> api.PauseQueueResponse:
        """See the contract."""
        validation.check_pause(request)
        return await self._queue.pause(caller.current(), request)

    async def ResumeQueue(self, request: api.ResumeQueueRequest, _context: Any) -> api.ResumeQueueResponse:
        """See the contract."""
        validation.check_pause(request)
        return await self._queue.resume(caller.current(), request)

    async def GetQueueStatus(self, _request: api.GetQueueStatusRequest, _context: Any) -> api.GetQueueStatusResponse:
        """See the contract."""
        return await self._queue.status()

    async def ListDeadLetters(self, request: api.ListDeadLettersRequest, _context: Any) -> api.ListDeadLettersResponse:
        """See the contract."""
        validation.check_dead_letters(request)
        return await self._queue.dead_letters(request)

    async def RetryDeadLetter(self, request: api.RetryDeadLetterRequest, _context: Any) -> api.RetryDeadLetterResponse:
        """See the contract."""
        validation.check_name(request.name)
        return await self._queue.retry(caller.current(), request.name)

    async def DeleteEvaluation(
        self, request: api.DeleteEvaluationRequest, _context: Any
    ) -> api.DeleteEvaluationResponse:
        """See the contract."""
        validation.check_delete(request)
        answer = await self._evaluations.delete(caller.current(), request.name, request.reason)
        return api.DeleteEvaluationResponse(
            tenant=answer.tenant, deleted=answer.deleted, delete_time=answer.delete_time
        )


def public_key(key: store.StoredApiKey) -> api.ApiKey:
    """A stored key as the public contract shows it."""
    public = api.ApiKey(
        id=key.id,
        tenant=key.tenant,
        role=api.ROLE_ADMIN if key.admin else api.ROLE_USER,
        description=key.description,
        create_time=key.create_time,
    )
    if key.HasField("revoke_time"):
        public.revoke_time.CopyFrom(key.revoke_time)
    return public
