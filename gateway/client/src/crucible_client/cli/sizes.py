"""Sizes and durations as people write them, read strictly."""

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import click

_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([A-Za-z]*)")
_BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}


def parse_size(text: str) -> int:
    """Bytes: `512MiB`, `1.5GiB`, `100KB`, or a bare number.

    Raises:
        ValueError: not a positive whole number of bytes.
    """
    match = _NUMBER.fullmatch(text)
    if not match or match[2] not in _BYTES:
        raise ValueError("expected a size such as 512MiB, 64KiB, 1GB or 4096")
    count = Decimal(match[1]) * _BYTES[match[2]]
    if count != int(count) or count <= 0:
        raise ValueError("expected a positive whole number of bytes")
    return int(count)


def parse_size_or_0(text: str) -> int:
    """As `parse_size`; 0 is taken too.

    Raises:
        ValueError: neither.
    """
    return 0 if text == "0" else parse_size(text)


def parse_duration(text: str) -> timedelta:
    """A duration with its unit: `30s`, `500ms`, `1.5m`, `2h`.

    Raises:
        ValueError: not one, or not positive.
    """
    match = _NUMBER.fullmatch(text)
    if not match or match[2] not in _SECONDS:
        raise ValueError("expected a duration with its unit, such as 30s, 500ms, 2m or 1h")
    try:
        duration = timedelta(seconds=float(Decimal(match[1]) * _SECONDS[match[2]]))
    except OverflowError:
        raise ValueError("expected a shorter duration") from None
    if duration <= timedelta(0):
        raise ValueError("expected a positive duration")
    return duration


def parse_pair(text: str) -> tuple[str, str]:
    """`NAME=VALUE`.

    Raises:
        ValueError: there is no `=`, or no name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError("expected NAME=VALUE")
    return name, value


class _Parsed(click.ParamType[Any]):
    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


SIZE = _Parsed("size", parse_size)
SIZE_OR_0 = _Parsed("size", parse_size_or_0)
DURATION = _Parsed("duration", parse_duration)
PAIR = _Parsed("name=value", parse_pair)


def show_size(count: int) -> str:
    """As people read it: `1.5 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
