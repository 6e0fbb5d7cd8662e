"""Settings of a process: a frozen dataclass filled from environment variables, checked before anything starts."""

import dataclasses
import math
import os
import re
import types
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)?")
_DURATION_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class SettingsError(Exception):
    """A variable is missing, unknown or malformed; the text is one line that names it."""


def load(cls: type[T], prefix: str, environ: Mapping[str, str] = os.environ) -> T:
    """Fills the dataclass `cls` from `environ`: field `listen` from `<prefix>LISTEN`.

    Types: str, int, float, bool, Path, timedelta (`10`, `10s`, `500ms`, `2m`, `1h`), tuple[str, ...] (with commas),
    Literal of strings, and Optional of these (an empty value is None). A field with a default may be left out.
    A ValueError from `__post_init__` is told as a SettingsError.

    Raises:
        SettingsError: a variable is missing, malformed, or has the prefix and is not known.
    """
    fields = {prefix + field.name.upper(): field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    unknown = sorted(name for name in environ if name.startswith(prefix) and name not in fields)
    if unknown:
        raise SettingsError(f"{unknown[0]} is not a known setting; known are {', '.join(sorted(fields))}")
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for variable, field in fields.items():
        if variable in environ:
            values[field.name] = _value(variable, environ[variable], hints[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{variable} is not set; expected {_expected(hints[field.name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError(f"the settings {prefix}* do not fit together: {error}") from error


def _value(variable: str, text: str, kind: Any) -> Any:
    try:
        return _parsed(text, kind)
    except ValueError:
        shown = repr(text if len(text) <= 80 else text[:79] + "…")
        raise SettingsError(f"{variable}={shown} is not valid; expected {_expected(kind)}") from None


def _parsed(text: str, kind: Any) -> Any:
    inner = _optional(kind)
    if inner is not None:
        return _parsed(text, inner) if text else None
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    if kind is timedelta:
        return _duration(text)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(text)
        return text
    if get_origin(kind) is tuple and get_args(kind) == (str, ...):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind in (str, int, Path):
        if kind is Path and not text:
            raise ValueError(text)
        return kind(text)
    raise TypeError(f"settings have no type {kind!r}")


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(text)
    try:
        return timedelta(seconds=float(match[1]) * _DURATION_SECONDS[match[2]])
    except OverflowError:
        raise ValueError(text) from None


def _optional(kind: Any) -> Any:
    """The type inside an Optional, None for any other type."""
    if get_origin(kind) in (Union, types.UnionType):
        inner = [part for part in get_args(kind) if part is not type(None)]
        if len(inner) == 1:
            return inner[0]
    return None


def _expected(kind: Any) -> str:
    inner = _optional(kind)
    if inner is not None:
        return f"{_expected(inner)}, or nothing"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    names: dict[Any, str] = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        Path: "a path",
        timedelta: "a duration such as 10, 10s, 500ms, 2m or 1h",
        tuple[str, ...]: "texts separated by commas",
    }
    return names.get(kind, repr(kind))
