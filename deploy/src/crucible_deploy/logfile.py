"""A log that cannot fill the disk: two files of a bounded size, and lines of a bounded length."""

import os
from contextlib import suppress
from pathlib import Path

MAX_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 16 * 1024


class LogFile:
    """Appends lines to `path`; beyond `max_bytes` it becomes `<path>.1`, in place of the one before.

    Args:
        path: the file, made 0600.
        max_bytes: its size at most; both files together hold twice that.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self._max = max_bytes
        self._descriptor = self._open()

    def write(self, line: bytes) -> None:
        """Appends one line; a newline is added. A full disk loses the line and stops nobody."""
        try:
            if os.fstat(self._descriptor).st_size + len(line) >= self._max:
                self._rotate()
            os.write(self._descriptor, line + b"\n")
        except OSError:
            return

    def close(self) -> None:
        """Ends it."""
        os.close(self._descriptor)

    def _rotate(self) -> None:
        with suppress(FileNotFoundError):  # renamed before, when the new file could not be made
            self.path.rename(self.path.with_name(self.path.name + ".1"))
        full, self._descriptor = self._descriptor, self._open()
        os.close(full)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


class LineSplitter:
    """Cuts a stream of bytes into lines of at most `MAX_LINE_BYTES`; a longer one is cut into several."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]
        return [line[at : at + MAX_LINE_BYTES] for line in lines for at in range(0, max(len(line), 1), MAX_LINE_BYTES)]

    def end(self) -> list[bytes]:
        """What is left without a newline."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []
