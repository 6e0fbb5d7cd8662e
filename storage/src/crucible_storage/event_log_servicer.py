"""`EventLogService`: checks the request, calls `EventLog`, converts the answer."""

from collections.abc import AsyncIterator
from typing import Any

from crucible.storage.v1 import event_log_service_pb2 as pb
from crucible.storage.v1 import event_log_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.event_log import EventLog
from crucible_storage.names import parse_evaluation_name

_MAX_POSITION = 1 << 60


class EventLogServicer(rpc.EventLogServiceServicer):
    """The event log for the monitor."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def TailEvents(self, request: pb.TailEventsRequest, context: Any) -> AsyncIterator[pb.TailEventsResponse]:
        """See the contract."""
        after = checks.between(request.after_position, -1, _MAX_POSITION, "after_position")
        async for batch in self._log.tail(after):
            yield pb.TailEventsResponse(events=batch.events, last_position=batch.last_position)

    async def ReadEvents(self, request: pb.ReadEventsRequest, context: Any) -> AsyncIterator[pb.ReadEventsResponse]:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.evaluation, "evaluation")
        after = checks.between(request.after_position, 0, _MAX_POSITION, "after_position")
        async for batch in self._log.read(request.tenant, evaluation_id, after):
            yield pb.ReadEventsResponse(events=batch.events, last_position=batch.last_position)
