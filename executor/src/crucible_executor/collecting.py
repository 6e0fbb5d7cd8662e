"""Collects the files that a program left, from the sandbox's init into the run's spool."""

from __future__ import annotations

import asyncio
import hashlib

from crucible_executor.init_protocol import MAX_LEFT_FILES, ProtocolError
from crucible_executor.left_files import Begun, Ended, LeftFilesReader, Over, Piece
from crucible_executor.model import Artifact, Artifacts
from crucible_executor.spool import Spool

MAX_PATHS_BYTES = 16 << 10
"""Of all paths together."""

PATIENCE_S = 30.0
"""How long a sandbox may take to hand them over: no limit of its program holds any more."""

_TOO_SLOW = f"the sandbox did not hand over all of its files, within {PATIENCE_S:g} s or before it was ended"
_TOO_MANY = "there were more files and folders than anybody looks at"


class Collector:
    """Takes what the init sends after it said that there are files, and bounds it.

    What arrives is taken apart at once; hashing and writing are done in a thread, and until that is done no more is
    taken: a slow disk must not hold up other runs, nor anything gather in memory.

    Args:
        limit_bytes: how much is kept of all files together.
        spool: where it goes.
    """

    def __init__(self, limit_bytes: int, spool: Spool) -> None:
        self._may_come = limit_bytes
        self._reader = LeftFilesReader()
        self._files = self._path_bytes = 0
        self._paths: set[bytes] = set()
        self._pieces: list[Piece] = []
        self._written: asyncio.Future[None] | None = None
        self._writing = _Writing(spool)
        self._keeps = False
        self._omitted = 0
        self._over: Over | None = None

    @property
    def finished(self) -> bool:
        """Whether the init has sent everything."""
        return self._reader.finished

    def feed(self, data: bytes) -> bytes:
        """Takes bytes as they come; returns those after the end.

        Raises:
            ProtocolError: they are none of an init's.
        """
        for piece in self._reader.feed(data):
            if isinstance(piece, memoryview):
                return bytes(piece)
            self._take(piece)
        return b""

    def flush(self) -> asyncio.Future[None] | None:
        """Has written what was taken; until the future is done nothing more may be fed. None: that is done."""
        if self._written is not None and not self._written.done():
            return self._written
        if not self._pieces:
            return None
        pieces, self._pieces = self._pieces, []
        self._written = asyncio.get_running_loop().run_in_executor(None, self._writing.write, pieces)
        return self._written

    async def artifacts(self) -> Artifacts:
        """What was collected, when the sandbox is gone."""
        while (written := self.flush()) is not None:
            await written
        files = tuple(sorted(self._writing.files, key=lambda file: file.path.encode()))
        if self._over is None:
            return Artifacts(files, self._omitted, _TOO_SLOW)
        return Artifacts(files, self._omitted + self._over.omitted, _TOO_MANY if self._over.not_all_seen else "")

    def _take(self, piece: Piece) -> None:
        match piece:
            case Begun(path):
                self._keeps = self._admits(path)
                self._omitted += not self._keeps
            case bytes():
                self._may_come -= len(piece)
                if self._may_come < 0:
                    raise ProtocolError("the sandbox's init sent more of the program's files than it was asked for")
            case Over():
                self._over = piece
                return
        if self._keeps:
            self._pieces.append(piece)

    def _admits(self, path: bytes) -> bool:
        """Whether a file is listed."""
        self._files += 1
        if self._files > MAX_LEFT_FILES or path in self._paths:
            raise ProtocolError("the sandbox's init sent files that it cannot have found")
        self._paths.add(path)
        try:
            path.decode()
        except UnicodeDecodeError:
            return False
        if self._path_bytes + len(path) > MAX_PATHS_BYTES:
            return False
        self._path_bytes += len(path)
        return True


class _Writing:
    """Writes pieces, in a thread, one call at a time."""

    def __init__(self, spool: Spool) -> None:
        self.files: list[Artifact] = []
        self._spool = spool
        self._file = Begun(b"", 0)
        self._digest = hashlib.sha256()
        self._offset = 0

    def write(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Begun():
                    self._file, self._digest, self._offset = piece, hashlib.sha256(), self._spool.size
                case bytes():
                    self._digest.update(piece)
                    self._spool.append(piece)
                case Ended(whole=False):
                    self._spool.cut_back(self._offset)
                case Ended():
                    kept = self._spool.size - self._offset
                    total = max(kept, self._file.size)
                    self.files.append(
                        Artifact(self._file.path.decode(), total, kept, self._digest.digest(), self._offset)
                    )
