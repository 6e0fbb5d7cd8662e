"""Between the contract's messages and this package's plain values, in one place for both clients."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from crucible.evaluation.v1 import artifact_pb2, behaviour_update_pb2, evaluation_pb2, event_pb2, platform_pb2
from crucible.gateway.v1 import admin_service_pb2, artifact_service_pb2, platform_service_pb2
from crucible_client import results, specs

E = TypeVar("E", bound=StrEnum)

_COUNTS = ("memory_bytes", "processes", "output_bytes", "open_files", "disk_bytes", "disk_inodes")


def spec_message(spec: specs.EvaluationSpec) -> evaluation_pb2.EvaluationSpec:
    """The message that asks for `spec`."""
    program = spec.program
    return evaluation_pb2.EvaluationSpec(
        program=evaluation_pb2.Program(
            runtime=program.runtime,
            files=[evaluation_pb2.File(path=file.path, content=file.content) for file in program.files],
            entrypoint=program.entrypoint,
            args=program.args,
            env=dict(program.env),
            stdin=program.stdin,
        ),
        limits=_limits_message(spec.limits),
        engine=spec.engine,
        priority=spec.priority,
        labels=dict(spec.labels),
    )


def _limits_message(limits: specs.Limits) -> evaluation_pb2.Limits:
    message = evaluation_pb2.Limits()
    if limits.wall_time is not None:
        message.wall_time.FromTimedelta(limits.wall_time)
    if limits.cpu_time is not None:
        message.cpu_time.FromTimedelta(limits.cpu_time)
    if limits.cpus is not None:
        message.cpus = limits.cpus
    for name in _COUNTS:
        value = getattr(limits, name)
        if value is not None:
            setattr(message, name, value)
    return message


def spec(message: evaluation_pb2.EvaluationSpec) -> specs.EvaluationSpec:
    """A spec, as it was asked for."""
    program = message.program
    return specs.EvaluationSpec(
        program=specs.Program(
            runtime=program.runtime,
            files=tuple(specs.File(file.path, file.content) for file in program.files),
            entrypoint=program.entrypoint,
            args=tuple(program.args),
            env=dict(program.env),
            stdin=program.stdin,
        ),
        limits=limits(message.limits),
        engine=message.engine,
        priority=message.priority,
        labels=dict(message.labels),
    )


def limits(message: evaluation_pb2.Limits) -> specs.Limits:
    """Limits; what is unset or 0 is None."""
    return specs.Limits(
        wall_time=_duration(message, "wall_time"),
        cpu_time=_duration(message, "cpu_time"),
        cpus=message.cpus or None,
        **{name: getattr(message, name) or None for name in _COUNTS},
    )


def evaluation(message: evaluation_pb2.Evaluation) -> results.Evaluation:
    """An evaluation's record."""
    return results.Evaluation(
        name=message.name,
        tenant=message.tenant,
        creator=message.creator,
        spec=spec(message.spec),
        state=_state(message.state),
        version=message.version,
        attempt=message.attempt,
        termination=termination(message.termination) if message.HasField("termination") else None,
        limit_hits=tuple(_limit_hit(hit) for hit in message.limit_hits),
        create_time=time(message, "create_time"),
        start_time=time(message, "start_time"),
        end_time=time(message, "end_time"),
        stdout=_output(message.stdout),
        stderr=_output(message.stderr),
        usage=_usage(message.usage) if message.HasField("usage") else None,
        provenance=_provenance(message.provenance) if message.HasField("provenance") else None,
        labels=dict(message.labels),
        failed_attempts=tuple(failed_attempt(attempt) for attempt in message.failed_attempts),
        behaviour=_behaviour(message.behaviour) if message.HasField("behaviour") else None,
        unobserved_limits=tuple(_limit(number) for number in message.unobserved_limits),
        batch=message.batch,
        artifacts=_artifact_summary(message.artifacts) if message.HasField("artifacts") else None,
    )


def artifact(message: artifact_pb2.Artifact) -> results.Artifact:
    """A file that a program left."""
    return results.Artifact(
        message.path, message.bytes_total, message.bytes_kept, message.truncated, bytes(message.sha256)
    )


def artifacts(message: artifact_service_pb2.ListArtifactsResponse) -> results.Artifacts:
    """The files of an evaluation."""
    return results.Artifacts(tuple(map(artifact, message.artifacts)), message.omitted, message.not_collected)


def _artifact_summary(message: artifact_pb2.ArtifactSummary) -> results.ArtifactSummary:
    return results.ArtifactSummary(
        message.files,
        message.bytes_total,
        message.bytes_kept,
        message.truncated,
        message.omitted,
        message.not_collected,
    )


def termination(message: evaluation_pb2.Termination) -> results.Termination:
    """How an evaluation ended."""
    evidence = _evidence(message.evidence) if message.HasField("evidence") else None
    match message.WhichOneof("kind"):
        case "exited":
            return results.Exited(message.exited.code, evidence=evidence)
        case "signalled":
            return results.Signalled(message.signalled.signal, evidence=evidence)
        case "limit_exceeded":
            return results.LimitExceeded(_limit(message.limit_exceeded.limit), evidence=evidence)
        case "cancelled":
            ended = message.cancelled
            return results.Cancelled(
                ended.by, ended.reason, ended.confirmed, dependency=ended.dependency, evidence=evidence
            )
        case "infrastructure_failure":
            return results.InfrastructureFailure(message.infrastructure_failure.reason, evidence=evidence)
    return results.UnknownTermination(evidence=evidence)


def event(message: event_pb2.Event) -> results.Event:
    """One entry of the event log."""
    base = (message.position, message.evaluation, time(message, "time"), message.attempt)
    match message.WhichOneof("kind"):
        case "state_changed":
            change = message.state_changed
            end = termination(change.termination) if change.HasField("termination") else None
            return results.StateChanged(*base, _state(change.state), change.version, end)
        case "output":
            chunk = message.output
            if chunk.stream in (1, 2):
                return results.OutputChunk(*base, results.Stream(chunk.stream), chunk.offset, chunk.data)
        case "attempt_failed":
            return results.AttemptFailed(*base, failed_attempt(message.attempt_failed))
        case "cancel_requested":
            return results.CancelRequested(*base, message.cancel_requested.by, message.cancel_requested.reason)
        case "limit_hit":
            return results.LimitWasHit(*base, _limit_hit(message.limit_hit))
        case "behaviour":
            return _behaviour_seen(base, message.behaviour)
    return results.UnknownEvent(*base)


def capabilities(message: platform_service_pb2.GetCapabilitiesResponse) -> results.Capabilities:
    """What a Crucible can do."""
    return results.Capabilities(
        engines=tuple(_engine(engine) for engine in message.engines),
        default_engine=message.default_engine,
        default_limits=limits(message.default_limits),
        ceilings=limits(message.ceilings),
        max_message_bytes=message.max_message_bytes,
        max_attempts=message.max_attempts,
    )


def platform_status(message: platform_service_pb2.GetStatusResponse) -> results.PlatformStatus:
    """How a Crucible is."""
    queue = message.queue
    return results.PlatformStatus(
        processes=tuple(
            results.ProcessStatus(one.process, one.serving, one.detail, time(one, "last_seen_time"), one.slots)
            for one in message.processes
        ),
        queue=results.QueueStatus(queue.queued, queue.running, queue.finished) if message.HasField("queue") else None,
    )


def runtime(message: platform_pb2.Runtime) -> results.Runtime:
    """A runtime."""
    return results.Runtime(
        message.name, message.image, message.image_digest, tuple(message.command), message.unavailable_reason
    )


def api_key(message: admin_service_pb2.ApiKey) -> results.ApiKey:
    """A key without its secret."""
    return results.ApiKey(
        id=message.id,
        tenant=message.tenant,
        role=member(results.Role, admin_service_pb2.Role, message.role, "ROLE_"),
        description=message.description,
        create_time=time(message, "create_time"),
        revoke_time=time(message, "revoke_time"),
    )


def deleted(name: str, message: admin_service_pb2.DeleteEvaluationResponse) -> results.DeletedEvaluation:
    """What is left of a deleted evaluation."""
    left = message.deleted
    return results.DeletedEvaluation(
        name=name,
        tenant=message.tenant,
        state=_state(left.state),
        delete_time=time(message, "delete_time"),
        by=left.by,
        reason=left.reason,
        record_sha256=left.record_sha256.hex(),
        stdout_sha256=left.stdout_sha256.hex(),
        stderr_sha256=left.stderr_sha256.hex(),
    )


def state_number(state: results.State) -> evaluation_pb2.EvaluationState.ValueType:
    """The contract's number of a state."""
    return evaluation_pb2.EvaluationState.Value(f"EVALUATION_STATE_{state.value}")


def _engine(message: platform_pb2.Engine) -> results.Engine:
    return results.Engine(
        name=message.name,
        version=message.version,
        isolation=member(results.Isolation, evaluation_pb2.Isolation, message.isolation, "ISOLATION_"),
        enforces=tuple(_limit(number) for number in message.enforces),
        available=message.available,
        unavailable_reason=message.unavailable_reason,
        not_observable=tuple(_limit(number) for number in message.not_observable),
        breaker_open=message.breaker_open,
    )


def _output(message: evaluation_pb2.OutputSummary) -> results.OutputSummary:
    return results.OutputSummary(
        message.bytes_total, message.bytes_kept, message.truncated, message.preview, message.sha256
    )


def _usage(message: evaluation_pb2.Usage) -> results.Usage:
    return results.Usage(
        wall_time=_duration(message, "wall_time"),
        program_cpu_time=_duration(message, "program_cpu_time"),
        sandbox_cpu_time=_duration(message, "sandbox_cpu_time"),
        peak_memory_bytes=message.peak_memory_bytes if message.HasField("peak_memory_bytes") else None,
        samples=message.samples if message.HasField("samples") else None,
    )


def _provenance(message: evaluation_pb2.Provenance) -> results.Provenance:
    record = message.record
    return results.Provenance(
        engine=message.engine,
        engine_version=message.engine_version,
        isolation=member(results.Isolation, evaluation_pb2.Isolation, message.isolation, "ISOLATION_"),
        image_digest=message.image_digest,
        executor=message.executor,
        boot_id=message.boot_id,
        record=results.SignedRecord(record.payload, record.key_id, record.signature)
        if message.HasField("record")
        else None,
        start_kind=member(results.StartKind, evaluation_pb2.StartKind, message.start_kind, "START_KIND_"),
    )


def _evidence(message: evaluation_pb2.Evidence) -> results.Evidence:
    source = member(results.EvidenceSource, evaluation_pb2.EvidenceSource, message.source, "EVIDENCE_SOURCE_")
    return results.Evidence(source, message.detail)


def _limit_hit(message: evaluation_pb2.LimitHit) -> results.LimitHit:
    return results.LimitHit(
        _limit(message.limit), _evidence(message.evidence) if message.HasField("evidence") else None
    )


_ACTIONS = ("programs", "files_written", "probes", "sockets", "connections", "processes", "privilege")


def _behaviour(message: evaluation_pb2.Behaviour) -> results.Behaviour:
    return results.Behaviour(
        observation=observation(message.observation),
        reason=message.reason,
        dropped=message.dropped,
        **{name: _actions(getattr(message, name)) if message.HasField(name) else None for name in _ACTIONS},  # type: ignore[arg-type]
    )


def _actions(message: evaluation_pb2.ObservedActions) -> results.ObservedActions:
    return results.ObservedActions(message.count, time(message, "first_time"), tuple(message.examples))


def _behaviour_seen(
    base: tuple[int, str, datetime | None, int], message: behaviour_update_pb2.BehaviourUpdate
) -> results.BehaviourSeen:
    return results.BehaviourSeen(
        *base,
        sequence=message.sequence,
        observation=observation(message.observation),
        reason=message.reason,
        actions=tuple(
            results.SeenAction(_action_kind(one.kind), one.example, one.count, _duration(one, "since_start"))
            for one in message.actions
        ),
        exhausted=tuple(_action_kind(number) for number in message.exhausted),
    )


def _action_kind(number: int) -> results.ActionKind:
    return member(results.ActionKind, behaviour_update_pb2.ActionKind, number, "ACTION_KIND_")


def failed_attempt(message: evaluation_pb2.FailedAttempt) -> results.FailedAttempt:
    """An attempt that the infrastructure ended."""
    return results.FailedAttempt(message.attempt, message.reason, time(message, "time"))


def _state(number: int) -> results.State:
    return member(results.State, evaluation_pb2.EvaluationState, number, "EVALUATION_STATE_")


def _limit(number: int) -> results.Limit:
    return member(results.Limit, evaluation_pb2.Limit, number, "LIMIT_")


def member(enum: type[E], contract: Any, number: int, prefix: str) -> E:
    """The member of the same name; UNKNOWN for a number that this client does not know."""
    name = contract.Name(number).removeprefix(prefix) if number in contract.values() else ""
    return enum(name) if name in enum.__members__ else enum("UNKNOWN")


def observation(number: int) -> results.Observation:
    """How far something was observed."""
    return member(results.Observation, evaluation_pb2.Observation, number, "OBSERVATION_")


def _duration(message: Any, field: str) -> timedelta | None:
    if not message.HasField(field):
        return None
    value: Duration = getattr(message, field)
    try:
        return value.ToTimedelta()
    except (ValueError, OverflowError):
        return None  # out of what a duration may be: as good as not said


def time(message: Any, field: str) -> datetime | None:
    """A time of a message; None when it is unset."""
    if not message.HasField(field):
        return None
    value: Timestamp = getattr(message, field)
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
