"""Takes the files that a program left out of what the init sends; see `enum left` in `executor/init/protocol.h`.

Nothing of it is trusted: every length is bounded before its bytes are waited for, and what no init sends is an error.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from crucible_executor.init_protocol import MAX_FRAME_BYTES, ProtocolError

MAX_PATH_BYTES = 255

_HEAD = struct.Struct("<II")
_SIZE = struct.Struct("<Q")
_END = struct.Struct("<QQ")
_MOST = 1 << 53
"""A size or count above this is told as this: a sparse file may say anything, and sums of it must not overflow."""


class _Kind(enum.IntEnum):
    NAME = 1
    DATA = 2
    DONE = 3
    ABANDONED = 4
    END = 5


_LENGTHS = {
    _Kind.NAME: range(_SIZE.size + 1, _SIZE.size + MAX_PATH_BYTES + 1),
    _Kind.DATA: range(1, MAX_FRAME_BYTES - _HEAD.size + 1),
    _Kind.DONE: range(1),
    _Kind.ABANDONED: range(1),
    _Kind.END: range(_END.size, _END.size + 1),
}


@dataclass(frozen=True)
class Begun:
    """A file begins: `path` below `/workspace/out`, with sound parts, and as many bytes as the sandbox says it has."""

    path: bytes
    size: int


@dataclass(frozen=True)
class Ended:
    """The file that was begun ends; when not `whole`, it could not be read, and does not count."""

    whole: bool


@dataclass(frozen=True)
class Over:
    """No more files. `omitted` more things were there; and still more where `not_all_seen`."""

    omitted: int
    not_all_seen: bool


Piece = Begun | bytes | Ended | Over


class LeftFilesReader:
    """Cuts bytes into pieces, the contents of files as they come. Holds back at most a head and a name.

    Attributes:
        finished: the end was read; what follows belongs to somebody else.
    """

    def __init__(self) -> None:
        self.finished = False
        self._held = b""
        self._kind: _Kind | None = None
        self._left = 0
        self._in_file = False

    def feed(self, data: bytes) -> Iterator[Piece | memoryview]:
        """Takes bytes as they come and yields each piece; what follows `Over` is yielded last, as a memoryview.

        Raises:
            ProtocolError: they are none of an init's.
        """
        at = memoryview(data)
        while at and not self.finished:
            if self._kind is _Kind.DATA:
                part, at = at[: self._left], at[self._left :]
                self._left -= len(part)
                if not self._left:
                    self._kind = None
                yield bytes(part)
                continue
            needed = (_HEAD.size if self._kind is None else self._left) - len(self._held)
            self._held, at = self._held + bytes(at[:needed]), at[needed:]
            if len(self._held) < (_HEAD.size if self._kind is None else self._left):
                return
            taken, self._held = self._held, b""
            if self._kind is None:
                self._begin(*_HEAD.unpack(taken))
                if self._left:
                    continue
                taken = b""
            kind, self._kind = self._kind, None
            yield self._piece(kind, taken)
        if at:
            yield at

    def _begin(self, kind: int, length: int) -> None:
        known = kind in _Kind.__members__.values()
        if not known or length not in _LENGTHS[_Kind(kind)]:
            raise ProtocolError("the sandbox's init sent something that is no part of a file")
        self._kind, self._left = _Kind(kind), length
        if self._in_file == (self._kind in (_Kind.NAME, _Kind.END)):
            raise ProtocolError("the sandbox's init sent the parts of a file in an impossible order")

    def _piece(self, kind: _Kind | None, taken: bytes) -> Piece:
        if kind is _Kind.NAME:
            self._in_file = True
            path = taken[_SIZE.size :]
            if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
                raise ProtocolError("the sandbox's init sent a path that no file has")
            return Begun(path, min(_SIZE.unpack(taken[: _SIZE.size])[0], _MOST))
        if kind is _Kind.END:
            self.finished = True
            omitted, not_all_seen = _END.unpack(taken)
            return Over(min(omitted, _MOST), bool(not_all_seen))
        self._in_file = False
        return Ended(kind is _Kind.DONE)
