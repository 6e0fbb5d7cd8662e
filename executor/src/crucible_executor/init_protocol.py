"""What the executor and the sandbox's PID 1 say to each other; the other side is `executor/init/protocol.h`.

Everything that comes up from a sandbox is untrusted: records have a fixed size, and a stream that is none of ours or
too long is a failure of that sandbox.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from crucible_executor.engines.base import ProgramRefusedError
from crucible_executor.model import Interpreter, Limits, Program

REPORT_FD = 3
STDOUT_FD = 4
STDERR_FD = 5
"""Descriptors inside the sandbox: of the init's reports, and of what becomes the program's 1 and 2."""

MULTIPLEXED = "multiplexed"
"""The init's argument that makes it send everything up its fd 1, as frames: for engines that pass on only 0 to 2."""

STOP = b"STOP"
"""After a program: has the init end it and all that it started, and then go on as if it had ended by itself."""

UNCHANGED = 0xFFFFFFFF
"""As `Limits.processes`: the init leaves RLIMIT_NPROC alone."""

MAX_FRAME_BYTES = 65536

_FRAME = struct.Struct("<II")
_HEAD = struct.Struct("<8sIIIIIIQQ")
_REPORT = struct.Struct("<4sIIIQQQQ16x")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_FRAME_MAGIC = b"CRUINIT2"
_HOLD_MAGIC = b"CRUHOLD2"
_REPORT_MAGIC = b"RPRT"
_FRAME_END = b"END!"

MAX_STRINGS = 4096
MAX_STRING_BYTES = 1 << 20
MAX_ONE_STRING_BYTES = (128 << 10) - 1
"""Of one argument or variable: Linux executes nothing with a longer one."""
MAX_FILES = 10_000
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
MAX_LEFT_FILES = 256
"""Of those that a program left, how many are asked for."""
_MAX_REPORTS = 8


class ProtocolError(Exception):
    """The sandbox sent something that its init never sends."""


class ReportKind(enum.IntEnum):
    """What the init says, in the order in which it says it."""

    READY = 1
    STARTED = 2
    ENDED = 3
    GONE = 4
    REFUSED = 5
    LEFT = 6


class Channel(enum.IntEnum):
    """What a frame of a multiplexed init holds."""

    REPORTS = 0
    STDOUT = 1
    STDERR = 2


class Stage(enum.IntEnum):
    """Where the init gave up before the program ran."""

    FRAME = 1
    FILES = 2
    STDIN = 3
    FORK = 4
    RLIMITS = 5
    PRIVILEGES = 6
    WORKSPACE = 7
    EXECUTE = 8
    HOLD = 9


@dataclass(frozen=True)
class Report:
    """One record of the init. `a` and `b` are as its kind says; CPU times are of everything reaped so far."""

    kind: ReportKind
    a: int
    b: int
    user_cpu: timedelta
    system_cpu: timedelta
    max_rss_bytes: int
    workspace_full: bool
    tmp_full: bool
    workspace_inodes_full: bool = False
    tmp_inodes_full: bool = False

    @property
    def signalled(self) -> bool:
        """Of an ENDED record: whether a signal (`b`) ended the program; otherwise `b` is its exit code."""
        return self.a == 1


class FilesTaker(Protocol):
    """Takes what the init sends of the files that a program left."""

    @property
    def finished(self) -> bool:
        """Whether that was all."""

    def feed(self, data: bytes) -> bytes:
        """Takes bytes as they come; returns those that come after the files.

        Raises:
            ProtocolError: they are none of an init's.
        """


class ReportReader:
    """Cuts the bytes of the report pipe into records.

    Attributes:
        files: to be set when LEFT was yielded, before the next record is asked for.
    """

    def __init__(self) -> None:
        self.files: FilesTaker | None = None
        self._pending = b""
        self._count = 0
        self._last: ReportKind | None = None

    def feed(self, data: bytes) -> Iterator[Report]:
        """Takes bytes as they come and yields each complete record.

        Raises:
            ProtocolError: a record is none of the init's, or there are more than it ever sends.
        """
        self._pending += data
        while self._pending:
            if self._last is ReportKind.LEFT:
                if self.files is None:
                    raise ProtocolError("the sandbox's init sent files that nobody asked for")
                self._pending = self.files.feed(self._pending)
                if not self.files.finished:
                    return
                self._last = None
                continue
            if len(self._pending) < _REPORT.size:
                return
            record, self._pending = self._pending[: _REPORT.size], self._pending[_REPORT.size :]
            self._count += 1
            if self._count > _MAX_REPORTS:
                raise ProtocolError("the sandbox's init reported more often than it can")
            report = _report(record)
            if report.kind is ReportKind.LEFT and (self._last is not ReportKind.ENDED or self.files is not None):
                raise ProtocolError("the sandbox's init sent files before its program had ended, or twice")
            self._last = report.kind
            yield report


class FrameReader:
    """Cuts what a multiplexed init sends into the bytes of its channels. Holds back nothing but an unfinished head."""

    def __init__(self) -> None:
        self._head = b""
        self._channel = Channel.REPORTS
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[Channel, bytes]]:
        """Takes bytes as they come and yields them by channel, in order.

        Raises:
            ProtocolError: a frame is none of the init's.
        """
        while data:
            if not self._left:
                needed = _FRAME.size - len(self._head)
                self._head, data = self._head + data[:needed], data[needed:]
                if len(self._head) == _FRAME.size:
                    self._begin(*_FRAME.unpack(self._head))
                continue
            part, data = data[: self._left], data[self._left :]
            self._left -= len(part)
            yield self._channel, part

    def _begin(self, channel: int, length: int) -> None:
        if channel not in Channel.__members__.values() or not 0 < length <= MAX_FRAME_BYTES:
            raise ProtocolError("the sandbox's init sent a frame that is none of its own")
        self._head, self._channel, self._left = b"", Channel(channel), length


def _report(record: bytes) -> Report:
    magic, kind, a, b, user_us, system_us, max_rss_kib, full = _REPORT.unpack(record)
    if magic != _REPORT_MAGIC or kind not in ReportKind.__members__.values():
        raise ProtocolError("the sandbox's init sent a record that is none of its own")
    return Report(
        kind=ReportKind(kind),
        a=a,
        b=b,
        user_cpu=_microseconds(user_us),
        system_cpu=_microseconds(system_us),
        max_rss_bytes=max_rss_kib * 1024,
        workspace_full=bool(full & 1),
        tmp_full=bool(full & 2),
        workspace_inodes_full=bool(full & 4),
        tmp_inodes_full=bool(full & 8),
    )


def _microseconds(value: int) -> timedelta:
    return timedelta(microseconds=min(value, 10**15))


def encode(program: Program, limits: Limits) -> list[bytes]:
    """The frame that makes the init start `program`, as chunks (contents are not copied).

    Raises:
        ProgramRefusedError: a name, count or length is outside what the init takes.
    """
    argv, env = check_program(program)
    head = _HEAD.pack(
        _FRAME_MAGIC,
        len(argv),
        len(env),
        len(program.files),
        limits.processes,
        limits.open_files,
        MAX_LEFT_FILES if limits.artifact_bytes else 0,
        limits.artifact_bytes,
        len(program.stdin),
    )
    chunks = [head, *(_U32.pack(len(text)) + text for text in (*argv, *env))]
    for file in program.files:
        path = check_path(file.path)
        chunks.append(_U32.pack(len(path)) + path + _U64.pack(len(file.content)))
        chunks.append(file.content)
    chunks.append(program.stdin)
    chunks.append(_FRAME_END)
    return chunks


def encode_interpreter(interpreter: Interpreter) -> list[bytes]:
    """The frame that makes the init start an interpreter before its program is there, and report READY again.

    Raises:
        ProgramRefusedError: see `encode`.
    """
    argv, env = check_program(Program(interpreter.command, (), dict(interpreter.env), b""))
    head = _HEAD.pack(_HOLD_MAGIC, len(argv), len(env), 0, interpreter.processes, interpreter.open_files, 0, 0, 0)
    strings = (*argv, *env, check_path(interpreter.file))
    return [head, *(_U32.pack(len(text)) + text for text in strings), _FRAME_END]


def check_program(program: Program) -> tuple[list[bytes], list[bytes]]:
    """The bytes of a program's arguments and environment, when all of it can be run.

    Raises:
        ProgramRefusedError: a name, count or length is outside what the init takes.
    """
    argv = [_string(argument, "an argument") for argument in program.command]
    env = [_string(f"{name}={value}", f"the environment variable {name!r}") for name, value in program.env.items()]
    if not argv:
        raise ProgramRefusedError("The program has no command: name what to run.")
    if any(not name or "=" in name for name in program.env):
        raise ProgramRefusedError("An environment variable has an empty name or one with '=': rename it.")
    if len(argv) + len(env) > MAX_STRINGS or sum(map(len, argv + env)) + len(argv) + len(env) > MAX_STRING_BYTES:
        raise ProgramRefusedError(
            f"Arguments and environment exceed {MAX_STRINGS} entries or {MAX_STRING_BYTES} bytes: use a file."
        )
    if any(len(text) > MAX_ONE_STRING_BYTES for text in argv + env):
        raise ProgramRefusedError(
            f"An argument or environment variable is longer than {MAX_ONE_STRING_BYTES} bytes: use a file."
        )
    if len(program.files) > MAX_FILES:
        raise ProgramRefusedError(f"The program has {len(program.files)} files; at most {MAX_FILES} are possible.")
    for file in program.files:
        check_path(file.path)
    paths = {file.path for file in program.files}
    if len(paths) < len(program.files):
        raise ProgramRefusedError("Two files of the program have the same name.")
    for path in paths:
        folder = next((path[:end] for end, char in enumerate(path) if char == "/" and path[:end] in paths), None)
        if folder is not None:
            raise ProgramRefusedError(f"{folder!r} is a file of the program and the folder of {path!r}.")
    return argv, env


def check_path(path: str) -> bytes:
    """The bytes of a file's path inside `/workspace`.

    Raises:
        ProgramRefusedError: empty, absolute, too long, or with a NUL, an empty part, `.` or `..`.
    """
    encoded = _string(path, f"the file name {path!r}")
    parts = encoded.split(b"/")
    if any(part in (b"", b".", b"..") or len(part) > MAX_NAME_BYTES for part in parts) or len(encoded) > MAX_PATH_BYTES:
        raise ProgramRefusedError(f"The file name {path!r} is not a relative path without '.', '..' and empty parts.")
    return encoded


def _string(text: str, what: str) -> bytes:
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ProgramRefusedError(f"{what.capitalize()} is not valid text: {error.reason}.") from error
    if b"\0" in encoded:
        raise ProgramRefusedError(f"{what.capitalize()} holds a NUL byte: remove it.")
    return encoded


def describe_refusal(report: Report) -> str:
    """One sentence on a REFUSED record: what the init could not do, and the system's reason."""
    if report.a == Stage.HOLD:
        return _early_end(report.b)
    reason = os.strerror(report.b) if report.b < 200 else f"error {report.b}"
    what = _STAGES.get(report.a, "the init gave up")
    return f"{what}: {reason}."


def _early_end(status: int) -> str:
    signal, code = status & 0x7F, status >> 8 & 0xFF
    how = f"signal {signal} ended it" if signal else f"it exited with code {code}"
    return f"the interpreter did not wait for its program: {how}."


_STAGES: dict[int, str] = {
    Stage.FRAME: "the sandbox's init did not accept the program",
    Stage.FILES: "the program's files could not be written into /workspace",
    Stage.STDIN: "the program's stdin could not be prepared",
    Stage.FORK: "the program could not be forked",
    Stage.RLIMITS: "the program's limits could not be set",
    Stage.PRIVILEGES: "the program's privileges could not be dropped",
    Stage.WORKSPACE: "/workspace could not be entered",
    Stage.EXECUTE: "the program's command could not be executed",
}
