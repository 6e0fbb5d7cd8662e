"""`ApiKeyService`: checks the request, calls `ApiKeys`, converts the answer."""

from typing import Any

from crucible.storage.v1 import api_key_service_pb2 as pb
from crucible.storage.v1 import api_key_service_pb2_grpc as rpc
from crucible_storage import checks, convert
from crucible_storage.api_keys import ApiKeys


class ApiKeyServicer(rpc.ApiKeyServiceServicer):
    """API keys for the gateway."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def AuthenticateApiKey(
        self, request: pb.AuthenticateApiKeyRequest, context: Any
    ) -> pb.AuthenticateApiKeyResponse:
        """See the contract."""
        row = await self._keys.authenticate(checks.sha256(request.key_sha256, "key_sha256"))
        return pb.AuthenticateApiKeyResponse(api_key=convert.api_key(row))

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Any) -> pb.CreateApiKeyResponse:
        """See the contract."""
        tenant = checks.name(request.tenant, "tenant")
        description = checks.short(request.description, "description")
        digest = checks.sha256(request.key_sha256, "key_sha256")
        row = await self._keys.create(
            tenant, description, digest, admin=request.admin, by=checks.short(request.by, "by")
        )
        return pb.CreateApiKeyResponse(api_key=convert.api_key(row))

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Any) -> pb.ListApiKeysResponse:
        """See the contract."""
        return pb.ListApiKeysResponse(api_keys=[convert.api_key(row) for row in await self._keys.list()])

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Any) -> pb.RevokeApiKeyResponse:
        """See the contract."""
        row = await self._keys.revoke(request.id, by=checks.short(request.by, "by"))
        return pb.RevokeApiKeyResponse(api_key=convert.api_key(row))
