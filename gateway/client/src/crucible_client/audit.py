"""The audit log: its records and what a check finds, as plain values, and the part of the check that is made here."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from google.protobuf.message import DecodeError

from crucible.audit.v1 import audit_pb2 as pb
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible_client import canonical, convert, errors
from crucible_rpc import merkle
from crucible_rpc.signing import BadSignatureError, Verifier

HEAD_CONTEXT = "crucible.head.v1"


class AuditFault(StrEnum):
    """What is wrong; docs/AUDIT.md says more of each."""

    UNKNOWN = "UNKNOWN"
    CHANGED = "CHANGED"
    MISSING = "MISSING"
    INSERTED = "INSERTED"
    MOVED = "MOVED"
    REMOVED = "REMOVED"
    END = "END"
    CHECKPOINT = "CHECKPOINT"
    ROOT = "ROOT"
    TREE = "TREE"
    HISTORY = "HISTORY"


class BadHeadError(Exception):
    """It is no head of the log that a known key signed; the text says why."""


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change that somebody made; `details` are texts by name."""

    position: int
    time: datetime
    tenant: str
    actor: str
    action: str
    subject: str
    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One thing that is wrong with the log, from which record on, in one sentence."""

    fault: AuditFault
    position: int
    message: str


@dataclass(frozen=True, slots=True)
class Head:
    """A head of the log as it was signed.

    Attributes:
        size: records that it covers.
        root: of the Merkle tree over them.
        time: when it was signed.
        key_id: which key signed it.
        signed: the signed bytes, to be kept or sent back.
    """

    size: int
    root: bytes
    time: datetime
    key_id: str
    signed: SignedBytes


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """The end of a check.

    Attributes:
        records: how many were looked at.
        heads: how many were looked at.
        findings: all that is wrong; at most the first 100 were told.
        head: the signed head up to which it was checked; None: nothing was ever sealed.
        consistency: the proof that the log begins with the earlier head that was sent.
    """

    records: int
    heads: int
    findings: int
    head: SignedBytes | None
    consistency: tuple[bytes, ...]


def verified_head(signed: SignedBytes, keys: Verifier) -> Head:
    """The head inside, when one of these keys signed it.

    Raises:
        BadHeadError: it is none.
    """
    try:
        keys.verify(HEAD_CONTEXT, signed.payload, signed.key_id, signed.signature)
        head = pb.Checkpoint.FromString(signed.payload)
    except BadSignatureError as error:
        raise BadHeadError(str(error)) from None
    except DecodeError:
        raise BadHeadError("what was signed is no head") from None
    return Head(head.size, head.root_sha256, _time(head.time), signed.key_id, signed)


def check_history(since: Head, summary: AuditSummary, keys: Verifier) -> AuditFinding | None:
    """Whether the log that was checked begins with an earlier head, by proof and not by the server's word.

    Args:
        since: the earlier head, as it was sent with the check.
        summary: what the check ended with, without findings.
        keys: those of heads.

    Returns:
        What is wrong; None when nothing is.

    Raises:
        BadHeadError: the summary's head is not signed by one of the keys.
    """
    size, root = 0, merkle.EMPTY_ROOT
    if summary.head is not None:
        head = verified_head(summary.head, keys)
        size, root = head.size, head.root
    try:
        merkle.check_consistency(since.size, since.root, size, root, summary.consistency)
    except merkle.BadProofError as error:
        text = f"the log of {size} records does not begin with the {since.size} of the earlier head: {error}"
        return AuditFinding(AuditFault.HISTORY, since.size, text)
    return None


def encode_head(signed: SignedBytes) -> bytes:
    """A head as a file."""
    return canonical.encode(signed)


def decode_head(data: bytes) -> SignedBytes:
    """The head in a file.

    Raises:
        BadHeadError: it holds none.
    """
    try:
        return canonical.decode(data, SignedBytes)
    except canonical.MalformedError as error:
        raise BadHeadError(str(error)) from None


def record(message: pb.LoggedRecord) -> AuditRecord:
    """A record of a page."""
    one = message.record
    return AuditRecord(
        message.position, _time(one.time), one.tenant, one.actor, one.action, one.subject, details(one.details)
    )


def details(text: str) -> dict[str, str]:
    """A record's details by name; none when they are not what they should be."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def verify_request(since: SignedBytes | None) -> admin.VerifyAuditRequest:
    """What `VerifyAudit` takes."""
    return admin.VerifyAuditRequest(since=since)


def verify_result(message: admin.VerifyAuditResponse) -> AuditFinding | AuditSummary | None:
    """A message of `VerifyAudit`; None when it only tells how far it came."""
    kind = message.WhichOneof("kind")
    if kind == "finding":
        one = message.finding
        fault = convert.member(AuditFault, pb.AuditFault, one.fault, "AUDIT_FAULT_")
        return AuditFinding(fault, one.position, one.message)
    if kind == "summary":
        end = message.summary
        head = end.head if end.HasField("head") else None
        return AuditSummary(end.records, end.checkpoints, end.findings, head, tuple(end.consistency))
    return None


def without_summary() -> errors.UnavailableError:
    """The error of a check that ended early."""
    return errors.UnavailableError("STREAM_ENDED", "the server ended the check early; start it again")


def _time(message: Any) -> datetime:
    at: datetime = message.ToDatetime(tzinfo=UTC)
    return at
