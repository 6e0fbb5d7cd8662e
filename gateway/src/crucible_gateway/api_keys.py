"""Making and ending API keys. A key's text exists in the answer to its creation and nowhere else."""

from typing import Protocol

from crucible.storage.v1 import api_key_service_pb2 as store
from crucible_gateway import auth


class KeyRecords(Protocol):
    """What is needed of storage."""

    async def create_key(self, request: store.CreateApiKeyRequest) -> store.StoredApiKey: ...  # noqa: D102
    async def list_keys(self) -> list[store.StoredApiKey]: ...  # noqa: D102
    async def revoke_key(self, key_id: str, by: str) -> store.StoredApiKey: ...  # noqa: D102


class ApiKeys:
    """All keys of the installation.

    Args:
        records: where they are kept, as SHA-256.
        authenticator: told of revocations, so that a revoked key ends here at once.
    """

    def __init__(self, records: KeyRecords, authenticator: auth.Authenticator) -> None:
        self._records = records
        self._authenticator = authenticator

    async def create(self, tenant: str, *, admin: bool, description: str, by: str) -> tuple[store.StoredApiKey, str]:
        """Makes a key; returns its record and its text. `by` is the id of the key that asks for it."""
        secret = auth.new_secret()
        request = store.CreateApiKeyRequest(
            tenant=tenant, admin=admin, description=description, key_sha256=auth.digest(secret), by=by
        )
        return await self._records.create_key(request), secret

    async def list(self) -> list[store.StoredApiKey]:
        """All keys, oldest first, revoked ones included."""
        return await self._records.list_keys()

    async def revoke(self, key_id: str, *, by: str) -> store.StoredApiKey:
        """Ends a key: this gateway refuses it when this returns, others within the time they remember keys.

        Args:
            key_id: which.
            by: the id of the key that asks for it.

        Raises:
            NotFoundError: API_KEY_NOT_FOUND.
        """
        try:
            return await self._records.revoke_key(key_id, by)
        finally:
            self._authenticator.forget(key_id)  # also when the answer got lost: it may be revoked
