"""The kept bytes of a run's output streams: in memory while they are few, in a file when they are many."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from crucible_executor.spool import Spool
from crucible_executor.statedir import fsync_folder

SPILL_BYTES = 128 << 10
"""More than this of one stream goes to a file."""

INLINE_BYTES = 32 << 10
"""Outputs of a run that are together at most this large are kept inside its journal entry instead of in files."""


class KeptOutput:
    """The first `limit` bytes of one stream; the rest is counted.

    Args:
        limit: how many bytes are kept.
        file: where they go when they are many. Made when needed.

    Attributes:
        limit: see above.
        total: bytes written by the program.
        kept: bytes that can be read back.
    """

    def __init__(self, limit: int, file: Path) -> None:
        self.limit = limit
        self._file = file
        self._memory = bytearray()
        self._fd = -1
        self._in_file = False
        self._digest = hashlib.sha256()
        self.total = 0
        self.kept = 0

    @classmethod
    def of_bytes(cls, data: bytes, total: int, file: Path) -> KeptOutput:
        """The finished output of an earlier start of the executor, as its journal has it."""
        output = cls(len(data), file)
        output.add(data)
        output.total = total
        return output

    @classmethod
    def of_file(cls, file: Path, total: int) -> KeptOutput:
        """The finished output of an earlier start of the executor, as its file has it.

        Raises:
            OSError: there is no such file.
        """
        output = cls(0, file)
        output._in_file = True
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                output._digest.update(chunk)
                output.kept += len(chunk)
        output.total = total
        return output

    @property
    def sha256(self) -> bytes:
        """Over the kept bytes."""
        return self._digest.digest()

    @property
    def in_file(self) -> bool:
        """Whether the kept bytes are in the file."""
        return self._in_file

    def add(self, data: bytes) -> int:
        """Takes what the program wrote; returns how much of it is kept.

        Raises:
            OSError: the file cannot be written. Nothing of `data` is kept then.
        """
        keep = data[: max(0, self.limit - self.kept)]
        if keep:
            if not self._in_file and self.kept + len(keep) > SPILL_BYTES:
                self._spill()
            if not self._in_file:
                self._memory += keep
            else:
                _write_at(self._fd, keep, self.kept)
            self._digest.update(keep)
            self.kept += len(keep)
        self.total += len(data)
        return len(keep)

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` kept bytes from `offset` on; empty at the end."""
        if not self._in_file:
            return bytes(self._memory[offset : offset + size])
        size = max(0, min(size, self.kept - offset))
        if not size:
            return b""
        if self._fd >= 0:
            return os.pread(self._fd, size, offset)
        fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def persist(self) -> None:
        """Puts the kept bytes durably into the file; blocks. The folder's entry is the caller's to sync."""
        if not self._in_file:
            self._spill()
        os.fsync(self._fd)

    def rest(self) -> None:
        """Gives its descriptor back, for no more is added: many finished runs may wait to be acknowledged."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def drop(self) -> None:
        """Frees the memory and removes the file."""
        self._memory = bytearray()
        self.rest()
        if self._in_file:
            self._in_file = False
            self.kept = 0
            self._file.unlink(missing_ok=True)

    def _spill(self) -> None:
        fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _write_at(fd, bytes(self._memory), 0)
        except OSError:
            os.close(fd)
            self._file.unlink(missing_ok=True)
            raise
        self._fd, self._in_file, self._memory = fd, True, bytearray()


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


class DamagedOutputError(Exception):
    """What the journal says of a kept output is not what is on disk."""


class OutputFolder:
    """Where outputs go that are too large for memory or for the journal, and the files that programs left."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self, run_id: str, limit: int) -> tuple[KeptOutput, KeptOutput]:
        """Empty outputs for a new run: standard output and standard error."""
        return KeptOutput(limit, self._file(run_id, "stdout")), KeptOutput(limit, self._file(run_id, "stderr"))

    def spool(self, run_id: str, limit: int) -> Spool:
        """Where the files of a run go, at most `limit` bytes."""
        return Spool(self._file(run_id, "files"), limit)

    async def persist_spool(self, spool: Spool) -> None:
        """Makes it durable.

        Raises:
            OSError: it cannot be written.
        """
        await asyncio.to_thread(spool.persist)
        await asyncio.to_thread(fsync_folder, self._path)

    def restore_spool(self, run_id: str, size: int) -> Spool:
        """That of a run that ended in an earlier start of the executor.

        Raises:
            DamagedOutputError: it has fewer bytes than `size`.
        """
        file = self._file(run_id, "files")
        try:
            spool = Spool.of_file(file)
        except OSError as error:
            raise DamagedOutputError(f"{file} cannot be read: {error}") from error
        if spool.size < size:
            raise DamagedOutputError(f"{file} is shorter than it was")
        return spool

    async def persist(self, stdout: KeptOutput, stderr: KeptOutput) -> dict[str, Any]:
        """Makes both durable; returns what the journal must know to `restore` them.

        Raises:
            OSError: a file cannot be written.
        """
        if not (stdout.in_file or stderr.in_file) and stdout.kept + stderr.kept <= INLINE_BYTES:
            return {name: [one.total, _text(one)] for name, one in (("stdout", stdout), ("stderr", stderr))}
        await asyncio.to_thread(self._persist, stdout, stderr)
        for one in (stdout, stderr):  # not in the thread: a reader here could meet the number of another file
            one.rest()
        return {name: [one.total, None, one.sha256.hex()] for name, one in (("stdout", stdout), ("stderr", stderr))}

    def restore(self, run_id: str, fields: dict[str, Any]) -> tuple[KeptOutput, KeptOutput]:
        """The outputs of a run that ended in an earlier start of the executor; blocks.

        Raises:
            DamagedOutputError: see the class.
        """
        return self._restore(run_id, "stdout", fields), self._restore(run_id, "stderr", fields)

    def remove_all_but(self, run_ids: Container[str]) -> None:
        """Removes the files of all other runs; blocks."""
        for file in self._path.iterdir():
            if file.name.rpartition(".")[0] not in run_ids:
                file.unlink()

    def _restore(self, run_id: str, name: str, fields: dict[str, Any]) -> KeptOutput:
        file = self._file(run_id, name)
        try:
            total, text, *digest = fields[name]
            if text is not None:
                return KeptOutput.of_bytes(base64.b64decode(text), total, file)
            output = KeptOutput.of_file(file, total)
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise DamagedOutputError(f"{name} cannot be read: {error}") from error
        if [output.sha256.hex()] != digest:
            raise DamagedOutputError(f"{file} is not what was written")
        return output

    def _persist(self, *outputs: KeptOutput) -> None:
        for output in outputs:
            output.persist()
        fsync_folder(self._path)

    def _file(self, run_id: str, name: str) -> Path:
        return self._path / f"{run_id}.{name}"


def _text(output: KeptOutput) -> str:
    return base64.b64encode(output.read(0, output.kept)).decode()
