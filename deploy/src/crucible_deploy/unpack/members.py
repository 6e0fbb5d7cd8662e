"""The files of an archive by name, in whatever order they are asked for: of a tar, or of a folder."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crucible_deploy.unpack.errors import ArchiveError, shown
from crucible_deploy.unpack.streams import Hashed, Read
from crucible_deploy.unpack.tar import Kind, PathBounds, TarReader

MOST_DOCUMENT_BYTES = 4 << 20
_MOST_LINKS = 8


class Window:
    """Reads a part of a file that stays where it is."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor = descriptor
        self._at = offset
        self._end = offset + size

    def read(self, size: int) -> bytes:
        """See `Read`."""
        piece = os.pread(self._descriptor, min(size, self._end - self._at), self._at)
        self._at += len(piece)
        return piece

    def skip(self, size: int) -> None:
        """Passes over bytes.

        Raises:
            ArchiveError: there are not so many.
        """
        if self._at + size > self._end:
            raise ArchiveError("the archive ends within an entry")
        self._at += size


class Members(Protocol):
    """Files by name."""

    def __contains__(self, name: bytes) -> bool:
        """Whether there is such a file."""
        ...

    def open(self, name: bytes) -> tuple[Read, int]:
        """A file from its start, and its size; ArchiveError when there is none."""
        ...


@dataclass(frozen=True)
class FolderMembers:
    """Files that were opened before, by those who may."""

    descriptors: Mapping[bytes, int]

    def __contains__(self, name: bytes) -> bool:
        """See `Members`."""
        return name in self.descriptors

    def open(self, name: bytes) -> tuple[Read, int]:
        """See `Members`."""
        if name not in self.descriptors:
            raise _missing(name)
        size = os.fstat(self.descriptors[name]).st_size
        return Window(self.descriptors[name], 0, size).read, size


class TarMembers:
    """The files of a tar archive that is not compressed.

    Args:
        descriptor: the archive.
        bounds: of names.
        most: how many there may be.

    Raises:
        ArchiveError: it is no tar archive, is damaged, or holds too many files.
    """

    def __init__(self, descriptor: int, bounds: PathBounds, most: int) -> None:
        self._descriptor = descriptor
        self._bounds = bounds
        self._files: dict[bytes, tuple[int, int] | bytes] = {}
        window = Window(descriptor, 0, os.fstat(descriptor).st_size)
        archive = TarReader(window.read, bounds, window.skip)
        for count, entry in enumerate(archive):
            if count >= most:
                raise ArchiveError(f"it holds more than the {most} entries that are allowed")
            name = b"/".join(entry.path)
            if entry.kind is Kind.FILE:
                self._files[name] = (archive.offset, entry.size)
            elif entry.kind is Kind.SYMLINK:
                self._files[name] = b"/".join((*entry.path[:-1], entry.target))

    def top(self) -> set[bytes]:
        """The first parts of all names."""
        return {name.split(b"/", 1)[0] for name in self._files}

    def __contains__(self, name: bytes) -> bool:
        """See `Members`."""
        return name in self._files

    def open(self, name: bytes) -> tuple[Read, int]:
        """See `Members`. Older `docker save` has a layer twice by a link from one name to the other."""
        found: tuple[int, int] | bytes | None = name
        for _ in range(_MOST_LINKS):
            if not isinstance(found, bytes):
                break
            found = self._files.get(_normal(found))
        if not isinstance(found, tuple):
            raise _missing(name)
        offset, size = found
        return Window(self._descriptor, offset, size).read, size


def document(members: Members, name: bytes) -> tuple[Any, str]:
    """A JSON file and the digest of its bytes.

    Raises:
        ArchiveError: it is missing, too large or no JSON.
    """
    read, size = members.open(name)
    if size > MOST_DOCUMENT_BYTES:
        raise ArchiveError(f"{shown(name)} has {size} bytes; {MOST_DOCUMENT_BYTES} are the most for a description")
    hashed = Hashed(read)
    content = b""
    while piece := hashed.read(size + 1):
        content += piece
    try:
        return json.loads(content), hashed.drain()
    except (ValueError, RecursionError):
        raise ArchiveError(f"{shown(name)} is no JSON") from None


def _normal(name: bytes) -> bytes:
    """A name without `..`, which leads nowhere above the archive."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _missing(name: bytes) -> ArchiveError:
    return ArchiveError(f"the archive lacks its file {shown(name)}")
