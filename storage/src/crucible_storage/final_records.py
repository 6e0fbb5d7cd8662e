"""The executor's signed final record: whether it is genuine, whether it is this run's, and what it says of the end."""

from itertools import pairwise

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.artifact_pb2 import ArtifactSummary
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import InvalidArgumentError
from crucible_rpc.signing import BadSignatureError, Verifier
from crucible_storage import checks
from crucible_storage.lifecycle import Record
from crucible_storage.names import evaluation_name

CONTEXT = "crucible.record.v1"
MAX_RECORD = 64 << 10
MAX_HITS = 64
MAX_ARTIFACTS = 256
MAX_PATHS_BYTES = 16 << 10
MAX_REASON_CHARACTERS = 1000
MAX_CPU_SECONDS = 366 * 86_400

_KILL_CAUSES = {
    ex.KILL_CAUSE_REQUESTED: "the run was killed and nobody had asked to cancel it",
    ex.KILL_CAUSE_PERMIT_EXPIRED: "the executor ended the run because its permit was not extended in time",
    ex.KILL_CAUSE_SHUTDOWN: "the executor stopped while the run was under way",
}


def verified(signed: SignedBytes, verifier: Verifier) -> ex.FinalRecord:
    """The record inside, when an executor signed it.

    Raises:
        InvalidArgumentError: INVALID_RECORD.
    """
    if len(signed.payload) > MAX_RECORD:
        raise invalid(f"the final record is larger than {MAX_RECORD} bytes")
    try:
        verifier.verify(CONTEXT, signed.payload, signed.key_id, signed.signature)
        return ex.FinalRecord.FromString(signed.payload)
    except BadSignatureError:
        raise invalid("the final record is not signed by a known executor") from None
    except DecodeError:
        raise invalid("the final record is not a FinalRecord message") from None


def check_is_of(final: ex.FinalRecord, record: Record) -> None:
    """Checks that the record speaks of the run whose lease is held.

    The boot id is not compared: what an executor's start left behind is told of by its next one.

    Raises:
        InvalidArgumentError: INVALID_RECORD.
    """
    facts = {
        "run id": (final.run_id, record.run_id),
        "evaluation": (final.evaluation, evaluation_name(record.id)),
        "attempt": (final.attempt, record.attempt),
        "lease epoch": (final.lease_epoch, record.epoch),
        "digest of the run spec": (final.run_spec_sha256, record.run_spec_sha256),
        "executor": (final.executor_id, record.executor),
    }
    if ended_by_itself(final):
        facts["engine"] = (final.engine, record.engine)
        facts["runtime"] = (final.runtime, record.runtime)
    for name, (said, expected) in facts.items():
        if said != expected:
            raise invalid(f"the final record's {name} is not this run's")
    if ended_by_itself(final):
        _check_limits(final.limits, pb.Limits.FromString(record.limits))
    named = max(len(final.limit_hits), len(final.unobserved_limits))
    if named > MAX_HITS or final.termination.WhichOneof("kind") is None:
        raise invalid("the final record does not say how the run ended, or names too many limits")
    _check_artifacts(final)


def _check_artifacts(final: ex.FinalRecord) -> None:
    paths = [one.path.encode() for one in final.artifacts]
    if len(paths) > MAX_ARTIFACTS or sum(map(len, paths)) > MAX_PATHS_BYTES or final.artifacts_omitted < 0:
        raise invalid("the final record lists too many artifacts")
    if len(final.artifacts_not_collected) > MAX_REASON_CHARACTERS:
        raise invalid("the final record says at too great length why artifacts were not collected")
    if any(one >= other for one, other in pairwise(paths)):
        raise invalid("the final record's artifacts are not in the order of their paths")
    for one in final.artifacts:
        sound = 0 <= one.bytes_kept <= one.bytes_total and len(one.sha256) == checks.SHA256_BYTES
        if not sound or not checks.is_artifact_path(one.path):
            raise invalid("the final record lists an artifact that cannot be")


def _check_limits(said: pb.Limits, asked: pb.Limits) -> None:
    """What was asked for must be what was in force; the executor adds its own for what was not."""
    for field, value in asked.ListFields():
        stated = getattr(said, field.name)
        same = stated == value
        if isinstance(value, Duration):  # an executor's clock has no nanoseconds
            same = stated.ToMicroseconds() == value.ToMicroseconds()
        if not same:
            raise invalid(f"the final record's limit {field.name} is not this run's")


def ended_by_itself(final: ex.FinalRecord) -> bool:
    """Whether the program ended, by itself or by a limit: then there is nothing to try again."""
    return final.termination.WhichOneof("kind") in ("exited", "signalled", "limit_exceeded")


def killed_on_request(final: ex.FinalRecord) -> bool:
    """Whether somebody had the executor end it."""
    return final.termination.killed.cause == ex.KILL_CAUSE_REQUESTED


def failure(final: ex.FinalRecord) -> str:
    """What of the infrastructure failed, for an end that is not the program's."""
    termination = final.termination
    kind = termination.WhichOneof("kind")
    if kind == "killed":
        return _KILL_CAUSES.get(termination.killed.cause, "the executor ended the run without saying why")
    if kind == "sandbox_failed":
        return f"the sandbox failed: {termination.sandbox_failed.reason}"
    return f"the executor was lost while the run was under way: {termination.lost.detail}"


def result(final: ex.FinalRecord, signed: SignedBytes) -> pb.Evaluation:
    """What the record adds to an evaluation; a termination only where the program ended by itself or by a limit."""
    made = pb.Evaluation(
        limit_hits=final.limit_hits,
        unobserved_limits=final.unobserved_limits,
        usage=final.usage if final.HasField("usage") else None,
        behaviour=final.behaviour if final.HasField("behaviour") else None,
        stdout=_summary(final.stdout),
        stderr=_summary(final.stderr),
        provenance=pb.Provenance(
            engine=final.engine,
            engine_version=final.engine_version,
            isolation=final.isolation,
            image_digest=final.image_digest,
            executor=final.executor_id,
            boot_id=final.boot_id,
            record=signed,
            start_kind=final.start_kind,
        ),
    )
    if final.artifacts or final.artifacts_omitted or final.artifacts_not_collected:
        made.artifacts.CopyFrom(_artifacts(final))
    if final.HasField("start_time"):
        made.start_time.CopyFrom(final.start_time)
    if ended_by_itself(final):
        made.termination.CopyFrom(_termination(final.termination))
    return made


def _artifacts(final: ex.FinalRecord) -> ArtifactSummary:
    return ArtifactSummary(
        files=len(final.artifacts),
        bytes_total=sum(one.bytes_total for one in final.artifacts),
        bytes_kept=sum(one.bytes_kept for one in final.artifacts),
        truncated=any(one.bytes_kept < one.bytes_total for one in final.artifacts),
        omitted=final.artifacts_omitted,
        not_collected=final.artifacts_not_collected,
    )


def _termination(said: ex.RunTermination) -> pb.Termination:
    made = pb.Termination(evidence=said.evidence if said.HasField("evidence") else None)
    kind = said.WhichOneof("kind")
    if kind == "exited":
        made.exited.CopyFrom(said.exited)
    elif kind == "signalled":
        made.signalled.CopyFrom(said.signalled)
    else:
        made.limit_exceeded.CopyFrom(said.limit_exceeded)
    return made


def _summary(output: ex.RunOutput) -> pb.OutputSummary:
    return pb.OutputSummary(
        bytes_total=output.bytes_total,
        bytes_kept=output.bytes_kept,
        truncated=output.bytes_kept < output.bytes_total,
        sha256=output.sha256,
    )


def invalid(message: str) -> InvalidArgumentError:
    """The error of a record that cannot be believed."""
    return InvalidArgumentError("INVALID_RECORD", message)


def cpu_micros(final: ex.FinalRecord) -> int:
    """The CPU time that a run is charged, in µs: the sandbox's as the host counted it, otherwise the program's."""
    usage = final.usage
    spent = usage.sandbox_cpu_time if usage.HasField("sandbox_cpu_time") else usage.program_cpu_time
    return min(max(0, spent.seconds), MAX_CPU_SECONDS) * 1_000_000 + min(max(0, spent.nanos), 999_999_999) // 1000
