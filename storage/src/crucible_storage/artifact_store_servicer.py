"""`ArtifactStoreService`: checks the request, calls `Uploads` or `Artifacts`, converts the answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from crucible.storage.v1 import artifact_store_service_pb2 as pb
from crucible.storage.v1 import artifact_store_service_pb2_grpc as rpc
from crucible_rpc.errors import UnavailableError
from crucible_storage import checks
from crucible_storage.artifacts.artifacts import Artifacts
from crucible_storage.artifacts.uploads import Uploads, Wanted
from crucible_storage.names import invalid, parse_evaluation_name, parse_run_id

MAX_DATA = 1 << 20
_MAX_SIZE = 1 << 40
_PATIENCE_SECONDS = 60.0


class ArtifactStoreServicer(rpc.ArtifactStoreServiceServicer):
    """Artifacts for the worker and the gateway."""

    def __init__(self, uploads: Uploads, artifacts: Artifacts) -> None:
        self._uploads = uploads
        self._artifacts = artifacts

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Any
    ) -> pb.UploadArtifactResponse:
        """See the contract."""
        requests = _patient(request_iterator)
        first = await anext(requests, pb.UploadArtifactRequest())
        wanted = _wanted(first)
        stored = await self._uploads.store(wanted, _data(requests))
        return pb.UploadArtifactResponse(
            bytes_kept=stored.size, sha256=stored.sha256, truncated=stored.size < wanted.size
        )

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.evaluation, "evaluation")
        listed = await self._artifacts.list(request.tenant, evaluation_id)
        return pb.ListArtifactsResponse(
            artifacts=listed.artifacts, omitted=listed.omitted, not_collected=listed.not_collected
        )

    async def ReadArtifact(
        self, request: pb.ReadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.ReadArtifactResponse]:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.evaluation, "evaluation")
        path = checks.artifact_path(request.path, "path")
        first = checks.between(request.offset, 0, _MAX_SIZE, "offset")
        limit = checks.between(request.limit, 0, _MAX_SIZE, "limit")
        async with aclosing(self._artifacts.read(request.tenant, evaluation_id, path, first, limit)) as parts:
            async for artifact, offset, data in parts:
                told = artifact if offset == first else None
                yield pb.ReadArtifactResponse(offset=offset, data=data, artifact=told)


def _wanted(first: pb.UploadArtifactRequest) -> Wanted:
    if first.WhichOneof("kind") != "header":
        raise invalid("header", "must come first")
    header = first.header
    run = parse_run_id(header.lease.run_id)
    if run is None:
        raise invalid("header.lease.run_id", "must be a UUID in lower case, a dot and a number")
    return Wanted(
        executor=checks.name(header.executor_id, "header.executor_id"),
        run=run,
        epoch=header.lease.epoch,
        path=checks.artifact_path(header.path, "header.path"),
        size=checks.between(header.size, 0, _MAX_SIZE, "header.size"),
        sha256=checks.sha256(header.sha256, "header.sha256"),
    )


async def _patient(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[pb.UploadArtifactRequest]:
    """The stream, which ends with an error when nothing comes for too long."""
    while True:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                request = await anext(requests, None)
        except TimeoutError:
            text = f"nothing came for {_PATIENCE_SECONDS:.0f} s, so the upload was given up; send it again"
            raise UnavailableError("STREAM_STALLED", text, retry_after=timedelta(seconds=1)) from None
        if request is None:
            return
        yield request


async def _data(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("kind") != "data" or not 0 < len(request.data) <= MAX_DATA:
            raise invalid("data", f"must follow the header, in messages of 1 to {MAX_DATA} bytes")
        yield request.data
