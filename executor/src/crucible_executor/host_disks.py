"""How full the writable folders of a sandbox on the host's kernel are, asked of that kernel and of nothing inside."""

from __future__ import annotations

import os
from pathlib import Path

from crucible_executor.limit_hits import DISKS


class HostDisks:
    """The file systems at `limit_hits.DISKS` of a process' mount namespace.

    They are held open, so that they can be asked when every process is gone, whatever ended the sandbox; until `close`,
    which also frees what they hold. The path to them is of the image, whose root is read-only: no program can lead it
    astray.
    """

    def __init__(self, pid: int) -> None:
        """`pid` has just been started and runs nothing but the init.

        Raises:
            OSError: one of them is not there.
        """
        self._fds: dict[str, int] = {}
        try:
            for folder in DISKS:
                path = Path(f"/proc/{pid}/root{folder}")
                self._fds[folder] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def states(self) -> dict[str, os.statvfs_result]:
        """How full each of them is now."""
        return {folder: os.statvfs(fd) for folder, fd in self._fds.items()}

    def close(self) -> None:
        """Lets go of them. Idempotent."""
        while self._fds:
            os.close(self._fds.popitem()[1])
