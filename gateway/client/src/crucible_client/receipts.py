"""Receipts as files, and their check: offline, with public keys alone."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from crucible.audit.v1 import audit_pb2 as pb
from crucible.evaluation.v1 import evaluation_pb2
from crucible.executor.v1.executor_service_pb2 import FinalRecord, RunOutput
from crucible_client import audit, canonical, convert
from crucible_client.public_keys import PublicKeys
from crucible_client.results import Isolation
from crucible_rpc import merkle
from crucible_rpc.signing import BadSignatureError

RECORD_CONTEXT = "crucible.record.v1"
ACTION = "evaluation.finish"
_EVALUATION = re.compile(r"evaluations/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class ReceiptError(Exception):
    """The receipt does not hold; the text is one sentence that names the part which failed."""


@dataclass(frozen=True, slots=True)
class ProvenReceipt:
    """What a receipt that holds says.

    Attributes:
        evaluation: its name.
        tenant: whose.
        state: SUCCEEDED, FAILED or CANCELLED.
        attempt: the last one; 0 when none was begun.
        termination: how it ended, in words.
        reason: of an infrastructure failure.
        actor: who ended it: the executor, the key that cancelled it, or storage.
        finish_time: when storage stored its end.
        position: of this end in the log.
        log_size: records under the head.
        head_time: when the head was signed.
        head_key: id of storage's key.
        record_key: id of the executor's key; None when no executor signed the end.
        final_record: what the executor signed; None when no executor signed the end: storage alone says all this.
    """

    evaluation: str
    tenant: str
    state: str
    attempt: int
    termination: str
    reason: str
    actor: str
    finish_time: datetime
    position: int
    log_size: int
    head_time: datetime
    head_key: str
    record_key: str | None
    final_record: Mapping[str, Any] | None


def encode(receipt: pb.Receipt) -> bytes:
    """A receipt as a file."""
    return canonical.encode(receipt)


def verify(data: bytes, keys: PublicKeys) -> ProvenReceipt:
    """What the receipt in a file says, when all of it holds.

    Raises:
        ReceiptError: it does not.
    """
    try:
        receipt = canonical.decode(data, pb.Receipt)
    except canonical.MalformedError as error:
        raise ReceiptError(f"the file is no receipt: {error}") from None
    head = _head(receipt, keys)
    _check_inclusion(receipt, head)
    record, details = _record(receipt)
    final = _final_record(receipt, record, details, keys)
    return ProvenReceipt(
        evaluation=record.subject,
        tenant=record.tenant,
        state=details.get("state", ""),
        attempt=int(details.get("attempt", "0")),
        termination=details.get("termination", ""),
        reason=details.get("reason", ""),
        actor=record.actor,
        finish_time=record.time.ToDatetime(tzinfo=UTC),
        position=receipt.position,
        log_size=head.size,
        head_time=head.time,
        head_key=head.key_id,
        record_key=None if final is None else receipt.final_record.key_id,
        final_record=None if final is None else facts(final),
    )


def _head(receipt: pb.Receipt, keys: PublicKeys) -> audit.Head:
    try:
        return audit.verified_head(receipt.head, keys.heads)
    except audit.BadHeadError as error:
        raise ReceiptError(f"the receipt's head of the log does not hold: {error}") from None


def _check_inclusion(receipt: pb.Receipt, head: audit.Head) -> None:
    leaf = merkle.leaf_hash(receipt.record)
    try:
        merkle.check_inclusion(leaf, receipt.position - 1, head.size, receipt.inclusion, head.root)
    except merkle.BadProofError as error:
        raise ReceiptError(f"the receipt's record is not in the signed log at its position: {error}") from None


def _record(receipt: pb.Receipt) -> tuple[pb.AuditRecord, dict[str, str]]:
    try:
        record = pb.AuditRecord.FromString(receipt.record)
    except DecodeError:
        raise ReceiptError("the receipt's record is no record of the audit log") from None
    details = audit.details(record.details)
    numbered = details.get("attempt", "").isdecimal()
    if record.action != ACTION or not _EVALUATION.fullmatch(record.subject) or not numbered:
        raise ReceiptError("the receipt's record is not that of an evaluation's end")
    return record, details


def _final_record(
    receipt: pb.Receipt, record: pb.AuditRecord, details: Mapping[str, str], keys: PublicKeys
) -> FinalRecord | None:
    signed, wanted = receipt.final_record, details.get("final_record_sha256", "")
    if not wanted and not receipt.HasField("final_record"):
        return None
    if hashlib.sha256(signed.payload).hexdigest() != wanted:
        raise ReceiptError("the receipt's final record is not the one that the log names")
    try:
        keys.records.verify(RECORD_CONTEXT, signed.payload, signed.key_id, signed.signature)
        final = FinalRecord.FromString(signed.payload)
    except BadSignatureError as error:
        raise ReceiptError(f"the receipt's final record is not signed by its executor: {error}") from None
    except DecodeError:
        raise ReceiptError("the receipt's final record is none") from None
    if final.evaluation != record.subject or str(final.attempt) != details["attempt"]:
        raise ReceiptError("the receipt's final record is of another evaluation or attempt than the log names")
    return final


def facts(final: FinalRecord) -> dict[str, Any]:
    """What an executor signed, as plain values: digests in hexadecimal, messages as protobuf's JSON."""
    found: dict[str, Any] = {
        "executor": final.executor_id,
        "boot_id": final.boot_id,
        "run_id": final.run_id,
        "runtime": final.runtime,
        "code_sha256": final.code_sha256.hex(),
        "run_spec_sha256": final.run_spec_sha256.hex(),
        "image_digest": final.image_digest,
        "engine": final.engine,
        "engine_version": final.engine_version,
        "isolation": convert.member(Isolation, evaluation_pb2.Isolation, final.isolation, "ISOLATION_").value,
        "stdout": _output(final.stdout),
        "stderr": _output(final.stderr),
    }
    for name in ("limits", "termination", "usage", "behaviour", "accept_time", "start_time", "end_time"):
        if final.HasField(name):
            found[name] = _plain(getattr(final, name))
    found["limit_hits"] = [_plain(hit) for hit in final.limit_hits]
    return found


def _plain(message: Any) -> Any:
    # A time or a duration is a text in protobuf's JSON, which MessageToDict gives as it is.
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _output(output: RunOutput) -> dict[str, Any]:
    return {"bytes_total": output.bytes_total, "bytes_kept": output.bytes_kept, "sha256": output.sha256.hex()}
