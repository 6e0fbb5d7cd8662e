"""The trace stream's bytes: a header, then a protobuf message; taken apart with bounds, for nobody vouches for them.

The header is `pkg/sentry/seccheck/sinks/remote/wire`, the numbers are those of `pkg/sentry/seccheck/points/*.proto`, of
gVisor 20260527. Only the fields that are used are known here, and no length is believed that leads out of its message.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_MESSAGE = 256 << 10
"""Bytes; a Unix socket's default buffer is smaller than that, so nothing larger can come from an unaltered kernel."""

MAX_FIELDS = 64
"""Fields looked at in one message; a program with ten thousand arguments is known by its first."""

VERSION = 1
HANDSHAKE = b"\x08\x01"
"""A serialized `Handshake` with `VERSION`, which the other side waits for."""

_HEADER = struct.Struct("<HHI")
_MAX_VARINT_BYTES = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedError(ValueError):
    """The bytes are not what they should be."""


class Kind(enum.IntEnum):
    """`MessageType`, as far as it is asked for."""

    CLONE = 2
    EXECVE = 3
    RAW = 6
    OPEN = 7
    CONNECT = 10
    EXECVE_CALL = 11
    SOCKET = 12
    CLONE_CALL = 23
    FORK_CALL = 29


class Message(NamedTuple):
    """One message of the stream; `kind` is a `Kind` or something unknown, `dropped` wraps around at 2^32."""

    kind: int
    dropped: int
    payload: memoryview


Value = int | memoryview


def message(data: memoryview) -> Message:
    """Takes the header off.

    Raises:
        MalformedError: it is shorter than it says.
    """
    if len(data) < _HEADER.size:
        raise MalformedError("shorter than its header")
    size, kind, dropped = _HEADER.unpack_from(data)
    if not _HEADER.size <= size <= len(data):
        raise MalformedError("the header's size leads out of the message")
    return Message(kind, dropped, data[size:])


def handshake_version(data: memoryview) -> int:
    """The version that the sender speaks.

    Raises:
        MalformedError: it is no handshake.
    """
    version = dict(fields(data)).get(1, 0)
    if not isinstance(version, int):
        raise MalformedError("a handshake whose version is no number")
    return version


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """The first `MAX_FIELDS` fields of a protobuf message: number and value, unsigned or bytes.

    Raises:
        MalformedError: a length or a tag is impossible.
    """
    at, end = 0, len(data)
    for _ in range(MAX_FIELDS):
        if at >= end:
            return
        tag, at = varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise MalformedError("a field's number is impossible")
        if wire_type == _VARINT:
            value, at = varint(data, at, end)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, at = varint(data, at, end)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise MalformedError("a wire type is impossible")
        if length > end - at:
            raise MalformedError("a length leads out of the message")
        yield number, data[at : at + length]
        at += length


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `at`, and where what follows it begins.

    Raises:
        MalformedError: it has no end before `end`.
    """
    if at < end and data[at] < 0x80:  # nearly all are
        return data[at], at + 1
    value = shift = 0
    for index in range(at, min(end, at + _MAX_VARINT_BYTES)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, index + 1
        shift += 7
    raise MalformedError("a number has no end")
