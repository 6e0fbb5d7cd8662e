"""`ArtifactService`: checks a request, calls `Artifacts`, converts the answer."""

from contextlib import aclosing
from datetime import timedelta
from typing import Any

from crucible.gateway.v1 import artifact_service_pb2 as api
from crucible.gateway.v1 import artifact_service_pb2_grpc
from crucible_gateway import caller, validation
from crucible_gateway.artifacts import Artifacts
from crucible_gateway.interruption import Interruption
from crucible_rpc import readers


class ArtifactServicer(artifact_service_pb2_grpc.ArtifactServiceServicer):
    """The public RPCs of artifacts.

    Args:
        artifacts: the rules.
        interruption: ends streams when the gateway stops.
        patience: a reader that reads nothing for this long is ended, and what it holds at storage with it.
    """

    def __init__(self, artifacts: Artifacts, interruption: Interruption, patience: timedelta) -> None:
        self._artifacts = artifacts
        self._interruption = interruption
        self._patience = patience

    async def ListArtifacts(self, request: api.ListArtifactsRequest, _context: Any) -> api.ListArtifactsResponse:
        """See the contract."""
        validation.check_name(request.evaluation, "evaluation")
        listed = await self._artifacts.list(caller.current(), request.evaluation)
        return api.ListArtifactsResponse(
            artifacts=listed.artifacts, omitted=listed.omitted, not_collected=listed.not_collected
        )

    async def ReadArtifact(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes too
        self, request: api.ReadArtifactRequest, context: Any
    ) -> None:
        """See the contract. Writes by itself, so that a write to a reader that does not read is interrupted too."""
        validation.check_read_artifact(request)
        reached = request.offset
        with self._interruption.waiting():
            async with aclosing(self._artifacts.read(caller.current(), request)) as answers:
                async for answer in answers:
                    part = api.ReadArtifactResponse(offset=answer.offset, data=answer.data)
                    if answer.HasField("artifact"):
                        part.artifact.CopyFrom(answer.artifact)
                    if not await readers.write(context, part, self._patience):
                        readers.give_up(context, reached)
                        return
                    reached = answer.offset + len(answer.data)
