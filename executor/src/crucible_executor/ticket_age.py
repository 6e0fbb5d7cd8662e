"""How long a ticket is good for, by the executor's own clock: no time of day is compared, of one machine or of two.

The executor told its worker the time, the worker asked storage for work with it, and storage signed it together with
how long the worker had waited by then. So the ticket was made at that time and so much, or later, and what counts from
there ends too early rather than too late.
"""

from __future__ import annotations

from datetime import timedelta

from crucible.executor.v1.executor_service_pb2 import Ticket
from crucible.selftest.v1.inspection_pb2 import InspectionTicket
from crucible_executor.convert import timedelta_of
from crucible_executor.executor_clock import ExecutorClock
from crucible_rpc.errors import InvalidArgumentError, PermissionDeniedError

_DRIFT_S = 1.0
"""What two machines' clocks may differ over a wait, although nobody sets them; some milliseconds are true."""


def end_of(ticket: Ticket | InspectionTicket, clock: ExecutorClock, life: timedelta) -> float:
    """When the ticket is worthless, by `clock`: `life` after it was made.

    Raises:
        PermissionDeniedError: INVALID_TICKET: it is worthless already, or was never made at such a time.
    """
    try:
        since = clock.read(ticket.since)
    except InvalidArgumentError:
        raise invalid("the ticket rests on no time that this start of the executor told") from None
    waited, now = timedelta_of(ticket.waited).total_seconds(), clock.now()
    if not 0 <= waited <= now - since + _DRIFT_S:
        raise invalid("the ticket was made at a time that is yet to come, or before storage was asked for it")
    left = min(since + waited, now) + life.total_seconds() - now
    if left <= 0:
        raise invalid(f"the ticket expired {-left:.1f} s ago: its work may be somebody else's by now")
    return now + left


def invalid(text: str) -> PermissionDeniedError:
    """INVALID_TICKET."""
    return PermissionDeniedError("INVALID_TICKET", text)
