"""`MonitorService`: calls `Watches` and converts what it yields."""

from contextlib import aclosing
from datetime import timedelta
from typing import Any

from crucible.evaluation.v1 import event_pb2
from crucible.monitor.v1 import monitor_service_pb2 as api
from crucible.monitor.v1 import monitor_service_pb2_grpc
from crucible_monitor.watches import FellBehind, Watches
from crucible_rpc import logs, readers
from crucible_rpc.errors import FieldViolation, InvalidArgumentError

MAX_NAME_CHARACTERS = 128


class MonitorServicer(monitor_service_pb2_grpc.MonitorServiceServicer):
    """The RPCs for the gateway.

    Args:
        watches: serves them.
        patience: a watcher that reads nothing for this long is ended, and its place given to others.
    """

    def __init__(self, watches: Watches, patience: timedelta) -> None:
        self._watches = watches
        self._patience = patience

    async def Watch(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes too
        self, request: api.WatchRequest, context: Any
    ) -> None:
        """See the contract."""
        check(request)
        logs.bind(evaluation=request.evaluation)
        reached = request.after_position
        items = self._watches.watch(request.tenant, request.evaluation, request.after_position)
        async with aclosing(items) as found:
            async for item in found:
                if not await readers.write(context, response(item), self._patience):
                    readers.give_up(context, reached)
                    return
                reached = reached if isinstance(item, FellBehind) else item.position


def check(request: api.WatchRequest) -> None:
    """Bounds what a caller sends.

    Raises:
        InvalidArgumentError: with the fields at fault.
    """
    found = []
    if not 0 < len(request.tenant) <= MAX_NAME_CHARACTERS:
        found.append(FieldViolation("tenant", f"must be 1 to {MAX_NAME_CHARACTERS} characters"))
    if not 0 < len(request.evaluation) <= MAX_NAME_CHARACTERS:
        found.append(FieldViolation("evaluation", f"must be 1 to {MAX_NAME_CHARACTERS} characters"))
    if request.after_position < 0:
        found.append(FieldViolation("after_position", "must not be negative"))
    if found:
        raise InvalidArgumentError("INVALID_FIELD", f"{found[0].field}: {found[0].description}", found)


def response(item: event_pb2.Event | FellBehind) -> api.WatchResponse:
    """What a watch yields as a message."""
    if isinstance(item, FellBehind):
        return api.WatchResponse(fell_behind_resume_after_position=item.resume_after_position)
    return api.WatchResponse(event=item)
