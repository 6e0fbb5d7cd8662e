"""Readers of bytes over one another: counted, hashed, decompressed. Each reads little at a time and keeps nothing."""

import hashlib
import zlib
from collections.abc import Callable

from crucible_deploy.unpack.errors import ArchiveError

Read = Callable[[int], bytes]
"""At most so many bytes, at least one; none at the end."""

PIECE_BYTES = 1 << 18
_GZIP = b"\x1f\x8b"
_REFUSED = {
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd --decompress it, or save it with gzip"),
    b"\xfd7zXZ\0": ("xz", "unxz it"),
    b"BZh": ("bzip2", "bunzip2 it"),
}


class Counted:
    """Ends a stream that is longer than it may be.

    Args:
        read: the stream.
        most: bytes that it may have.
        what: names it in the error.
    """

    def __init__(self, read: Read, most: int, what: str) -> None:
        self._read = read
        self._left = self._most = most
        self._what = what

    def read(self, size: int) -> bytes:
        """See `Read`.

        Raises:
            ArchiveError: the stream goes on beyond its bound.
        """
        piece = self._read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise ArchiveError(f"{self._what} is larger than the {self._most} bytes that are allowed")
        return piece


class Hashed:
    """Hashes what is read through it."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """See `Read`."""
        piece = self._read(size)
        self._hash.update(piece)
        return piece

    def drain(self) -> str:
        """Reads to the end; `sha256:<hex>` of all there was."""
        while self.read(PIECE_BYTES):
            pass
        return f"sha256:{self._hash.hexdigest()}"


class Gunzip:
    """Decompresses gzip, also of several members, with at most one piece in memory."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._input = b""
        self._member = zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """See `Read`.

        Raises:
            ArchiveError: it is no gzip, is damaged or cut short.
        """
        while True:
            if self._member.eof and not self._next_member():
                return b""
            if not self._input:
                self._input = self._read(PIECE_BYTES)
                if not self._input:
                    raise ArchiveError("the compressed data end too early")
            try:
                piece = self._member.decompress(self._input, size)
            except zlib.error as error:
                raise ArchiveError(f"the compressed data are damaged ({error})") from None
            self._input = self._member.unconsumed_tail
            if piece:
                return piece

    def _next_member(self) -> bool:
        """Whether another member follows; zeros at the end are padding."""
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest:
            piece = self._read(PIECE_BYTES)
            if not piece:
                return False
            rest = piece.lstrip(b"\0")
        self._input = rest
        self._member = zlib.decompressobj(31)
        return True


def decompressed(read: Read) -> Read:
    """The stream without its compression, which its first bytes tell; one without any as it is.

    Raises:
        ArchiveError: a compression that is not supported.
    """
    head = b""
    while len(head) < 6 and (piece := read(6 - len(head))):
        head += piece
    for magic, (name, mend) in _REFUSED.items():
        if head.startswith(magic):
            raise ArchiveError(f"it is compressed with {name}, which is not supported: {mend} first")
    together = _Joined(head, read).read
    return Gunzip(together).read if head.startswith(_GZIP) else together


class _Joined:
    def __init__(self, head: bytes, read: Read) -> None:
        self._head = head
        self._read = read

    def read(self, size: int) -> bytes:
        if not self._head:
            return self._read(size)
        piece, self._head = self._head[:size], self._head[size:]
        return piece
