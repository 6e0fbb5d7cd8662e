"""The two peers' inspection services over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import inspection_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible.executor.v1.inspection_service_pb2_grpc import InspectionServiceStub
from crucible.storage.v1 import inspection_service_pb2 as pb
from crucible.storage.v1.inspection_service_pb2_grpc import InspectionWorkServiceStub

_CALL_SECONDS = 5.0


class GrpcInspectionStorage:
    """`InspectionStorage` over a channel of `crucible_rpc.channel.connect`."""

    def __init__(self, channel: Any) -> None:
        self._stub: Any = InspectionWorkServiceStub(channel)

    async def lease(self, executor_id: str, since: ExecutorTime, wait: timedelta) -> Sequence[pb.InspectionAssignment]:
        """See `InspectionStorage`."""
        request = pb.LeaseInspectionsRequest(executor_id=executor_id, since=since)
        request.wait.FromTimedelta(wait)
        answer = await self._stub.LeaseInspections(request, timeout=wait.total_seconds() + _CALL_SECONDS)
        return list(answer.assignments)

    async def report(
        self,
        executor_id: str,
        inspection_id: str,
        events: Sequence[SignedBytes],
        outcome: pb.InspectionRefused | pb.InspectionLost | None,
    ) -> bool:
        """See `InspectionStorage`."""
        request = pb.ReportInspectionRequest(executor_id=executor_id, inspection_id=inspection_id, events=events)
        if isinstance(outcome, pb.InspectionRefused):
            request.refused.CopyFrom(outcome)
        elif outcome is not None:
            request.lost.CopyFrom(outcome)
        answer = await self._stub.ReportInspection(request, timeout=_CALL_SECONDS)
        return bool(answer.stop)


class GrpcInspectionExecutor:
    """`InspectionExecutor` over a channel of `crucible_rpc.channel.connect`."""

    def __init__(self, channel: Any) -> None:
        self._stub: Any = InspectionServiceStub(channel)

    async def inspect(self, ticket: SignedBytes) -> AsyncGenerator[SignedBytes, None]:
        """See `InspectionExecutor`."""
        call = self._stub.RunInspection(ex.RunInspectionRequest(ticket=ticket))
        async with aclosing(aiter(call)) as answers:
            async for answer in answers:
                yield answer.event
