"""Batches as files: one JSON object per line, one item each.

    {"key": "prepare", "code": "print(1)"}
    {"key": "run", "path": "run.py", "after": ["prepare"], "limits": {"wall_time": "10s", "memory": "256MiB"}}

A program is `code` (the text of one file), `files` (texts by path, with `entrypoint`), or `path` (a file beside this
one). The rest may be left out: `key`, `after`, `run_anyway`, `runtime`, `args`, `env`, `stdin`, `engine`, `priority`,
`labels`, and `limits` with `wall_time`, `cpu_time`, `cpus`, `memory`, `processes`, `output_bytes`, `open_files` and
`disk`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from crucible_client.batches import BatchItem
from crucible_client.cli.sizes import parse_duration, parse_size
from crucible_client.specs import (
    RUNTIME_BY_SUFFIX,
    EvaluationSpec,
    File,
    Limits,
    Program,
    ProgramError,
    program_from_files,
)

MAX_LINE_BYTES = 8 << 20
_KEYS = {"key", "after", "run_anyway", "runtime", "code", "files", "path", "entrypoint", "args", "env", "stdin"}
_KEYS |= {"engine", "priority", "labels", "limits"}
_SUFFIX = {runtime: suffix for suffix, runtime in RUNTIME_BY_SUFFIX.items()}


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProgramError("expected a number")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ProgramError("expected a whole number")
    return value


def _size(value: Any) -> int:
    return parse_size(value) if isinstance(value, str) else _count(value)


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        raise ProgramError("expected a duration with its unit, such as 30s")
    return parse_duration(value)


_LIMITS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "wall_time": ("wall_time", _duration),
    "cpu_time": ("cpu_time", _duration),
    "cpus": ("cpus", _number),
    "memory": ("memory_bytes", _size),
    "processes": ("processes", _count),
    "output_bytes": ("output_bytes", _size),
    "open_files": ("open_files", _count),
    "disk": ("disk_bytes", _size),
}


def read_items(path: Path) -> Iterator[BatchItem]:
    """The items of a file, line by line; a file need not fit in memory.

    Raises:
        ProgramError: the file cannot be read, or a line is no item; it says which and why.
    """
    try:
        with path.open("rb") as stream:
            yield from items_of(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), str(path), path.parent)
    except OSError as error:
        raise ProgramError(f"cannot read {path}: {error.strerror}") from None


def items_of(lines: Iterable[bytes], name: str, folder: Path) -> Iterator[BatchItem]:
    """The items of lines; `folder` is where a `path` begins.

    Raises:
        ProgramError: a line is no item.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _item(_object(line), folder)
        except ProgramError as error:
            raise ProgramError(f"{name}, line {number}: {error}") from None


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ProgramError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ProgramError("not JSON") from None
    if not isinstance(value, dict):
        raise ProgramError("expected a JSON object")
    if unknown := sorted(set(value) - _KEYS):
        raise ProgramError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    return value


def _item(value: dict[str, Any], folder: Path) -> BatchItem:
    spec = EvaluationSpec(
        program=_program(value, folder),
        limits=_limits(_map(value, "limits")),
        engine=_text(value, "engine"),
        priority=_taken("priority", _count, value.get("priority", 0)),
        labels=_texts(value, "labels"),
    )
    run_anyway = value.get("run_anyway", False)
    if not isinstance(run_anyway, bool):
        raise ProgramError("run_anyway: expected true or false")
    return BatchItem(spec, _text(value, "key"), _list(value, "after"), run_anyway)


def _program(value: dict[str, Any], folder: Path) -> Program:
    given = [key for key in ("code", "files", "path") if key in value]
    if len(given) != 1:
        raise ProgramError("expected one of code, files and path")
    runtime, args, env = _text(value, "runtime"), _list(value, "args"), _texts(value, "env")
    stdin = _encoded("stdin", _text(value, "stdin"))
    if "path" in value:
        return program_from_files(
            folder / _text(value, "path"), runtime=runtime or None, args=args, env=env, stdin=stdin
        )
    runtime = runtime or "python"
    code = {f"main{_SUFFIX.get(runtime, '')}": _text(value, "code")}
    files = code if "code" in value else _texts(value, "files")
    made = tuple(File(path, _encoded("files", content)) for path, content in files.items())
    return Program(runtime, made, _text(value, "entrypoint"), args, env, stdin)


def _limits(given: dict[str, Any]) -> Limits:
    if unknown := sorted(set(given) - set(_LIMITS)):
        raise ProgramError(f"limits: unknown {unknown[0]!r}; known are {', '.join(_LIMITS)}")
    return Limits(**{_LIMITS[key][0]: _taken(f"limits.{key}", _LIMITS[key][1], one) for key, one in given.items()})


def _taken(key: str, parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise ProgramError(f"{key}: {error}") from None


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key, "")
    if not isinstance(text, str):
        raise ProgramError(f"{key}: expected a text")
    return text


def _encoded(key: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ProgramError(f"{key}: holds half a surrogate pair") from None


def _list(value: dict[str, Any], key: str) -> tuple[str, ...]:
    texts = value.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise ProgramError(f"{key}: expected a list of texts")
    return tuple(texts)


def _map(value: dict[str, Any], key: str) -> dict[str, Any]:
    given = value.get(key, {})
    if not isinstance(given, dict):
        raise ProgramError(f"{key}: expected an object")
    return given


def _texts(value: dict[str, Any], key: str) -> dict[str, str]:
    given = _map(value, key)
    if not all(isinstance(one, str) for one in given.values()):
        raise ProgramError(f"{key}: expected an object of texts")
    return given
