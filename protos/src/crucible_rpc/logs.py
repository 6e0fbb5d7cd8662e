"""Structured logs on stderr: one JSON object per line, or plain lines on a terminal. Bounded and safe from injection.

log = logging.getLogger(__name__)
with logs.bound(evaluation="evaluations/..."):
    log.info("lease expired", extra=logs.fields(epoch=3))
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

MAX_MESSAGE_CHARACTERS = 4096
MAX_EXCEPTION_CHARACTERS = 16_384
MAX_VALUE_CHARACTERS = 1024
MAX_FIELDS = 32

_encode = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` with separators makes one for every line
_EMPTY: Mapping[str, object] = {}
_bound: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default=_EMPTY)


def fields(**values: object) -> dict[str, object]:
    """The `extra` argument of a logging call that adds these fields to the record."""
    return {"fields": values}


def bind(**values: object) -> None:
    """Adds fields to every record of the rest of this task and the tasks it starts, as for the call being served."""
    _bound.set({**_bound.get(), **values})


@contextmanager
def bound(**values: object) -> Iterator[None]:
    """Adds fields to every record made inside the `with` block."""
    before = _bound.get()
    _bound.set({**before, **values})
    try:
        yield
    finally:
        # Not ContextVar.reset: an async generator may be closed in another context than it was started in.
        _bound.set(before)


def configure(process: str, level: str | int = "INFO", stream: TextIO | None = None) -> None:
    """Sends all records of this process to `stream` (default stderr), replacing earlier handlers.

    Args:
        process: its name, in every record.
        level: the least severe level that is written, by name or number.
        stream: where to; a terminal gets plain lines instead of JSON.

    Raises:
        ValueError: there is no such level.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(PlainFormatter(process) if target.isatty() else JsonFormatter(process))
    root = logging.getLogger()
    root.setLevel(level)
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(capture=True)


class JsonFormatter(logging.Formatter):
    """Makes one line of ASCII JSON of a record; JSON's escapes keep every control character out of the line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": _message(record),
        }
        for key, value in _fields(record).items():
            entry.setdefault(_cut(str(key), 64), _plain(value))
        exception = _exception(self, record)
        if exception:
            entry["exception"] = exception
        return _encode(entry)


class PlainFormatter(logging.Formatter):
    """Makes a readable line of a record for a terminal, with control characters escaped; exceptions follow indented."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """A line, and the lines of the exception if there is one."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        line = f"{time} {record.levelname:<7} {self._process} {escaped(_message(record))}"
        pairs = " ".join(f"{_cut(str(key), 64)}={_plain(value)}" for key, value in _fields(record).items())
        line = f"{line}  {escaped(pairs)}" if pairs else line
        exception = _exception(self, record)
        if exception:
            line += "".join("\n    " + escaped(part) for part in exception.splitlines())
        return line


def escaped(text: str) -> str:
    """`text` with every unprintable character as its Python escape, so that it stays on its line and harmless."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit the text must not lose the record
        text = f"{record.msg!s} (with arguments that do not fit)"
    return _cut(text, MAX_MESSAGE_CHARACTERS)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    own = getattr(record, "fields", None)
    merged = {**_bound.get(), **own} if isinstance(own, dict) else dict(_bound.get())
    return merged if len(merged) <= MAX_FIELDS else dict(list(merged.items())[:MAX_FIELDS])


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 64 else hex(value)[:MAX_VALUE_CHARACTERS]
    return _cut(str(value), MAX_VALUE_CHARACTERS)


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    text = formatter.formatException(record.exc_info)
    # The end of a traceback says most.
    return text if len(text) <= MAX_EXCEPTION_CHARACTERS else "…" + text[1 - MAX_EXCEPTION_CHARACTERS :]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
