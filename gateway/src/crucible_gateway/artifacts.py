"""A caller's artifacts: what storage has of them."""

from collections.abc import AsyncGenerator
from typing import Protocol

from crucible.gateway.v1 import artifact_service_pb2 as api
from crucible.storage.v1 import artifact_store_service_pb2 as store
from crucible_gateway.caller import Caller
from crucible_rpc import logs


class ArtifactStore(Protocol):
    """What is needed of storage."""

    async def list_artifacts(self, request: store.ListArtifactsRequest) -> store.ListArtifactsResponse: ...  # noqa: D102

    def read_artifact(self, request: store.ReadArtifactRequest) -> AsyncGenerator[store.ReadArtifactResponse, None]: ...  # noqa: D102


class Artifacts:
    """Artifacts of the caller's tenant. Requests are valid by themselves when they get here (see `validation`).

    Args:
        storage: where they are kept.
    """

    def __init__(self, storage: ArtifactStore) -> None:
        self._storage = storage

    async def list(self, caller: Caller, evaluation: str) -> store.ListArtifactsResponse:
        """The files of an evaluation."""
        logs.bind(evaluation=evaluation)
        request = store.ListArtifactsRequest(tenant=caller.tenant, evaluation=evaluation)
        return await self._storage.list_artifacts(request)

    def read(
        self, caller: Caller, request: api.ReadArtifactRequest
    ) -> AsyncGenerator[store.ReadArtifactResponse, None]:
        """Bytes of one file."""
        logs.bind(evaluation=request.evaluation)
        return self._storage.read_artifact(
            store.ReadArtifactRequest(
                tenant=caller.tenant,
                evaluation=request.evaluation,
                path=request.path,
                offset=request.offset,
                limit=request.limit,
            )
        )
