"""Messages to the domain's words and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from crucible.evaluation.v1 import behaviour_update_pb2 as bu
from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import platform_pb2
from crucible.evaluation.v1 import usage_samples_pb2 as us
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import init_protocol
from crucible_executor.behaviour import Action, Behaviour, Observation, Update
from crucible_executor.catalog import Catalog
from crucible_executor.ceilings import AskedLimits
from crucible_executor.engines.base import ProgramRefusedError
from crucible_executor.model import File, Isolation, Limit, Limits, Program, StartKind, Stream, Usage
from crucible_executor.run import Chunk, Event, Finished, Sampled, Started, Tried
from crucible_executor.runtimes import BASE_ENV, Runtime
from crucible_executor.sampling import Sample
from crucible_rpc.errors import FieldViolation, InvalidArgumentError

MAX_FILES = 256
MAX_PATH_BYTES = 255
MAX_ARGS = 256
MAX_ARG_BYTES = 32 << 10
MAX_ENV = 64
MAX_PROGRAM_BYTES = 4 << 20
MAX_REASON_CHARACTERS = 1000

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

ISOLATIONS = {
    Isolation.NONE: ev.ISOLATION_NONE,
    Isolation.CONTAINER: ev.ISOLATION_CONTAINER,
    Isolation.USER_KERNEL: ev.ISOLATION_USER_KERNEL,
}
START_KINDS = {StartKind.COLD: ev.START_KIND_COLD, StartKind.WARM: ev.START_KIND_WARM}
LIMITS = {
    Limit.WALL_TIME: ev.LIMIT_WALL_TIME,
    Limit.CPU_TIME: ev.LIMIT_CPU_TIME,
    Limit.MEMORY: ev.LIMIT_MEMORY,
    Limit.OUTPUT: ev.LIMIT_OUTPUT,
    Limit.CPUS: ev.LIMIT_CPUS,
    Limit.PROCESSES: ev.LIMIT_PROCESSES,
    Limit.OPEN_FILES: ev.LIMIT_OPEN_FILES,
    Limit.DISK: ev.LIMIT_DISK,
    Limit.DISK_INODES: ev.LIMIT_DISK_INODES,
}
OBSERVATIONS = {
    Observation.NOT_OBSERVED: ev.OBSERVATION_NOT_OBSERVED,
    Observation.OBSERVED: ev.OBSERVATION_OBSERVED,
    Observation.PARTIAL: ev.OBSERVATION_PARTIAL,
}
ACTION_KINDS = {action: bu.ActionKind.Value(f"ACTION_KIND_{action.name}") for action in Action}
_STREAMS = {Stream.STDOUT: ev.OUTPUT_STREAM_STDOUT, Stream.STDERR: ev.OUTPUT_STREAM_STDERR}
_COUNTS = ("memory_bytes", "processes", "open_files", "output_bytes", "disk_bytes", "disk_inodes")


def asked_limits(message: ev.Limits) -> AskedLimits:
    """What a ticket sets; a number of 0 is not set.

    Raises:
        InvalidArgumentError: INVALID_FIELD: a value is negative or impossible.
    """
    for name in (*_COUNTS, "cpus"):
        if not getattr(message, name) >= 0:
            raise _invalid(f"limits.{name}", "must be positive")
    return AskedLimits(
        wall_time=_positive(message, "wall_time"),
        cpu_time=_positive(message, "cpu_time"),
        cpus=message.cpus or None,
        **{name: getattr(message, name) or None for name in _COUNTS},
    )


def limits(asked: AskedLimits | Limits) -> ev.Limits:
    """The message; what is None stays unset."""
    message = ev.Limits(
        cpus=asked.cpus or 0.0, **{name: getattr(asked, name) for name in _COUNTS if getattr(asked, name) is not None}
    )
    for name in ("wall_time", "cpu_time"):
        value = getattr(asked, name)
        if value is not None:
            getattr(message, name).FromTimedelta(value)
    return message


def timedelta_of(duration: Duration) -> timedelta:
    """The duration, cut to a year either way: what is longer than that is as good as for ever."""
    seconds = max(-31_536_000, min(31_536_000, duration.seconds))
    return timedelta(seconds=seconds, microseconds=duration.nanos // 1000)


def program(message: ev.Program, runtime: Runtime) -> Program:
    """The program, checked again: what is signed came from outside all the same.

    Raises:
        InvalidArgumentError: INVALID_FIELD.
    """
    _check_files(message)
    _check_strings(message)
    made = Program(
        command=runtime.argv(entrypoint(message), tuple(message.args)),
        files=tuple(File(file.path, file.content) for file in message.files),
        env={**BASE_ENV, **message.env},
        stdin=message.stdin,
    )
    try:
        init_protocol.check_program(made)  # found out later it would look like a fault of this executor, and be retried
    except ProgramRefusedError as error:
        raise _invalid("program", f"cannot be run: {error}") from error
    return made


def entrypoint(message: ev.Program) -> str:
    """The path of the file that is run.

    Raises:
        InvalidArgumentError: INVALID_FIELD.
    """
    path = message.entrypoint or (message.files[0].path if len(message.files) == 1 else "")
    if all(file.path != path for file in message.files):
        raise _invalid("program.entrypoint", "must be the path of one of the files; needed when there are several")
    return path


def _check_files(message: ev.Program) -> None:
    if not 1 <= len(message.files) <= MAX_FILES:
        raise _invalid("program.files", f"must be 1 to {MAX_FILES}")
    paths = [file.path for file in message.files]
    if len(set(paths)) != len(paths):
        raise _invalid("program.files", "must have different paths")
    for index, path in enumerate(paths):
        parts = path.split("/")
        if (
            "\0" in path
            or not 1 <= len(path.encode()) <= MAX_PATH_BYTES
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise _invalid(f"program.files[{index}].path", "must be relative, without empty parts, `.`, `..` or NUL")


def _check_strings(message: ev.Program) -> None:
    if len(message.args) > MAX_ARGS or any("\0" in arg or len(arg.encode()) > MAX_ARG_BYTES for arg in message.args):
        raise _invalid("program.args", f"must be at most {MAX_ARGS} of at most {MAX_ARG_BYTES} bytes, without NUL")
    if len(message.env) > MAX_ENV or not all(_ENV_NAME.fullmatch(name) for name in message.env):
        raise _invalid("program.env", f"must be at most {MAX_ENV} names of letters, digits and `_`")
    if any("\0" in value for value in message.env.values()):
        raise _invalid("program.env", "values must be without NUL")
    if message.ByteSize() > MAX_PROGRAM_BYTES:
        raise _invalid("program", f"must be at most {MAX_PROGRAM_BYTES} bytes")


def usage(value: Usage) -> ev.Usage:
    """The message; what the engine cannot measure stays unset."""
    message = ev.Usage()
    message.wall_time.FromTimedelta(value.wall_time)
    if value.program_cpu is not None:
        message.program_cpu_time.FromTimedelta(value.program_cpu)
    if value.sandbox_cpu is not None:
        message.sandbox_cpu_time.FromTimedelta(value.sandbox_cpu)
    if value.peak_memory_bytes is not None:
        message.peak_memory_bytes = value.peak_memory_bytes
    if value.samples is not None:
        message.samples = value.samples
    return message


def usage_samples(first: int, samples: Sequence[Sample]) -> us.UsageSamples:
    """The message."""
    message = us.UsageSamples(first=first)
    for sample in samples:
        used = sample.counters
        made = message.samples.add(memory_bytes=used.memory_bytes, tasks=used.tasks)
        made.since_start.FromTimedelta(sample.since_start)
        made.cpu_time.FromTimedelta(used.cpu_time)
    return message


def observation(record: ex.FinalRecord) -> str:
    """How far a record tells what its program tried, in one word."""
    return ev.Observation.Name(record.behaviour.observation).removeprefix("OBSERVATION_").lower()


def behaviour(value: Behaviour) -> ev.Behaviour:
    """The message; without an observation no kind of action is set, not even as empty."""
    message = ev.Behaviour(
        observation=OBSERVATIONS[value.observation], reason=_cut(value.reason), dropped=value.dropped
    )
    for action in Action if value.observation is not Observation.NOT_OBSERVED else ():
        seen = value.actions[action]
        actions: ev.ObservedActions = getattr(message, action.value)
        actions.SetInParent()
        actions.count = seen.count
        actions.examples.extend(seen.examples)
        if seen.first is not None:
            actions.first_time.FromDatetime(seen.first)
    return message


def behaviour_update(sequence: int, value: Update, started: datetime) -> bu.BehaviourUpdate:
    """The message; what was seen before the program's start was told of counts as seen then."""
    message = bu.BehaviourUpdate(
        sequence=sequence,
        observation=OBSERVATIONS[value.observation],
        reason=_cut(value.reason),
        exhausted=[ACTION_KINDS[action] for action in value.exhausted],
    )
    for sight in value.sights:
        seen = message.actions.add(kind=ACTION_KINDS[sight.action], example=sight.example, count=sight.count)
        seen.since_start.FromTimedelta(max(timedelta(0), sight.time - started))
    return message


def _cut(text: str) -> str:
    return text if len(text) <= MAX_REASON_CHARACTERS else text[: MAX_REASON_CHARACTERS - 1] + "…"


def event(value: Event) -> ex.RunEvent:
    """The message."""
    match value:
        case Chunk(stream, offset, data):
            return ex.RunEvent(output=ex.RunOutputChunk(stream=_STREAMS[stream], offset=offset, data=data))
        case Finished(record):
            return ex.RunEvent(finished=record)
        case Tried(sequence, update, started):
            return ex.RunEvent(behaviour=behaviour_update(sequence, update, started))
        case Sampled(first, samples):
            return ex.RunEvent(usage_samples=usage_samples(first, samples))
        case Started(time):
            message = ex.RunEvent()
            message.started.time.FromDatetime(time)
            return message


def executor(
    catalog: Catalog, *, executor_id: str, boot_id: str, ceilings: Limits, slots: int
) -> platform_pb2.Executor:
    """What this executor is and offers now."""
    return platform_pb2.Executor(
        id=executor_id,
        boot_id=boot_id,
        engines=[
            platform_pb2.Engine(
                name=name,
                version=offered.capabilities.version,
                isolation=ISOLATIONS[offered.capabilities.isolation],
                enforces=sorted({LIMITS[limit] for limit in offered.capabilities.enforces}),
                available=not catalog.unavailable(name),
                unavailable_reason=_cut(catalog.unavailable(name)),
                not_observable=sorted({LIMITS[limit] for limit in offered.capabilities.not_observable}),
                breaker_open=bool(offered.engine.failing),
            )
            for name, offered in catalog.engines.items()
        ],
        default_engine=catalog.default_engine,
        runtimes=[
            platform_pb2.Runtime(
                name=name,
                image=offered.runtime.image,
                image_digest=offered.image_digest,
                command=offered.runtime.command,
                unavailable_reason=offered.unavailable,
            )
            for name, offered in catalog.runtimes.items()
        ],
        ceilings=limits(ceilings),
        slots=slots,
        not_serving_reason=catalog.not_serving,
    )


def _positive(message: ev.Limits, name: str) -> timedelta | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    value = timedelta_of(getattr(message, name))
    if value <= timedelta(0):
        raise _invalid(f"limits.{name}", "must be positive")
    return value


def _invalid(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError("INVALID_FIELD", f"{field} {description}", [FieldViolation(field, description)])
