"""What a request must look like: pure functions from a message to everything that is wrong with it.

Bounds are those that the contracts' comments state. What depends on the executors that are there (engines, runtimes,
ceilings) is checked in `limits`, after this.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from math import isfinite

from google.protobuf.duration_pb2 import Duration

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import tenant_pb2
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible_rpc.errors import FieldViolation, InvalidArgumentError

KIB = 1024
MIB = 1024 * KIB
MAX_FILES = 256
MAX_PATH_BYTES = 255
MAX_PROGRAM_BYTES = 3 * MIB
MAX_ARGS = 256
MAX_ARG_BYTES = 32 * KIB
MAX_ENV = 64
MAX_STRING_BYTES = 512 * KIB  # of arguments and environment: what a process can be started with is bounded
MAX_ENV_NAME_CHARACTERS = 128
MAX_LABELS = 32
MAX_LABEL_VALUE_CHARACTERS = 256
MIN_MEMORY_BYTES = 64 * MIB
MAX_PRIORITY = 100
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_TOKEN_CHARACTERS = 1024
MAX_REASON_CHARACTERS = 256
MAX_DESCRIPTION_CHARACTERS = 128
MAX_WEIGHT = 1000
MAX_CPU_SECONDS_PER_DAY = 1 << 40
MAX_QUOTA = 1 << 50
MAX_DURATION = timedelta(days=365)
MAX_VIOLATIONS = 32  # no more fit into an error; a caller who mends these is told of the rest

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_PART_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_TENANT = re.compile(r"[a-z][a-z0-9-]{0,62}")
_EVALUATION = re.compile(r"evaluations/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
BATCH = re.compile(r"batches/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_KEY_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_KNOWN_STATES = frozenset(number for number in ev.EvaluationState.values() if number)


class Violations:
    """Collects what is wrong with one request, at most `MAX_VIOLATIONS`."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Notes one field at fault, by its path in the request."""
        if len(self._found) < MAX_VIOLATIONS:
            self._found.append(FieldViolation(field, description))

    def check(self) -> None:
        """Returns when nothing was noted.

        Raises:
            InvalidArgumentError: INVALID_FIELD with everything that was noted.
        """
        if self._found:
            raise invalid(self._found)


def invalid(violations: Sequence[FieldViolation]) -> InvalidArgumentError:
    """The error that tells of these fields; its sentence names the first."""
    first = violations[0]
    more = f" ({len(violations) - 1} more)" if len(violations) > 1 else ""
    return InvalidArgumentError("INVALID_FIELD", f"{first.field}: {first.description}{more}", violations)


def check_creation(request: api.CreateEvaluationRequest | api.RunEvaluationRequest) -> None:
    """Checks a request to create an evaluation, as far as that needs no knowledge of executors.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    found = Violations()
    check_request_id("request_id", request.request_id, found)
    check_spec(request.spec, found)
    found.check()


def check_request_id(field: str, request_id: str, found: Violations) -> None:
    """Checks what makes a call repeatable."""
    if request_id and not _REQUEST_ID.fullmatch(request_id):
        found.add(field, "must be at most 128 characters of [A-Za-z0-9._:-]")


def check_spec(spec: ev.EvaluationSpec, found: Violations) -> None:
    """Checks what is to be run, as far as that needs no knowledge of executors; fields begin with `spec`."""
    _check_program(spec.program, found)
    _check_limits(spec.limits, found)
    if spec.engine and not _PART_NAME.fullmatch(spec.engine):
        found.add("spec.engine", "must match [a-z][a-z0-9._-]{0,62}, or be empty for the default")
    if not -MAX_PRIORITY <= spec.priority <= MAX_PRIORITY:
        found.add("spec.priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}")
    if spec.labels:
        check_labels("spec.labels", spec.labels, found)


def check_name(name: str) -> None:
    """Checks the name of an evaluation.

    Raises:
        InvalidArgumentError: it is not `evaluations/{uuid}`.
    """
    if not _EVALUATION.fullmatch(name):
        raise invalid([FieldViolation("name", "must be evaluations/{uuid}, the uuid in lower case")])


def check_list(request: api.ListEvaluationsRequest) -> None:
    """Checks a list request.

    Raises:
        InvalidArgumentError: with every field at fault, or INVALID_PAGE_TOKEN.
    """
    found = Violations()
    check_page(request.page_size, found)
    if request.batch and not BATCH.fullmatch(request.batch):
        found.add("batch", "must be batches/{uuid}, the uuid in lower case, or left out")
    if len(request.states) > 4 * len(_KNOWN_STATES):
        found.add("states", f"must be at most {4 * len(_KNOWN_STATES)} states")
    else:
        for index, state in enumerate(request.states):
            if state not in _KNOWN_STATES:
                found.add(f"states[{index}]", "must be a known state")
    check_labels("labels", request.labels, found)
    found.check()
    check_page_token(request.page_token)


def check_page(page_size: int, found: Violations) -> None:
    """Checks how long a page is to be."""
    if not 0 <= page_size <= MAX_PAGE_SIZE:
        found.add("page_size", f"must be from 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}")


def check_page_token(token: str) -> None:
    """Checks that a page token could be one.

    Raises:
        InvalidArgumentError: INVALID_PAGE_TOKEN.
    """
    if len(token) > MAX_PAGE_TOKEN_CHARACTERS:
        violation = FieldViolation("page_token", "must be the next_page_token of the answer before")
        raise InvalidArgumentError("INVALID_PAGE_TOKEN", f"page_token: {violation.description}", [violation])


def check_cancel(request: api.CancelEvaluationRequest) -> None:
    """Checks a cancel request.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    check_name(request.name)
    check_reason(request.reason)


def check_reason(reason: str) -> None:
    """Checks why somebody wants something ended.

    Raises:
        InvalidArgumentError: it is too long.
    """
    if not _is_reason(reason):
        text = f"must be at most {MAX_REASON_CHARACTERS} characters, without NUL"
        raise invalid([FieldViolation("reason", text)])


def check_delete(request: admin.DeleteEvaluationRequest) -> None:
    """Checks a request to delete an evaluation.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    check_name(request.name)
    check_reason(request.reason)


def check_watch(request: api.WatchEvaluationRequest) -> None:
    """Checks a watch request.

    Raises:
        InvalidArgumentError: with the field at fault.
    """
    check_name(request.name)
    if request.after_position < 0:
        raise invalid([FieldViolation("after_position", "must be 0 or a position that an event had")])


def check_read_output(request: api.ReadOutputRequest) -> None:
    """Checks a request for output.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    check_name(request.name)
    found = Violations()
    if request.stream not in (ev.OUTPUT_STREAM_STDOUT, ev.OUTPUT_STREAM_STDERR):
        found.add("stream", "must be OUTPUT_STREAM_STDOUT or OUTPUT_STREAM_STDERR")
    if request.offset < 0:
        found.add("offset", "must not be negative")
    if request.attempt < 0:
        found.add("attempt", "must be an attempt's number, or 0 for the latest")
    found.check()


def check_usage_samples(request: api.ListUsageSamplesRequest) -> None:
    """Checks a request for usage samples.

    Raises:
        InvalidArgumentError: with the field at fault.
    """
    check_name(request.name)
    if request.attempt < 0:
        raise invalid([FieldViolation("attempt", "must be an attempt's number, or 0 for the latest")])


def check_create_key(request: admin.CreateApiKeyRequest) -> None:
    """Checks a request to make an API key.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    found = Violations()
    if not _TENANT.fullmatch(request.tenant):
        found.add("tenant", "must match [a-z][a-z0-9-]{0,62}")
    if request.role not in (admin.ROLE_UNSPECIFIED, admin.ROLE_USER, admin.ROLE_ADMIN):
        found.add("role", "must be ROLE_USER or ROLE_ADMIN, or left out for ROLE_USER")
    if len(request.description) > MAX_DESCRIPTION_CHARACTERS or "\0" in request.description:
        found.add("description", f"must be at most {MAX_DESCRIPTION_CHARACTERS} characters, without NUL")
    found.check()


def check_revoke_key(request: admin.RevokeApiKeyRequest) -> None:
    """Checks a request to revoke an API key.

    Raises:
        InvalidArgumentError: the id has not the form of one.
    """
    if not _KEY_ID.fullmatch(request.id):
        raise invalid([FieldViolation("id", "must be the id of an API key, as ListApiKeys shows it")])


def check_tenant(tenant: str, quota: tenant_pb2.Quota, *, some: bool = False) -> None:
    """Checks a tenant's name and the quotas that are set.

    Args:
        tenant: its name.
        quota: those to set.
        some: whether at least one must be.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    found = Violations()
    if not _TENANT.fullmatch(tenant):
        found.add("tenant", "must match [a-z][a-z0-9-]{0,62}")
    bounds = {"weight": (1, MAX_WEIGHT), "max_priority": (-MAX_PRIORITY, MAX_PRIORITY)}
    bounds["cpu_seconds_per_day"] = (0, MAX_CPU_SECONDS_PER_DAY)
    given = quota.ListFields()
    for field, value in given:
        least, most = bounds.get(field.name, (0, MAX_QUOTA))
        if not least <= value <= most:
            found.add(f"quota.{field.name}", f"must be from {least} to {most}")
    if some and not given:
        found.add("quota", "must set at least one field; 0 is no quota")
    found.check()


def check_pause(request: admin.PauseQueueRequest | admin.ResumeQueueRequest) -> None:
    """Checks a request to pause or to resume.

    Raises:
        InvalidArgumentError: with every field at fault.
    """
    found = Violations()
    if request.tenant and not _TENANT.fullmatch(request.tenant):
        found.add("tenant", "must match [a-z][a-z0-9-]{0,62}, or be empty for everybody")
    if isinstance(request, admin.PauseQueueRequest) and not _is_reason(request.reason):
        found.add("reason", f"must be at most {MAX_REASON_CHARACTERS} characters, without NUL")
    found.check()


def check_dead_letters(request: admin.ListDeadLettersRequest) -> None:
    """Checks a request for dead letters.

    Raises:
        InvalidArgumentError: with every field at fault, or INVALID_PAGE_TOKEN.
    """
    found = Violations()
    if request.tenant and not _TENANT.fullmatch(request.tenant):
        found.add("tenant", "must match [a-z][a-z0-9-]{0,62}, or be empty for everybody")
    check_page(request.page_size, found)
    found.check()
    check_page_token(request.page_token)


def _is_reason(text: str) -> bool:
    return len(text) <= MAX_REASON_CHARACTERS and "\0" not in text


def _check_program(program: ev.Program, found: Violations) -> None:
    if not _PART_NAME.fullmatch(program.runtime):
        found.add("spec.program.runtime", "must name a runtime, [a-z][a-z0-9._-]{0,62}; ListRuntimes lists them")
    size = len(program.stdin)
    size += _check_files(program.files, found)
    _check_entrypoint(program, found)
    strings = _check_args(program.args, found) + _check_env(program.env, found)
    if strings > MAX_STRING_BYTES:
        text = (
            f"arguments and environment are {strings} bytes together; at most {MAX_STRING_BYTES} are taken: use a file"
        )
        found.add("spec.program.args", text)
    size += strings
    if size > MAX_PROGRAM_BYTES:
        text = (
            f"files, stdin, arguments and environment are {size} bytes together; at most {MAX_PROGRAM_BYTES} are taken"
        )
        found.add("spec.program", text)


def _check_files(files: Sequence[ev.File], found: Violations) -> int:
    if not files:
        found.add("spec.program.files", "must hold at least one file")
        return 0
    size = sum(len(file.content) for file in files)
    if len(files) > MAX_FILES:
        found.add("spec.program.files", f"must hold at most {MAX_FILES} files, not {len(files)}")
        return size
    if not any(file.content for file in files):
        found.add("spec.program.files", "must hold at least one file that is not empty: there is nothing to run")
    paths: dict[str, int] = {}
    for index, file in enumerate(files):
        problem = path_problem(file.path)
        if problem is None and file.path in paths:
            problem = f"is the path of files[{paths[file.path]}] too"
        if problem is not None:
            found.add(f"spec.program.files[{index}].path", problem)
        paths.setdefault(file.path, index)
        size += len(file.path)
    _check_no_file_is_a_folder(paths, found)
    return size


def path_problem(path: str) -> str | None:
    """What is wrong with a path of a program's file; None when it is good."""
    if not path:
        return "must not be empty"
    if len(path) > MAX_PATH_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        return f"must be at most {MAX_PATH_BYTES} bytes"
    if "\0" in path:
        return "must not contain NUL"
    if path[0] == "/":
        return "must be relative to /workspace, not absolute"
    parts = path.split("/")
    if ".." in parts or "." in parts:
        return "must have no part that is . or .."
    if "" in parts:
        return "must have no empty part: no // and no / at the end"
    return None


def _check_no_file_is_a_folder(paths: Mapping[str, int], found: Violations) -> None:
    for path, index in paths.items():
        end = path.find("/", 1)
        while end > 0:
            other = paths.get(path[:end])
            if other is not None:
                found.add(
                    f"spec.program.files[{other}].path", f"is a folder of files[{index}].path: it cannot be a file"
                )
            end = path.find("/", end + 1)


def _check_entrypoint(program: ev.Program, found: Violations) -> None:
    if program.entrypoint:
        if not any(file.path == program.entrypoint for file in program.files):
            found.add("spec.program.entrypoint", "must be the path of one of the files")
    elif len(program.files) > 1:
        found.add("spec.program.entrypoint", "must be given when there is more than one file")


def _check_args(args: Sequence[str], found: Violations) -> int:
    if len(args) > MAX_ARGS:
        found.add("spec.program.args", f"must be at most {MAX_ARGS} arguments, not {len(args)}")
    size = 0
    for index, arg in enumerate(args):
        length = len(arg.encode())
        size += length
        if length > MAX_ARG_BYTES:
            found.add(f"spec.program.args[{index}]", f"must be at most {MAX_ARG_BYTES} bytes")
        if "\0" in arg:
            found.add(f"spec.program.args[{index}]", "must not contain NUL")
    return size


def _check_env(env: Mapping[str, str], found: Violations) -> int:
    """Values never appear in a violation: they may be secret."""
    if len(env) > MAX_ENV:
        found.add("spec.program.env", f"must be at most {MAX_ENV} variables, not {len(env)}")
    size = 0
    for name, value in env.items():
        length = len(value.encode())
        size += len(name) + length
        if len(name) > MAX_ENV_NAME_CHARACTERS or not _ENV_NAME.fullmatch(name):
            text = f"names must match [A-Za-z_][A-Za-z0-9_]*, at most {MAX_ENV_NAME_CHARACTERS} characters"
            found.add(_entry("spec.program.env", name), text)
        if length > MAX_ARG_BYTES or "\0" in value:
            found.add(_entry("spec.program.env", name), f"values must be at most {MAX_ARG_BYTES} bytes, without NUL")
    return size


def check_labels(field: str, labels: Mapping[str, str], found: Violations) -> None:
    """Checks labels, or those of a filter."""
    if len(labels) > MAX_LABELS:
        found.add(field, f"must be at most {MAX_LABELS} labels, not {len(labels)}")
        return
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            found.add(_entry(field, key), "keys must match [a-z][a-z0-9_.-]{0,62}")
        if len(value) > MAX_LABEL_VALUE_CHARACTERS or "\0" in value:
            text = f"values must be at most {MAX_LABEL_VALUE_CHARACTERS} characters, without NUL"
            found.add(_entry(field, key), text)


def _entry(field: str, key: str) -> str:
    """The path of a map's entry; the key shortened and made printable."""
    return f"{field}[{key[:64]!a}]"


def _check_limits(limits: ev.Limits, found: Violations) -> None:
    for name in ("wall_time", "cpu_time"):
        if limits.HasField(name):
            _check_duration(f"spec.limits.{name}", getattr(limits, name), found)
    if not isfinite(limits.cpus) or limits.cpus < 0 or 0 < limits.cpus < 0.01:
        found.add("spec.limits.cpus", "must be at least 0.01, or left out for the default")
    if limits.memory_bytes and limits.memory_bytes < MIN_MEMORY_BYTES:
        text = f"must be at least {MIN_MEMORY_BYTES}, or left out for the default"
        found.add("spec.limits.memory_bytes", text)
    _check_counts(limits, ("processes", "output_bytes", "open_files", "disk_bytes", "disk_inodes"), found)


def _check_counts(limits: ev.Limits, names: Iterable[str], found: Violations) -> None:
    for name in names:
        if getattr(limits, name) < 0:
            found.add(f"spec.limits.{name}", "must not be negative; leave it out for the default")


def _check_duration(field: str, duration: Duration, found: Violations) -> None:
    seconds, nanos = duration.seconds, duration.nanos
    if not 0 <= nanos < 1_000_000_000 or seconds < 0 or (seconds == 0 and nanos < 1_000_000):
        found.add(field, "must be at least 1 ms, or left out for the default")
    elif seconds > MAX_DURATION.total_seconds():
        found.add(field, f"must be at most {MAX_DURATION.days} days")
