"""Storage's signed leave to start one run, and whether it is good for this start of this executor."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta

from google.protobuf.message import DecodeError

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1.executor_service_pb2 import RunSpec, Ticket
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.ticket_age import end_of, invalid
from crucible_rpc.errors import FieldViolation, InvalidArgumentError
from crucible_rpc.signing import BadSignatureError, Verifier

CONTEXT = "crucible.ticket.v1"
MAX_TICKET_BYTES = 64 << 10
MAX_RUN_SPEC_BYTES = 8 << 20

_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[1-9][0-9]{0,8}")


def is_run_id(text: str) -> bool:
    """Whether `text` is `{evaluation uuid}.{attempt}`; attempts count from 1."""
    return _RUN_ID.fullmatch(text) is not None


def checked_run_id(text: str) -> str:
    """`text` when it is a run id.

    Raises:
        InvalidArgumentError: INVALID_FIELD.
    """
    if not is_run_id(text):
        violation = FieldViolation("run_id", "must be {evaluation uuid}.{attempt}")
        raise InvalidArgumentError("INVALID_FIELD", "the run id is malformed", [violation])
    return text


class TicketCheck:
    """Checks tickets for one start of one executor.

    Args:
        verifier: knows storage's public keys.
        executor_id: the only executor that tickets may name.
        boot_id: the only start of it that tickets may name.
        orphan_grace: how long a run may go on after storage gave its lease; no ticket is good for longer.
        clock: by which the age of a ticket is judged.
    """

    def __init__(
        self,
        verifier: Verifier,
        executor_id: str,
        boot_id: str,
        orphan_grace: timedelta,
        clock: ExecutorClock,
    ) -> None:
        self._verifier = verifier
        self._executor_id = executor_id
        self._boot_id = boot_id
        self._orphan_grace = orphan_grace
        self._clock = clock

    def read(self, signed: SignedBytes) -> Ticket:
        """The ticket inside, once its signature is known to be storage's. `check` it before it is used.

        Raises:
            PermissionDeniedError: INVALID_TICKET.
        """
        if not signed.payload:
            raise invalid("there is no ticket; storage issues one for each run")
        if len(signed.payload) > MAX_TICKET_BYTES:
            raise invalid(f"the ticket is larger than {MAX_TICKET_BYTES} bytes")
        try:
            self._verifier.verify(CONTEXT, signed.payload, signed.key_id, signed.signature)
            ticket = Ticket.FromString(signed.payload)
        except BadSignatureError:
            raise invalid("the ticket's signature is not storage's") from None
        except DecodeError:
            raise invalid("the ticket's payload is not a ticket") from None
        expected = f"{ticket.evaluation.removeprefix('evaluations/')}.{ticket.attempt}"
        if not is_run_id(ticket.run_id) or ticket.run_id != expected:
            raise invalid("the ticket's run id is not that of its evaluation and attempt")
        return ticket

    def check(self, ticket: Ticket, run_spec: bytes) -> RunSpec:
        """The spec, when the ticket is good here and now for exactly these bytes.

        Raises:
            PermissionDeniedError: INVALID_TICKET.
        """
        if ticket.executor_id != self._executor_id:
            raise invalid("the ticket is for another executor")
        if ticket.boot_id != self._boot_id:
            raise invalid("the ticket is for another start of this executor")
        self.end_of(ticket)
        if len(run_spec) > MAX_RUN_SPEC_BYTES or hashlib.sha256(run_spec).digest() != ticket.run_spec_sha256:
            raise invalid("the run's spec is not the one that the ticket is for")
        try:
            return RunSpec.FromString(run_spec)
        except DecodeError:
            raise invalid("the run's spec is not one") from None

    def end_of(self, ticket: Ticket) -> float:
        """When the ticket, and every permit that rests on it alone, ends, by the clock.

        However long the ticket was on its way: storage gives the next attempt to somebody else after that.

        Raises:
            PermissionDeniedError: INVALID_TICKET: it has ended.
        """
        return end_of(ticket, self._clock, self._orphan_grace)
