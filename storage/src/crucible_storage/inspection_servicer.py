"""`InspectionStoreService` and `InspectionWorkService`: check the request, call `Inspections`, convert the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from crucible.selftest.v1 import inspection_pb2
from crucible.storage.v1 import inspection_service_pb2 as pb
from crucible.storage.v1 import inspection_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.inspections import Inspections, Wanted
from crucible_storage.names import invalid

MAX_WAIT_SECONDS = 60.0
MAX_ATTEMPTS = 200
MAX_EVENTS = 200
_VERIFY = inspection_pb2.INSPECTION_KIND_VERIFY_ISOLATION


class InspectionStoreServicer(rpc.InspectionStoreServiceServicer):
    """Inspections for the gateway."""

    def __init__(self, inspections: Inspections) -> None:
        self._inspections = inspections

    async def RunInspection(
        self, request: pb.RunInspectionRequest, context: Any
    ) -> AsyncIterator[pb.RunInspectionResponse]:
        """See the contract."""
        async with aclosing(self._inspections.run(_wanted(request))) as answers:
            async for answer in answers:
                yield answer


class InspectionWorkServicer(rpc.InspectionWorkServiceServicer):
    """Inspections for workers."""

    def __init__(self, inspections: Inspections) -> None:
        self._inspections = inspections

    async def LeaseInspections(self, request: pb.LeaseInspectionsRequest, context: Any) -> pb.LeaseInspectionsResponse:
        """See the contract."""
        wait = checks.seconds(request.wait, MAX_WAIT_SECONDS, "wait")
        since = checks.executor_time(request.since, "since")
        given = await self._inspections.lease(request.executor_id, since, wait)
        return pb.LeaseInspectionsResponse(assignments=given)

    async def ReportInspection(self, request: pb.ReportInspectionRequest, context: Any) -> pb.ReportInspectionResponse:
        """See the contract."""
        events = checks.at_most(request.events, MAX_EVENTS, "events")
        kind = request.WhichOneof("outcome")
        outcome = None if kind is None else getattr(request, kind)
        stop = await self._inspections.report(request.executor_id, request.inspection_id, events, outcome)
        return pb.ReportInspectionResponse(stop=stop)


def _wanted(request: pb.RunInspectionRequest) -> Wanted:
    if request.kind not in inspection_pb2.InspectionKind.values()[1:]:
        raise invalid("kind", "must be SELF_TEST or VERIFY_ISOLATION")
    verifies = request.kind == _VERIFY
    if request.engine or verifies:
        checks.name(request.engine, "engine")
    if request.attempts and not verifies:
        raise invalid("attempts", "are for VERIFY_ISOLATION alone")
    attempts = [checks.name(one, "attempts") for one in checks.at_most(request.attempts, MAX_ATTEMPTS, "attempts")]
    return Wanted(
        tenant=checks.name(request.tenant, "tenant"),
        creator=checks.short(request.creator, "creator"),
        kind=request.kind,
        engine=request.engine,
        attempts=tuple(attempts),
    )
