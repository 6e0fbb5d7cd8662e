"""The executor's signed statement of one run: drafted when the run is accepted, completed and signed when it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import convert
from crucible_executor.behaviour import Behaviour
from crucible_executor.ceilings import in_force
from crucible_executor.engines.base import Capabilities
from crucible_executor.model import (
    Artifact,
    Exited,
    File,
    Killed,
    LimitExceeded,
    LimitHit,
    Limits,
    Outcome,
    SandboxFailed,
    Signalled,
    Source,
)
from crucible_executor.model import Limit as LimitName
from crucible_executor.output import KeptOutput
from crucible_executor.run import KillCause
from crucible_rpc.signing import Signer

CONTEXT = "crucible.record.v1"
MAX_DETAIL_CHARACTERS = 1000

_CAUSES = {
    KillCause.REQUESTED: (ex.KILL_CAUSE_REQUESTED, "the executor was told to end it, and its processes are gone"),
    KillCause.PERMIT_EXPIRED: (
        ex.KILL_CAUSE_PERMIT_EXPIRED,
        "its permit ended without an extension; its processes are gone",
    ),
    KillCause.SHUTDOWN: (ex.KILL_CAUSE_SHUTDOWN, "the executor stopped and ended it; its processes are gone"),
}
_LIMIT_SOURCES = {
    LimitName.WALL_TIME: ev.EVIDENCE_SOURCE_EXECUTOR_CLOCK,
    LimitName.CPU_TIME: ev.EVIDENCE_SOURCE_CGROUP,
    LimitName.MEMORY: ev.EVIDENCE_SOURCE_CGROUP,
    LimitName.OUTPUT: ev.EVIDENCE_SOURCE_OUTPUT_COUNT,
}
_HIT_SOURCES = {
    Source.PIDS_CGROUP: ev.EVIDENCE_SOURCE_CGROUP,
    Source.HOST_FILE_SYSTEM: ev.EVIDENCE_SOURCE_HOST_FILE_SYSTEM,
    Source.SANDBOX_KERNEL: ev.EVIDENCE_SOURCE_SANDBOX_KERNEL,
    Source.SANDBOX_INIT: ev.EVIDENCE_SOURCE_SANDBOX_INIT,
}


@dataclass(frozen=True)
class Ran:
    """What ran a program."""

    runtime: str
    image_digest: str
    engine: Capabilities
    limits: Limits


def code_sha256(files: Iterable[File]) -> bytes:
    """The digest of a program's files that `FinalRecord.code_sha256` describes."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda one: one.path.encode()):
        path = file.path.encode()
        digest.update(len(path).to_bytes(8, "big") + path + len(file.content).to_bytes(8, "big") + file.content)
    return digest.digest()


def draft(ticket: ex.Ticket, ran: Ran, files: Iterable[File], accepted: datetime) -> ex.FinalRecord:
    """The part of a run's record that is known before it starts."""
    record = ex.FinalRecord(
        run_id=ticket.run_id,
        evaluation=ticket.evaluation,
        attempt=ticket.attempt,
        lease_epoch=ticket.lease_epoch,
        run_spec_sha256=ticket.run_spec_sha256,
        code_sha256=code_sha256(files),
        runtime=ran.runtime,
        image_digest=ran.image_digest,
        engine=ran.engine.name,
        engine_version=ran.engine.version,
        isolation=convert.ISOLATIONS[ran.engine.isolation],
        limits=convert.limits(in_force(ran.limits, ran.engine.enforces)),
        executor_id=ticket.executor_id,
        boot_id=ticket.boot_id,
    )
    record.accept_time.FromDatetime(accepted)
    return record


class Records:
    """Completes and signs records.

    Args:
        signer: the executor's key.
    """

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def of_outcome(
        self,
        record: ex.FinalRecord,
        outcome: Outcome,
        cause: KillCause | None,
        *,
        stdout: KeptOutput,
        stderr: KeptOutput,
        started: datetime | None,
        ended: datetime,
    ) -> SignedBytes:
        """The signed record of a run that this start of the executor saw to its end.

        Args:
            record: the draft; completed in place.
            outcome: what the engine said.
            cause: why the executor ended it, when it did.
            stdout: what it wrote.
            stderr: what it wrote.
            started: when its program was started; None when it never was.
            ended: when its processes were gone.
        """
        record.termination.CopyFrom(termination(outcome, cause, started=started is not None))
        record.limit_hits.extend(_limit_hit(hit) for hit in outcome.limit_hits)
        record.unobserved_limits.extend(sorted(convert.LIMITS[limit] for limit in outcome.unobserved))
        record.behaviour.CopyFrom(convert.behaviour(_behaviour(outcome, record.engine, started=started is not None)))
        record.stdout.CopyFrom(_run_output(stdout))
        record.stderr.CopyFrom(_run_output(stderr))
        left = outcome.artifacts
        record.artifacts.extend(_artifact(file) for file in left.files)
        record.artifacts_omitted = left.omitted
        record.artifacts_not_collected = _cut(left.not_collected)
        if started is not None:
            record.start_time.FromDatetime(started)
        if outcome.usage.wall_time:  # an engine that failed measured nothing
            record.usage.CopyFrom(convert.usage(outcome.usage))
        record.end_time.FromDatetime(ended)
        return self._signed(record)

    def of_lost(self, record: ex.FinalRecord, detail: str, ended: datetime) -> SignedBytes:
        """The signed record of a run whose executor ended before it did.

        Its outputs stay unset: nobody knows all that it wrote.
        """
        for name in (
            "stdout", "stderr", "usage", "start_time", "artifacts", "artifacts_omitted", "artifacts_not_collected"
        ):  # fmt: skip
            record.ClearField(name)
        record.termination.Clear()
        record.behaviour.CopyFrom(convert.behaviour(Behaviour.not_observed("the executor ended before the run did")))
        record.termination.lost.detail = _cut(detail)
        record.termination.evidence.source = ev.EVIDENCE_SOURCE_EXECUTOR
        record.termination.evidence.detail = _cut(detail)
        record.end_time.FromDatetime(ended)
        return self._signed(record)

    def _signed(self, record: ex.FinalRecord) -> SignedBytes:
        payload = record.SerializeToString(deterministic=True)
        signature = self._signer.sign(CONTEXT, payload)
        return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)


def termination(outcome: Outcome, cause: KillCause | None, *, started: bool) -> ex.RunTermination:
    """How a run ended, with what shows it."""
    message = ex.RunTermination()
    source, detail = ev.EVIDENCE_SOURCE_SANDBOX_INIT, ""
    match outcome.termination:
        case Exited(code):
            message.exited.code = code
            detail = f"the program ended by itself with exit code {code}"
        case Signalled(signal):
            message.signalled.signal = signal
            detail = f"signal {signal} ended the program"
        case LimitExceeded(limit, evidence):
            message.limit_exceeded.limit = convert.LIMITS[limit]
            source, detail = _LIMIT_SOURCES.get(limit, ev.EVIDENCE_SOURCE_EXECUTOR), evidence
        case Killed():
            message.killed.cause, detail = _CAUSES[cause or KillCause.REQUESTED]
            source = ev.EVIDENCE_SOURCE_EXECUTOR
            detail = detail if started else f"{detail}; its program was never started"
        case SandboxFailed(reason):
            message.sandbox_failed.reason = _cut(reason)
            source, detail = ev.EVIDENCE_SOURCE_EXECUTOR, reason
    message.evidence.source = source
    message.evidence.detail = _cut(detail)
    return message


def _behaviour(outcome: Outcome, engine: str, *, started: bool) -> Behaviour:
    if not started:
        return Behaviour.not_observed("the program was never started")
    return outcome.behaviour or Behaviour.no_trace(engine)


def _limit_hit(hit: LimitHit) -> ev.LimitHit:
    detail = _cut(f"{hit.detail} (seen by: {hit.source.value})")
    evidence = ev.Evidence(source=_HIT_SOURCES[hit.source], detail=detail)
    return ev.LimitHit(limit=convert.LIMITS[hit.limit], evidence=evidence)


def _run_output(output: KeptOutput) -> ex.RunOutput:
    return ex.RunOutput(bytes_total=output.total, bytes_kept=output.kept, sha256=output.sha256)


def _artifact(file: Artifact) -> ex.RunArtifact:
    return ex.RunArtifact(path=file.path, bytes_total=file.bytes_total, bytes_kept=file.bytes_kept, sha256=file.sha256)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARACTERS else text[: MAX_DETAIL_CHARACTERS - 1] + "…"
