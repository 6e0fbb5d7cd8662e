"""Messages as a sandbox's kernel sends them, put together by hand: for tests of what reads them."""

from __future__ import annotations

import struct

HANDSHAKE = b"\x08\x01"
CLONE, EXECVE, RAW, OPEN, CONNECT, EXECVE_CALL, SOCKET = 2, 3, 6, 7, 10, 11, 12
CLONE_CALL, FORK_CALL = 23, 29
PROGRAM, INIT = 2, 1


def varint(value: int) -> bytes:
    made = b""
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            return made + bytes([low])
        made += bytes([low | 0x80])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(kind: int, *fields: bytes, process: int = PROGRAM, dropped: int = 0, cwd: bytes = b"/workspace") -> bytes:
    context = field(1, field(4, process) + field(8, cwd) + field(9, b"python3"))
    return struct.pack("<HHI", 8, kind, dropped) + context + b"".join(fields)


def execve(path: bytes = b"/usr/bin/python3", *argv: bytes, process: int = PROGRAM, dropped: int = 0) -> bytes:
    arguments = [field(3, one) for one in (path, *argv)]
    return message(EXECVE, field(2, path), *arguments, process=process, dropped=dropped)


def opened(path: bytes, flags: int = 0, **more: object) -> bytes:
    return message(OPEN, field(6, path), field(7, flags), **more)


def process_call(error: int, kind: int = CLONE_CALL) -> bytes:
    """What a call that makes a process sends where it returns."""
    return message(kind, field(2, field(2, error) if error else field(1, 77)), field(3, 56))
