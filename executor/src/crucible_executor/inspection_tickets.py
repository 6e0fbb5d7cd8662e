"""Storage's signed leave to inspect this executor, good once and for one start of it."""

from __future__ import annotations

import re
from datetime import timedelta

from google.protobuf.message import DecodeError

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.ticket_age import end_of, invalid
from crucible_rpc.signing import BadSignatureError, Verifier

CONTEXT = "crucible.inspection.ticket.v1"
MAX_TICKET_BYTES = 64 << 10
MAX_ATTEMPTS = 200

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_KINDS = frozenset({pb.INSPECTION_KIND_SELF_TEST, pb.INSPECTION_KIND_VERIFY_ISOLATION})


class InspectionTicketCheck:
    """Checks tickets of inspections for one start of one executor, and takes each once.

    Args:
        verifier: knows storage's public keys.
        executor_id: the only executor that tickets may name.
        boot_id: the only start of it that tickets may name.
        life: how long a ticket is good for.
        clock: by which its age is judged.
    """

    def __init__(
        self,
        verifier: Verifier,
        executor_id: str,
        boot_id: str,
        life: timedelta,
        clock: ExecutorClock,
    ) -> None:
        self._verifier = verifier
        self._executor_id = executor_id
        self._boot_id = boot_id
        self._life = life
        self._clock = clock
        self._used: dict[str, float] = {}

    def take(self, signed: SignedBytes) -> pb.InspectionTicket:
        """The ticket inside, when it is storage's, good here and now, and was never taken before.

        Raises:
            PermissionDeniedError: INVALID_TICKET.
        """
        ticket = self._read(signed)
        if ticket.executor_id != self._executor_id:
            raise invalid("the ticket is for another executor")
        if ticket.boot_id != self._boot_id:
            raise invalid("the ticket is for another start of this executor")
        ends, now = end_of(ticket, self._clock, self._life), self._clock.now()
        self._used = {used: until for used, until in self._used.items() if until > now}
        if ticket.inspection_id in self._used:
            raise invalid("the ticket was used before")
        self._used[ticket.inspection_id] = ends
        return ticket

    def _read(self, signed: SignedBytes) -> pb.InspectionTicket:
        if not signed.payload:
            raise invalid("there is no ticket; storage issues one for each inspection")
        if len(signed.payload) > MAX_TICKET_BYTES:
            raise invalid(f"the ticket is larger than {MAX_TICKET_BYTES} bytes")
        try:
            self._verifier.verify(CONTEXT, signed.payload, signed.key_id, signed.signature)
            ticket = pb.InspectionTicket.FromString(signed.payload)
        except BadSignatureError:
            raise invalid("the ticket's signature is not storage's") from None
        except DecodeError:
            raise invalid("the ticket's payload is not a ticket") from None
        if _ID.fullmatch(ticket.inspection_id) is None or ticket.kind not in _KINDS:
            raise invalid("the ticket names no inspection")
        names = [*ticket.attempts, *([ticket.engine] if ticket.engine else [])]
        if len(ticket.attempts) > MAX_ATTEMPTS or not all(_NAME.fullmatch(name) for name in names):
            raise invalid("the ticket names an engine or an attempt that cannot be one")
        return ticket
