"""What a spec becomes before it is stored: engine and limits filled in, and refused when no executor could run it.

An executor says which engines it has, which limits each of them enforces, and its ceilings. A ceiling of 0 is none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import platform_pb2 as platform
from crucible.storage.v1 import status_service_pb2 as status
from crucible_gateway.validation import invalid
from crucible_rpc.errors import FailedPreconditionError, FieldViolation

LIMIT_OF: dict[str, ev.Limit.ValueType] = {
    "wall_time": ev.LIMIT_WALL_TIME,
    "cpu_time": ev.LIMIT_CPU_TIME,
    "cpus": ev.LIMIT_CPUS,
    "memory_bytes": ev.LIMIT_MEMORY,
    "processes": ev.LIMIT_PROCESSES,
    "output_bytes": ev.LIMIT_OUTPUT,
    "open_files": ev.LIMIT_OPEN_FILES,
    "disk_bytes": ev.LIMIT_DISK,
    "disk_inodes": ev.LIMIT_DISK_INODES,
}
# An executor keeps these with its own clock and count whatever the engine: their defaults are always filled in.
KEPT_BY_THE_EXECUTOR = frozenset({"wall_time", "output_bytes"})
DURATIONS = frozenset({"wall_time", "cpu_time"})
_MAX_TEXT = 400
_PAGE_BYTES = 4096  # a tmpfs gives a file whole pages


@dataclass(frozen=True)
class Defaults:
    """What a spec that says nothing gets.

    Attributes:
        limits: of each limit; 0 or unset is none.
        engine: its name; empty: what the executors say.
    """

    limits: ev.Limits
    engine: str = ""


@dataclass(frozen=True)
class _Candidate:
    """An executor with the engine asked for."""

    registered: status.RegisteredExecutor
    engine: platform.Engine

    @property
    def ceilings(self) -> ev.Limits:
        return self.registered.executor.ceilings

    def enforces(self, field: str) -> bool:
        return LIMIT_OF[field] in self.engine.enforces


def complete(spec: ev.EvaluationSpec, executors: Sequence[status.RegisteredExecutor], defaults: Defaults) -> None:
    """Fills in what `spec` leaves out; afterwards some registered executor can run it as it stands.

    Executors that are not live count where no live one will do: the evaluation then waits for them.

    Args:
        spec: valid by itself (see `validation`); changed in place.
        executors: all that ever registered.
        defaults: for what is not set.

    Raises:
        FailedPreconditionError: ENGINE_NOT_AVAILABLE, RUNTIME_NOT_AVAILABLE or LIMIT_NOT_ENFORCEABLE.
        InvalidArgumentError: a limit is above the ceiling, or the files do not fit into `disk_bytes`.
    """
    engine = spec.engine or default_engine(executors, defaults)
    candidates = _with_runtime(_with_engine(executors, engine), spec.program.runtime)
    asked = [field for field in LIMIT_OF if is_set(spec.limits, field)]
    candidates = _that_enforce(candidates, asked, engine)
    candidates = _that_allow(candidates, asked, spec.limits)
    spec.engine = engine
    _fill(spec.limits, candidates, defaults.limits)
    _check_files_fit(spec)
    if not spec.program.entrypoint:
        spec.program.entrypoint = spec.program.files[0].path


def default_engine(executors: Sequence[status.RegisteredExecutor], defaults: Defaults) -> str:
    """The engine of a spec that names none; empty when no executor ever registered."""
    if defaults.engine:
        return defaults.engine
    for registered in sorted(executors, key=lambda each: not each.live):
        if registered.executor.default_engine:
            return registered.executor.default_engine
    return ""


def highest_ceilings(executors: Sequence[status.RegisteredExecutor]) -> ev.Limits:
    """The most that may be asked for: the highest ceilings among live executors, or among all when none is live."""
    considered = [each for each in executors if each.live] or list(executors)
    highest = ev.Limits()
    for field in LIMIT_OF:
        ceilings = [each.executor.ceilings for each in considered]
        if ceilings and all(is_set(each, field) for each in ceilings):
            set_value(highest, field, max(value_of(each, field) for each in ceilings))
    return highest


def is_set(limits: ev.Limits, field: str) -> bool:
    """Whether a limit is given; 0 is not."""
    value = getattr(limits, field)
    return bool(value.seconds or value.nanos) if field in DURATIONS else bool(value)


def value_of(limits: ev.Limits, field: str) -> Any:
    """A limit as a number or a timedelta. Precise to 1 µs, rounded up, so that nothing above a ceiling looks equal."""
    value = getattr(limits, field)
    if field in DURATIONS:
        return timedelta(seconds=value.seconds, microseconds=-(-value.nanos // 1000))
    return value


def set_value(limits: ev.Limits, field: str, value: Any) -> None:
    """Sets a limit from what `value_of` returns."""
    if field in DURATIONS:
        getattr(limits, field).FromTimedelta(value)
    else:
        setattr(limits, field, value)


def _with_engine(executors: Sequence[status.RegisteredExecutor], name: str) -> list[_Candidate]:
    if not executors:
        text = "no executor has registered yet, so nothing can be run; start an executor with its worker"
        raise FailedPreconditionError("ENGINE_NOT_AVAILABLE", text, metadata={"field": "spec.engine"})
    known = [_Candidate(each, engine) for each in executors for engine in each.executor.engines if engine.name == name]
    if not known:
        names = _listed({engine.name for each in executors for engine in each.executor.engines if engine.available})
        text = f"no registered executor has the engine {name!r}; available are: {names}"
        raise FailedPreconditionError("ENGINE_NOT_AVAILABLE", text, metadata={"field": "spec.engine", "engine": name})
    available = [each for each in known if each.engine.available]
    if not available:
        why = sorted(known, key=lambda each: not each.registered.live)[0].engine.unavailable_reason
        text = f"the engine {name!r} is not available: {why[:_MAX_TEXT] or 'its executor gives no reason'}"
        raise FailedPreconditionError("ENGINE_NOT_AVAILABLE", text, metadata={"field": "spec.engine", "engine": name})
    return available


def _with_runtime(candidates: list[_Candidate], name: str) -> list[_Candidate]:
    known = [(each, rt) for each in candidates for rt in each.registered.executor.runtimes if rt.name == name]
    having = [each for each, runtime in known if not runtime.unavailable_reason]
    if not having:
        if known:
            why = sorted(known, key=lambda one: not one[0].registered.live)[0][1].unavailable_reason
            text = f"the runtime {name!r} is not available: {why[:_MAX_TEXT]}"
        else:
            all_ = (rt for each in candidates for rt in each.registered.executor.runtimes)
            names = _listed({rt.name for rt in all_ if not rt.unavailable_reason})
            engine = candidates[0].engine.name
            text = f"no executor with the engine {engine!r} has the runtime {name!r}; there are: {names}"
        metadata = {"field": "spec.program.runtime", "runtime": name}
        raise FailedPreconditionError("RUNTIME_NOT_AVAILABLE", text, metadata=metadata)
    return [each for each in having if each.registered.live] or having


def _that_enforce(candidates: list[_Candidate], asked: Sequence[str], engine: str) -> list[_Candidate]:
    able = [each for each in candidates if all(each.enforces(field) for field in asked)]
    if not able:
        missing = [f"spec.limits.{field}" for field in asked if not candidates[0].enforces(field)]
        if not missing:  # each executor lacks another one
            missing = [
                f"spec.limits.{field}" for field in asked if not all(each.enforces(field) for each in candidates)
            ]
        text = f"the engine {engine!r} cannot enforce {', '.join(missing)}; leave it out or choose another engine"
        metadata = {"field": missing[0], "fields": ",".join(missing), "engine": engine}
        raise FailedPreconditionError("LIMIT_NOT_ENFORCEABLE", text, metadata=metadata)
    return able


def _that_allow(candidates: list[_Candidate], asked: Sequence[str], limits: ev.Limits) -> list[_Candidate]:
    judged = [(_above(each.ceilings, asked, limits), each) for each in candidates]
    allowing = [each for violations, each in judged if not violations]
    if not allowing:
        raise invalid(min((violations for violations, _ in judged), key=len))
    return allowing


def _above(ceilings: ev.Limits, asked: Sequence[str], limits: ev.Limits) -> list[FieldViolation]:
    found = []
    for field in asked:
        if is_set(ceilings, field) and value_of(limits, field) > value_of(ceilings, field):
            most = value_of(ceilings, field)
            shown = f"{most.total_seconds():g} s" if isinstance(most, timedelta) else f"{most}"
            found.append(FieldViolation(f"spec.limits.{field}", f"must be at most {shown}"))
    return found


def _fill(limits: ev.Limits, candidates: Sequence[_Candidate], defaults: ev.Limits) -> None:
    """A default that no candidate enforces stays unset; one above a ceiling becomes the ceiling."""
    for field in LIMIT_OF:
        if is_set(limits, field) or not is_set(defaults, field):
            continue
        enforcing = [each for each in candidates if field in KEPT_BY_THE_EXECUTOR or each.enforces(field)]
        if enforcing:
            ceilings = [value_of(each.ceilings, field) for each in enforcing if is_set(each.ceilings, field)]
            set_value(limits, field, min([value_of(defaults, field), *ceilings]))


def _check_files_fit(spec: ev.EvaluationSpec) -> None:
    """Files that cannot be written would look like a failure of the sandbox, and be tried again for nothing."""
    needed = sum(-(-len(file.content) // _PAGE_BYTES) * _PAGE_BYTES for file in spec.program.files)
    if spec.limits.disk_bytes and needed > spec.limits.disk_bytes:
        text = f"the files need {needed} bytes of /workspace, but disk_bytes is {spec.limits.disk_bytes}"
        raise invalid([FieldViolation("spec.program.files", text)])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))[:_MAX_TEXT] or "none"
