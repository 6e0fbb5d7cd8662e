"""What is noted of each change that a caller or a service makes, in the transaction that makes it.

A record waits in `audit_pending` until the sealer gives it its place in the log: writers do not queue for the chain.
Whoever adds a change that an operator should be able to prove calls `record` beside it.
"""

import hashlib
import json
from typing import Any, NamedTuple

from crucible.audit.v1.audit_pb2 import AuditRecord
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc import merkle
from crucible_storage.clock import timestamp
from crucible_storage.lifecycle import Record
from crucible_storage.names import evaluation_name
from crucible_storage.transaction import WriteTransaction

EVALUATION_CREATE = "evaluation.create"
EVALUATION_CANCEL = "evaluation.cancel"
EVALUATION_FINISH = "evaluation.finish"
EVALUATION_DELETE = "evaluation.delete"
INSPECTION_START = "inspection.start"
KEY_CREATE = "key.create"
KEY_REVOKE = "key.revoke"
LOGIN_FAILURE = "login.failure"
QUEUE_PAUSE = "queue.pause"
QUEUE_RESUME = "queue.resume"
TENANT_CREATE = "tenant.create"
TENANT_QUOTA = "tenant.quota"

STORAGE = "process/storage"
"""The actor of what storage does by itself."""

CHAIN_START = bytes(merkle.HASH_BYTES)
"""What the first record's chain hash is made with in the place of one before it."""

MAX_DETAIL = 256


class Sealed(NamedTuple):
    """A record of the log, as its table has it; `time` in µs since 1970."""

    position: int
    tenant: str
    time: int
    actor: str
    action: str
    subject: str
    details: str
    leaf: bytes
    chain: bytes


def record(
    transaction: WriteTransaction,
    *,
    time: int,
    tenant: str,
    actor: str,
    action: str,
    subject: str,
    **details: object,
) -> None:
    """Notes a change; it is stored with the change or not at all.

    Args:
        transaction: that of the change.
        time: when, in µs since 1970.
        tenant: whose; `models.PLATFORM`: nobody's.
        actor: who: `by_key(…)`, `executor/{id}` or `process/{name}`.
        action: what, in two words with a dot between them; docs/AUDIT.md lists them.
        subject: to what, by its name.
        details: a few facts more, kept as texts of at most 256 characters. Never a secret, nothing of a program.
    """
    row = {"tenant": tenant, "time": time, "actor": actor, "action": action, "subject": subject}
    transaction.append_audit(row | {"details": canonical(details)})


def canonical(details: dict[str, Any]) -> str:
    """Details as one JSON object that can be written in one way only; what is empty is left out."""
    texts = {name: str(value)[:MAX_DETAIL] for name, value in details.items() if value not in ("", None)}
    return json.dumps(texts, sort_keys=True, separators=(",", ":"))


def by_key(key_id: str) -> str:
    """The actor that a caller with this API key is; storage itself, where no key is named."""
    return f"key/{key_id}" if key_id else STORAGE


def evaluation_finished(transaction: WriteTransaction, record_: Record, result: pb.Evaluation, now: int) -> None:
    """Notes how an evaluation ended: the leaf that its receipt rests on."""
    signed = result.provenance.record
    proven = bool(signed.payload)
    termination = result.termination
    kind = termination.WhichOneof("kind") or ""
    cancelled = kind == "cancelled"
    record(
        transaction,
        time=now,
        tenant=record_.tenant,
        actor=f"executor/{record_.executor}" if proven else by_key(record_.cancel_by or "" if cancelled else ""),
        action=EVALUATION_FINISH,
        subject=evaluation_name(record_.id),
        state=pb.EvaluationState.Name(pb.EvaluationState.ValueType(record_.state)).removeprefix("EVALUATION_STATE_"),
        attempt=record_.attempt,
        termination=_ending(termination),
        reason=termination.infrastructure_failure.reason if kind == "infrastructure_failure" else "",
        confirmed=termination.cancelled.confirmed if cancelled else None,
        final_record_sha256=hashlib.sha256(signed.payload).hexdigest() if proven else "",
        run_spec_sha256=record_.run_spec_sha256.hex(),
    )


def _ending(termination: pb.Termination) -> str:
    kind = termination.WhichOneof("kind")
    if kind == "exited":
        return f"exited {termination.exited.code}"
    if kind == "signalled":
        return f"signalled {termination.signalled.signal}"
    if kind == "limit_exceeded":
        return f"limit_exceeded {pb.Limit.Name(termination.limit_exceeded.limit).removeprefix('LIMIT_')}"
    return kind or ""


def message(row: Sealed) -> AuditRecord:
    """A record as the contract has it."""
    return AuditRecord(
        time=timestamp(row.time),
        tenant=row.tenant,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        details=row.details,
    )


def leaf_data(row: Sealed) -> bytes:
    """What of a record is hashed, in one order and form; `leaf` and `chain` are not of it."""
    return message(row).SerializeToString(deterministic=True)


def chained(before: bytes, leaf: bytes) -> bytes:
    """The chain hash of a record with this leaf hash behind one with that chain hash."""
    return hashlib.sha256(before + leaf).digest()
