"""The self-tests of what is signed: the records that this executor signs, and the tickets that it accepts."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Callable
from datetime import timedelta

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import records, tickets
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.selftest.model import Check, CheckFailedError, expect
from crucible_executor.tickets import TicketCheck
from crucible_rpc import signing
from crucible_rpc.errors import PermissionDeniedError
from crucible_rpc.signing import BadSignatureError, Signer, Verifier

_LIFE = timedelta(seconds=30)


def checks(signer: Signer, running: TicketCheck) -> tuple[Check, ...]:
    """The checks of records and tickets.

    Args:
        signer: signs the records.
        running: checks the tickets.
    """

    async def records_hold() -> str:
        return _records_hold(signer)

    async def tickets_hold() -> str:
        return _tickets_hold(running)

    return (
        Check("records", "a signature holds for its record alone", records_hold),
        Check("tickets", "only storage's ticket for this start is accepted", tickets_hold),
    )


def _records_hold(signer: Signer) -> str:
    verifier, payload = signer.verifier(), secrets.token_bytes(512)
    made = signer.sign(records.CONTEXT, payload)
    verifier.verify(records.CONTEXT, payload, made.key_id, made.signature)
    altered = bytes([payload[0] ^ 1]) + payload[1:]
    bad = {
        "a changed bit": lambda: verifier.verify(records.CONTEXT, altered, made.key_id, made.signature),
        "another purpose": lambda: verifier.verify(tickets.CONTEXT, payload, made.key_id, made.signature),
    }
    for what, attempt in bad.items():
        expect(_refused(attempt), f"the signature also holds with {what}")
    return f"key {made.key_id}: 1 signature good, {len(bad)} refused ({', '.join(bad)})"


def _tickets_hold(running: TicketCheck) -> str:
    """The running check must refuse what storage did not sign; one with a key of our own shows what it accepts."""
    pair = signing.generate()
    own = Signer(pair.private_pem)
    executor, boot = "x-selftest", uuid.uuid4().hex
    spec = ex.RunSpec(engine=secrets.token_hex(16)).SerializeToString()
    seconds = [0.0]
    clock = ExecutorClock(boot, lambda: seconds[0])
    check = TicketCheck(Verifier.of(pair.public_pem), executor, boot, _LIFE, clock)
    old = _ticket(spec, executor, boot, clock)
    seconds[0] += _LIFE.total_seconds()
    good = _ticket(spec, executor, boot, clock)
    try:
        check.check(check.read(_signed(own, good)), spec)
    except PermissionDeniedError as error:
        raise CheckFailedError(f"a good ticket is refused: {error.message}") from error
    bad = {
        "forged": lambda: running.read(_signed(own, good)),
        "signed for another purpose": lambda: check.read(_signed(own, good, records.CONTEXT)),
        "for another executor": lambda: check.check(_ticket(spec, "x-other", boot, clock), spec),
        "for another start": lambda: check.check(_ticket(spec, executor, "0" * 32, clock), spec),
        "expired": lambda: check.check(old, spec),
        "of a time that nobody told": lambda: check.check(_ticket(spec, executor, boot, ExecutorClock(boot)), spec),
        "for other bytes": lambda: check.check(good, spec + b"x"),
    }
    accepted = [what for what, attempt in bad.items() if not _refused(attempt)]
    expect(not accepted, f"accepted although {', '.join(accepted)}")
    return f"1 good ticket accepted, {len(bad)} refused ({', '.join(bad)})"


def _refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (BadSignatureError, PermissionDeniedError):
        return True
    return False


def _ticket(spec: bytes, executor: str, boot: str, clock: ExecutorClock) -> ex.Ticket:
    evaluation = str(uuid.uuid4())
    return ex.Ticket(
        run_id=f"{evaluation}.1",
        evaluation=f"evaluations/{evaluation}",
        attempt=1,
        run_spec_sha256=hashlib.sha256(spec).digest(),
        executor_id=executor,
        boot_id=boot,
        since=clock.tell(),
    )


def _signed(signer: Signer, ticket: ex.Ticket, context: str = tickets.CONTEXT) -> SignedBytes:
    payload = ticket.SerializeToString()
    signature = signer.sign(context, payload)
    return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)
