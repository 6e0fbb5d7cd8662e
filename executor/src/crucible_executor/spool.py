"""The kept bytes of the files that a program left, all in one file of the executor's, until storage has them."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path


class Spool:
    """Bytes that are appended while a run ends, and read back after that. Its methods may block.

    Args:
        file: where they go. Made when the first byte comes.
        limit: how many there is room for.

    Attributes:
        limit: see above.
        size: how many there are.
        fault: why not all that was appended is there; empty when it is.
    """

    def __init__(self, file: Path, limit: int) -> None:
        self._file = file
        self.limit = limit
        self.size = 0
        self.fault = ""
        self._fd = -1
        self._dropped = False
        self._lock = threading.Lock()  # a thread may still append when the run was given up

    @classmethod
    def of_file(cls, file: Path) -> Spool:
        """The spool of a run that ended in an earlier start of the executor.

        Raises:
            OSError: there is no such file.
        """
        spool = cls(file, 0)
        spool.size = file.stat().st_size
        return spool

    def append(self, data: bytes) -> None:
        """Adds bytes to the end; nothing any more once there is a `fault`."""
        with self._lock:
            if self._dropped or self.fault:
                return
            try:
                self._append(data)
            except OSError as error:
                self.fault = error.strerror or str(error)

    def _append(self, data: bytes) -> None:
        if self.size + len(data) > self.limit:
            raise OSError(errno.ENOSPC, f"there was room for {self.limit} bytes")
        if self._fd < 0:
            self._fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self.size)
            view, self.size = view[written:], self.size + written

    def cut_back(self, size: int) -> None:
        """Takes back what was added after the first `size` bytes."""
        with self._lock:
            if self._fd < 0 or size >= self.size:
                return
            try:
                os.ftruncate(self._fd, size)
                self.size = size
            except OSError as error:
                self.fault = self.fault or error.strerror or str(error)

    def persist(self) -> None:
        """Makes the bytes durable; no more are added. The folder's entry is the caller's to sync.

        Raises:
            OSError: they cannot be written.
        """
        with self._lock:
            if self._fd >= 0:
                os.fsync(self._fd)
                os.close(self._fd)
                self._fd = -1

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on.

        Raises:
            OSError: it was dropped.
        """
        fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def drop(self) -> None:
        """Removes the file."""
        with self._lock:
            self._dropped = True
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            self._file.unlink(missing_ok=True)
            self.size = 0
