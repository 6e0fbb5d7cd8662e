"""`AdminService`: checks a request, calls `ApiKeys` or `Evaluations`, converts the answer."""

from typing import Any

from crucible.gateway.v1 import admin_service_pb2 as api
from crucible.gateway.v1 import admin_service_pb2_grpc
from crucible.storage.v1 import api_key_service_pb2 as store
from crucible_gateway import caller, validation
from crucible_gateway.api_keys import ApiKeys
from crucible_gateway.evaluations import Evaluations


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """The public RPCs for administrators; that the caller is one was checked before (see `authentication`)."""

    def __init__(self, keys: ApiKeys, evaluations: Evaluations) -> None:
        self._keys = keys
        self._evaluations = evaluations

    async def CreateApiKey(self, request: api.CreateApiKeyRequest, _context: Any) -> api.CreateApiKeyResponse:
        """See the contract."""
        validation.check_create_key(request)
        admin = request.role == api.ROLE_ADMIN
        key, secret = await self._keys.create(request.tenant, admin=admin, description=request.description)
        return api.CreateApiKeyResponse(api_key=public_key(key), secret=secret)

    async def ListApiKeys(self, _request: api.ListApiKeysRequest, _context: Any) -> api.ListApiKeysResponse:
        """See the contract."""
        return api.ListApiKeysResponse(api_keys=[public_key(key) for key in await self._keys.list()])

    async def RevokeApiKey(self, request: api.RevokeApiKeyRequest, _context: Any) -> api.RevokeApiKeyResponse:
        """See the contract."""
        validation.check_revoke_key(request)
        return api.RevokeApiKeyResponse(api_key=public_key(await self._keys.revoke(request.id)))

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
