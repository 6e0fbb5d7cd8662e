"""A backup: a tar archive of the database's file and, after it, a manifest with its size and SHA-256.

`tar xf` takes it apart. The manifest comes last because the digest is known only then: a backup that was cut short has
none, and is refused.
"""

import hashlib
import json
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from crucible_rpc.errors import StartError

DATABASE = "crucible.sqlite3"
MANIFEST = "manifest.json"
FORMAT = 1
_MAX_MANIFEST = 64 << 10
PART = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself.

    Attributes:
        format: of the archive.
        size: of the database's file in bytes.
        sha256: of that file, hex.
        revision: of its schema.
        last_position: of its event log.
        time: when the copy was made, microseconds since 1970.
    """

    format: int
    size: int
    sha256: str
    revision: str
    last_position: int
    time: int


class Writer:
    """Writes a backup, piece by piece, to a stream that need not be a file.

    Args:
        out: where.
        size: of the database's file.
        time: for the archive's entries, microseconds since 1970.
    """

    def __init__(self, out: IO[bytes], size: int, time: int) -> None:
        self._out = out
        self._time = time
        self._left = self._size = size
        self._digest = hashlib.sha256()
        out.write(self._header(DATABASE, size))

    def write(self, data: bytes) -> None:
        """Takes the next bytes of the file."""
        self._left -= len(data)
        self._digest.update(data)
        self._out.write(data)

    def finish(self, revision: str, last_position: int) -> Manifest:
        """Writes the manifest and the archive's end.

        Raises:
            StartError: not as many bytes came as were announced.
        """
        if self._left:
            raise StartError(f"the copy of the database ended {self._left} bytes early; nothing was backed up")
        manifest = Manifest(FORMAT, self._size, self._digest.hexdigest(), revision, last_position, self._time)
        text = json.dumps(asdict(manifest), indent=1).encode() + b"\n"
        self._out.write(_padding(self._size) + self._header(MANIFEST, len(text)) + text + _padding(len(text)))
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))
        self._out.flush()
        return manifest

    def _header(self, name: str, size: int) -> bytes:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o600, self._time // 1_000_000
        return info.tobuf(tarfile.GNU_FORMAT)


def extract(source: IO[bytes], target: Path) -> Manifest:
    """Writes the database of a backup to a new file, and proves that it is the one that was backed up.

    Raises:
        StartError: this is no backup, or it is damaged, or of a later format.
        OSError: the file cannot be written.
    """
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            size, digest = _database(archive, target)
            manifest = _manifest(archive)
            if archive.next() is not None:
                raise StartError("the backup holds more than a database and its manifest")
    except (tarfile.TarError, EOFError):
        raise StartError("this is no backup of storage, or it was cut short") from None
    if (manifest.size, manifest.sha256) != (size, digest):
        raise StartError("the backup is damaged: its database has not the SHA-256 that its manifest says")
    return manifest


def _database(archive: tarfile.TarFile, target: Path) -> tuple[int, str]:
    stream = _member(archive, DATABASE)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as out:
        while data := stream.read(PART):
            out.write(data)
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


def _manifest(archive: tarfile.TarFile) -> Manifest:
    text = _member(archive, MANIFEST).read(_MAX_MANIFEST)
    try:
        facts = json.loads(text)
        if facts["format"] > FORMAT:
            raise StartError(f"the backup has the format {facts['format']}; this version knows {FORMAT}")
        return Manifest(**facts)
    except (ValueError, TypeError, KeyError):
        raise StartError("the backup's manifest is damaged") from None


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    info = archive.next()
    stream = archive.extractfile(info) if info is not None and info.name == name and info.isreg() else None
    if stream is None:
        raise StartError(f"this is no backup of storage, or it was cut short: it lacks {name}")
    return stream


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
