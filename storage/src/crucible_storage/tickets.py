"""Tickets: storage's signed leave for one start of one executor to start one run, or to make one inspection, once."""

import json
from dataclasses import dataclass
from datetime import timedelta

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.selftest.v1 import inspection_pb2
from crucible_rpc.signing import Signer
from crucible_storage.clock import Clock, duration, timestamp
from crucible_storage.lifecycle import Record
from crucible_storage.models import InspectionRow
from crucible_storage.names import evaluation_name
from crucible_storage.policy import Policy

CONTEXT = "crucible.ticket.v1"
INSPECTION_CONTEXT = "crucible.inspection.ticket.v1"


@dataclass(frozen=True, slots=True)
class Asked:
    """That a worker asked for work.

    Attributes:
        since: what its executor's clock said before.
        at: when that came, by `clock`'s monotonic time.
        clock: storage's.
    """

    since: ex.ExecutorTime
    at: float
    clock: Clock

    @property
    def waited(self) -> timedelta:
        """For how long it has waited by now."""
        return timedelta(seconds=max(0.0, self.clock.monotonic() - self.at))


def issue(record: Record, asked: Asked, now: int, signer: Signer, policy: Policy) -> SignedBytes:
    """A signed ticket for the attempt that the record's lease was just given for."""
    payload = ex.Ticket(
        run_id=record.run_id,
        evaluation=evaluation_name(record.id),
        attempt=record.attempt,
        run_spec_sha256=record.run_spec_sha256,
        limits=pb.Limits.FromString(record.limits),
        lease_epoch=record.epoch,
        executor_id=record.executor or "",
        boot_id=record.boot_id or "",
        issue_time=timestamp(now),
        since=asked.since,
        waited=duration(asked.waited),
        max_artifact_bytes=policy.max_artifact_bytes,
    ).SerializeToString()
    return _signed(signer, CONTEXT, payload)


def issue_inspection(row: InspectionRow, asked: Asked, now: int, signer: Signer) -> SignedBytes:
    """A signed ticket for the inspection that was just given to a start of its executor."""
    payload = inspection_pb2.InspectionTicket(
        inspection_id=row.id,
        kind=inspection_pb2.InspectionKind.ValueType(row.kind),
        engine=row.engine,
        attempts=json.loads(row.attempts),
        executor_id=row.executor,
        boot_id=row.boot_id,
        issue_time=timestamp(now),
        since=asked.since,
        waited=duration(asked.waited),
    ).SerializeToString()
    return _signed(signer, INSPECTION_CONTEXT, payload)


def _signed(signer: Signer, context: str, payload: bytes) -> SignedBytes:
    signature = signer.sign(context, payload)
    return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)
