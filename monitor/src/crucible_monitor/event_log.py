"""Storage's event log as monitor calls it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc

from crucible.storage.v1 import event_log_service_pb2 as log_api
from crucible.storage.v1 import event_log_service_pb2_grpc
from crucible_monitor.errors import storage_unavailable
from crucible_rpc.errors import CallCancelledError, CallError, DeadlineExceededError, UnavailableError


class StorageEventLog:
    """The log over gRPC. Both methods raise `CallError`; UnavailableError when storage does not answer.

    Args:
        channel: made by `crucible_rpc.channel.connect`.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._log: Any = event_log_service_pb2_grpc.EventLogServiceStub(channel)

    async def tail(self, after_position: int) -> AsyncGenerator[log_api.TailEventsResponse, None]:
        """All events after a position (-1: only those to come), and then without end."""
        call = self._log.TailEvents(log_api.TailEventsRequest(after_position=after_position))
        async for answer in _answers(call):
            yield answer

    async def read(
        self, tenant: str, evaluation: str, after_position: int
    ) -> AsyncGenerator[log_api.ReadEventsResponse, None]:
        """One evaluation's events after a position, as they are stored now."""
        request = log_api.ReadEventsRequest(tenant=tenant, evaluation=evaluation, after_position=after_position)
        async for answer in _answers(self._log.ReadEvents(request)):
            yield answer


async def _answers(call: Any) -> AsyncGenerator[Any, None]:
    try:
        async with aclosing(aiter(call)) as answers:
            async for answer in answers:
                yield answer
    except (UnavailableError, DeadlineExceededError, CallCancelledError) as error:  # a peer that stops may cancel
        raise storage_unavailable() from error
    except CallError as error:
        if error.reason in ("PEER_UNAUTHENTICATED", "PEER_NOT_PERMITTED"):  # no fault of the watcher's
            raise storage_unavailable() from error
        raise
