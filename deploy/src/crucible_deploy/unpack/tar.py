"""Reads a tar archive strictly and with bounds: ustar, GNU's long names, and pax.

Not the standard library's: that one keeps every member in memory, passes over what it does not understand, and lets an
extension header be as long as it says. Sparse files are refused: a few bytes of them stand for as many as they like.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from crucible_deploy.unpack.errors import ArchiveError, shown
from crucible_deploy.unpack.streams import PIECE_BYTES, Read

_BLOCK = 512
_MOST_EXTENSION_BYTES = 1 << 20
_MOST_EXTENSIONS = 8
_MOST_FILE_BYTES = 1 << 50

Path = tuple[bytes, ...]
"""The parts of a path below the root; none for the root itself."""


class Kind(Enum):
    """What an entry is."""

    FILE = "file"
    FOLDER = "folder"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    SPECIAL = "device or pipe"


_KINDS = {
    b"0": Kind.FILE, b"\0": Kind.FILE, b"7": Kind.FILE, b"1": Kind.HARDLINK, b"2": Kind.SYMLINK,
    b"3": Kind.SPECIAL, b"4": Kind.SPECIAL, b"5": Kind.FOLDER, b"6": Kind.SPECIAL,
}  # fmt: skip
_SPARSE = "a sparse file, which is not supported: pack the archive without --sparse"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        path: where it belongs.
        kind: what it is.
        mode: permission bits as the archive has them.
        size: bytes of a file, 0 of all else.
        target: of a link, as the archive has it.
    """

    path: Path
    kind: Kind
    mode: int
    size: int
    target: bytes


@dataclass(frozen=True, slots=True)
class PathBounds:
    """How long names may be: bytes of a whole path, parts of it. A part has at most 255 bytes everywhere."""

    path_bytes: int = 1024
    depth: int = 64


def parts_of(name: bytes, bounds: PathBounds) -> Path:
    """The parts of a path in an archive.

    Raises:
        ArchiveError: it is absolute, leads out by `..`, is too long or holds a NUL.
    """
    if name.startswith(b"/"):
        raise ArchiveError(f"the entry {shown(name)} is absolute; pack the archive with relative names")
    if b"\0" in name:
        raise ArchiveError(f"the name {shown(name)} holds a NUL")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise ArchiveError(f"the entry {shown(name)} leads out of its folder by `..`")
    if len(name) > bounds.path_bytes or len(parts) > bounds.depth or any(len(part) > 255 for part in parts):
        raise ArchiveError(
            f"the name {shown(name)} is too long: {bounds.path_bytes} bytes, {bounds.depth} folders, 255 bytes of each"
        )
    return parts


class TarReader:
    """The entries of one archive, one after the other, each once.

    Args:
        read: the archive's bytes.
        bounds: of names.
        skip: passes over bytes where that is cheaper than reading them.

    Attributes:
        offset: bytes read so far: where the content of the current entry begins.
    """

    def __init__(self, read: Read, bounds: PathBounds, skip: Callable[[int], None] | None = None) -> None:
        self._read = read
        self._bounds = bounds
        self._skip = skip
        self._left = self._padding = 0
        self.offset = 0

    def __iter__(self) -> Iterator[Entry]:
        """The entries; what was not read of one's content is passed over.

        Raises:
            ArchiveError: this is no tar archive, or one that says what must not be.
        """
        extensions: dict[str, bytes] = {}
        count = 0
        while (header := self._header()) is not None:
            kind, size = header[156:157], _number(header[124:136])
            if kind in (b"x", b"g", b"L", b"K"):
                count += 1
                if count > _MOST_EXTENSIONS:
                    raise ArchiveError("an entry has too many extension headers")
                self._extend(extensions, kind, size)
                continue
            yield self._entry(header, kind, size, extensions)
            self._pass_over()
            extensions, count = {}, 0
        if extensions:
            raise ArchiveError("the archive ends after an extension header")

    def content(self) -> Iterator[bytes]:
        """The content of the current entry, in pieces."""
        while self._left:
            piece = self._some(min(self._left, PIECE_BYTES))
            self._left -= len(piece)
            yield piece

    def _entry(self, header: bytes, kind_byte: bytes, size: int, extensions: dict[str, bytes]) -> Entry:
        name = extensions.get("path") or _name(header)
        target = extensions.get("linkpath") or _text(header[157:257])
        if any(key.startswith("GNU.sparse.") for key in extensions) or kind_byte == b"S":
            raise ArchiveError(f"the entry {shown(name)} is {_SPARSE}")
        kind = _KINDS.get(kind_byte)
        if kind is None:
            raise ArchiveError(f"the entry {shown(name)} is of the unknown kind {shown(kind_byte)}")
        if "size" in extensions:
            size = _decimal(extensions["size"])
        if kind is Kind.FILE and name.endswith(b"/"):
            kind = Kind.FOLDER  # as before POSIX
        if size and kind is not Kind.FILE:
            raise ArchiveError(f"the entry {shown(name)} is a {kind.value} and says that it has content")
        if size > _MOST_FILE_BYTES:
            raise ArchiveError(f"the entry {shown(name)} says that it has {size} bytes")
        self._left, self._padding = size, -size % _BLOCK
        return Entry(parts_of(name, self._bounds), kind, _number(header[100:108]) & 0o7777, size, target)

    def _extend(self, extensions: dict[str, bytes], kind: bytes, size: int) -> None:
        if size > _MOST_EXTENSION_BYTES:
            raise ArchiveError(f"an extension header of {size} bytes is more than {_MOST_EXTENSION_BYTES}")
        content = self._exactly(size)
        self._exactly(-size % _BLOCK)
        if kind == b"L":
            extensions["path"] = content.rstrip(b"\0")
        elif kind == b"K":
            extensions["linkpath"] = content.rstrip(b"\0")
        else:
            records = _pax(content)
            if kind == b"x":
                extensions |= records
            elif records.keys() & {"path", "linkpath", "size"}:
                raise ArchiveError("a global header gives all entries the same name or size")

    def _header(self) -> bytes | None:
        """The next header; None at the end, which zeros or nothing at all mark."""
        first = self._up_to(_BLOCK)
        if not first or not any(first):
            return None
        if len(first) < _BLOCK:
            raise ArchiveError("the archive ends within a header")
        stored = _number(first[148:156])
        blank = first[:148] + b" " * 8 + first[156:]
        if stored not in (sum(blank), sum(byte - 256 if byte > 127 else byte for byte in blank)):
            raise ArchiveError("it is no tar archive, or it is damaged: a header's checksum is wrong")
        return first

    def _pass_over(self) -> None:
        rest, self._left = self._left + self._padding, 0
        if self._skip is not None:
            self._skip(rest)
            self.offset += rest
            return
        while rest:
            rest -= len(self._some(min(rest, PIECE_BYTES)))

    def _some(self, size: int) -> bytes:
        piece = self._read(size)
        if not piece:
            raise ArchiveError("the archive ends within an entry")
        self.offset += len(piece)
        return piece

    def _exactly(self, size: int) -> bytes:
        content = self._up_to(size)
        if len(content) < size:
            raise ArchiveError("the archive ends within an entry")
        return content

    def _up_to(self, size: int) -> bytes:
        content = b""
        while len(content) < size and (piece := self._read(size - len(content))):
            content += piece
        self.offset += len(content)
        return content


def _name(header: bytes) -> bytes:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes) -> int:
    """Octal digits, or after a first byte of 0x80 a binary number."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.translate(None, b"01234567"):
        raise ArchiveError("it is no tar archive, or it is damaged: a header holds no number where one must be")
    return int(digits or b"0", 8)


def _decimal(field: bytes) -> int:
    if not field.isdigit() or len(field) > 20:
        raise ArchiveError(f"a header says that an entry has {shown(field)} bytes")
    return int(field)


def _pax(content: bytes) -> dict[str, bytes]:
    """The records of a pax header: each `<length> <key>=<value>` and a line feed."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(content):
        digits = content[at : at + 9].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[at + len(digits) + 1 : at + length]
        key, equals, value = record[:-1].partition(b"=")
        if at + length > len(content) or not record.endswith(b"\n") or not key or not equals:
            raise ArchiveError("a pax header is damaged")
        records[key.decode(errors="replace")] = value
        at += length
    return records
