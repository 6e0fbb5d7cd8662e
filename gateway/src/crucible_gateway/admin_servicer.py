"""`AdminService`: checks a request, calls `ApiKeys` or `Audit`, converts the answer."""

from contextlib import aclosing
from typing import Any

from crucible.gateway.v1 import admin_service_pb2 as api
from crucible.gateway.v1 import admin_service_pb2_grpc
from crucible.storage.v1 import api_key_service_pb2 as store
from crucible_gateway import caller, validation
from crucible_gateway.api_keys import ApiKeys
from crucible_gateway.audit import Audit
from crucible_gateway.interruption import Interruption


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """The public RPCs for administrators; that the caller is one was checked before (see `authentication`).

    Args:
        keys: all API keys.
        audit: the audit log.
        interruption: ends streams when the gateway stops.
    """

    def __init__(self, keys: ApiKeys, audit: Audit, interruption: Interruption) -> None:
        self._keys = keys
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
