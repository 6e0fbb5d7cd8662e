"""The executor's RPC for inspections: calls `Inspections`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from crucible.executor.v1 import inspection_service_pb2 as pb
from crucible.executor.v1 import inspection_service_pb2_grpc
from crucible_executor.inspections import Inspections


class InspectionServicer(inspection_service_pb2_grpc.InspectionServiceServicer):
    """Speaks protobuf; the rules are in `Inspections`.

    Args:
        inspections: this executor's.
    """

    def __init__(self, inspections: Inspections) -> None:
        self._inspections = inspections

    async def RunInspection(
        self, request: pb.RunInspectionRequest, context: Any
    ) -> AsyncIterator[pb.RunInspectionResponse]:
        """See the contract."""
        async with aclosing(self._inspections.run(request.ticket)) as events:
            async for event in events:
                yield pb.RunInspectionResponse(event=event)
