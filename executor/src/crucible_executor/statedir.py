"""The executor's state folder: one process at a time, private, and with an id that stays over restarts."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from pathlib import Path

from crucible_rpc.errors import StartError

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class StateDir:
    """A locked state folder. The lock is the process': the kernel drops it however the process ends.

    Attributes:
        path: the folder, mode 0700.
        executor_id: made at the first start, the same at every later one.
        journal: the journal's file.
        outputs: the folder of kept outputs.
    """

    def __init__(self, path: Path, lock_fd: int, executor_id: str) -> None:
        self.path = path
        self.executor_id = executor_id
        self.journal = path / "journal"
        self.outputs = path / "outputs"
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path) -> StateDir:
        """Makes the folder if it is missing, and locks it.

        Raises:
            StartError: another process has it, or it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.chmod(0o700)
            (path / "outputs").mkdir(exist_ok=True, mode=0o700)
            lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"the state folder {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock_fd)
            raise StartError(f"another executor is using the state folder {path}; stop it or choose another") from error
        try:
            return cls(path, lock_fd, _executor_id(path / "id"))
        except OSError as error:
            os.close(lock_fd)
            raise StartError(f"the state folder {path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Lets another process have the folder."""
        os.close(self._lock_fd)


def _executor_id(file: Path) -> str:
    if file.exists():
        text = file.read_text(encoding="ascii", errors="replace").strip()
        if not _ID.fullmatch(text):
            raise StartError(f"{file} does not hold an executor id; remove it to get a new one")
        return text
    made = f"x-{uuid.uuid4().hex[:16]}"
    temporary = file.with_name("id.new")
    with temporary.open("w", encoding="ascii") as stream:
        stream.write(made + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)
    fsync_folder(file.parent)
    return made


def fsync_folder(path: Path) -> None:
    """Makes creations, renames and removals in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
