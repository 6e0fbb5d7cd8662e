"""What every request must satisfy before storage acts on it; the gateway has told its own callers more kindly."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1 import tenant_pb2
from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible_storage.models import PLATFORM
from crucible_storage.names import invalid

MAX_NAME = 128
MAX_TEXT = 1024
MAX_LABELS = 32
MAX_EXECUTOR_TIME_BYTES = 512
SHA256_BYTES = 32
MAX_PATH_BYTES = 255
MAX_SPEC_BYTES = 4 << 20
MAX_WEIGHT = 1000
MAX_QUOTA = 1 << 50
_OUTPUTS = (pb.OUTPUT_STREAM_STDOUT, pb.OUTPUT_STREAM_STDERR)


def name(text: str, field: str) -> str:
    """A name: 1 to 128 printable characters without spaces; not the platform's own."""
    if not 0 < len(text) <= MAX_NAME or not text.isprintable() or " " in text or text == PLATFORM:
        raise invalid(field, f"must have 1 to {MAX_NAME} printable characters without spaces")
    return text


def short(text: str, field: str) -> str:
    """A text for people. NUL is no character of PostgreSQL's texts."""
    if len(text) > MAX_TEXT or "\0" in text:
        raise invalid(field, f"must have at most {MAX_TEXT} characters, none of them NUL")
    return text


def between(number: int, least: int, most: int, field: str) -> int:
    """A number within bounds."""
    if not least <= number <= most:
        raise invalid(field, f"must be {least} to {most}")
    return number


def at_most(items: Any, most: int, field: str) -> Any:
    """A list that is not too long."""
    if len(items) > most:
        raise invalid(field, f"must have at most {most} entries")
    return items


def seconds(duration: Duration, most: float, field: str) -> float:
    """A wait in seconds, 0 to `most`."""
    value = duration.seconds + duration.nanos / 1e9
    if not 0 <= value <= most:
        raise invalid(field, f"must be 0 to {most:.0f} s")
    return value


def executor_time(told: ExecutorTime, field: str) -> ExecutorTime:
    """What an executor's clock said; only that executor can tell whether it did."""
    if told.ByteSize() > MAX_EXECUTOR_TIME_BYTES:
        raise invalid(field, f"must have at most {MAX_EXECUTOR_TIME_BYTES} bytes")
    name(told.boot_id, f"{field}.boot_id")
    return told


def sha256(digest: bytes, field: str) -> bytes:
    """A SHA-256 digest."""
    if len(digest) != SHA256_BYTES:
        raise invalid(field, f"must have {SHA256_BYTES} bytes")
    return digest


def artifact_path(path: str, field: str) -> str:
    """The path of an artifact, which a program chose."""
    if not is_artifact_path(path):
        text = f"must have 1 to {MAX_PATH_BYTES} bytes, no NUL, and no part that is empty, `.` or `..`"
        raise invalid(field, text)
    return path


def is_artifact_path(path: str) -> bool:
    """Whether this is a path that an artifact can have."""
    bounded = 0 < len(path.encode()) <= MAX_PATH_BYTES and "\0" not in path
    return bounded and not {"", ".", ".."}.intersection(path.split("/"))


def stream(number: int, field: str) -> int:
    """One of a program's output streams."""
    if number not in _OUTPUTS:
        raise invalid(field, "must be STDOUT or STDERR")
    return number


def labels(given: Mapping[str, str], field: str) -> dict[str, str]:
    """Labels, as of an evaluation or of a filter."""
    if len(given) > MAX_LABELS or any(len(key) > MAX_NAME or len(value) > MAX_TEXT for key, value in given.items()):
        raise invalid(field, f"must have at most {MAX_LABELS} entries of bounded length")
    if any("\0" in text for pair in given.items() for text in pair):
        raise invalid(field, "must not contain NUL")
    return dict(given)


def spec(given: pb.EvaluationSpec) -> pb.EvaluationSpec:
    """A complete spec: every name given, the limits that storage itself goes by set."""
    name(given.engine, "spec.engine")
    name(given.program.runtime, "spec.program.runtime")
    between(given.priority, -100, 100, "spec.priority")
    between(given.limits.output_bytes, 1, 1 << 40, "spec.limits.output_bytes")
    labels(given.labels, "spec.labels")
    if given.ByteSize() > MAX_SPEC_BYTES:
        raise invalid("spec", f"must have at most {MAX_SPEC_BYTES} bytes")
    return given


def quota(given: tenant_pb2.Quota, field: str) -> tenant_pb2.Quota:
    """Quotas; what is set lies within its bounds."""
    bounds = {"weight": (1, MAX_WEIGHT), "max_priority": (-100, 100), "cpu_seconds_per_day": (0, 1 << 40)}
    for one, value in given.ListFields():
        between(value, *bounds.get(one.name, (0, MAX_QUOTA)), f"{field}.{one.name}")
    return given
