"""How commands print: tables on a terminal, plain lines in a pipe, JSON when asked for."""

import base64
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import click

from crucible_client.results import Termination

_CAMEL = {"Exited": "EXITED", "Signalled": "SIGNALLED", "LimitExceeded": "LIMIT_EXCEEDED", "Cancelled": "CANCELLED"}
_CAMEL |= {"InfrastructureFailure": "INFRASTRUCTURE_FAILURE", "UnknownTermination": "UNKNOWN"}


def printable(text: str) -> str:
    """Text from elsewhere without what a terminal would obey: control characters become escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def print_rows(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal; in a pipe one line per row, cells separated by tabs, without headers."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in clean:
            click.echo("\t".join(row))
        return
    from rich.console import Console  # loaded only where it is seen
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in clean:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair per line."""
    print_rows(("", ""), pairs)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One value as JSON; `indent` None puts it on one line."""
    click.echo(json.dumps(plain(value), indent=indent, ensure_ascii=False))


def plain(value: Any) -> Any:
    """A value of `results` as JSON has it.

    Times are ISO 8601 in UTC, durations seconds in a key that ends in `_seconds`, hashes hexadecimal. Bytes are text
    (what is not UTF-8 is replaced, and the exact bytes stand beside it in a key that ends in `_base64`).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        tagged = {"kind": _CAMEL[type(value).__name__]} if isinstance(value, Termination) else {}
        return tagged | _plain_items(fields)
    if isinstance(value, Mapping):
        return _plain_items(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Enum):
        return value.value if isinstance(value, str) else value.name
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def _plain_items(fields: Mapping[Any, Any]) -> dict[str, Any]:
    items: dict[str, Any] = {}
    for key, value in fields.items():
        name = str(key)
        if isinstance(value, timedelta):
            items[f"{name}_seconds"] = value.total_seconds()
        elif isinstance(value, bytes):
            items |= _plain_bytes(name, value)
        else:
            items[name] = plain(value)
    return items


def _plain_bytes(name: str, value: bytes) -> dict[str, str]:
    if name == "sha256":
        return {name: value.hex()}
    if name in ("payload", "signature"):
        return {f"{name}_base64": base64.b64encode(value).decode()}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {name: value.decode(errors="replace"), f"{name}_base64": base64.b64encode(value).decode()}


def show_time(time: datetime | None) -> str:
    """A time for people, in UTC to the second; `-` for none."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ") if time else "-"


def show_seconds(duration: timedelta | None) -> str:
    """A duration for people; `-` for none."""
    return f"{duration.total_seconds():.3f} s" if duration is not None else "-"
