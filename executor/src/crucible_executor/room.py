"""Room for what runs write and leave: it is kept until storage confirms it, however long storage is away."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from crucible_executor.run import Run
from crucible_rpc.errors import ResourceExhaustedError

_RETRY = timedelta(seconds=5)


class Room:
    """Decides whether another run's output could be kept. What is kept already is never given up for a new run.

    Args:
        folder: where outputs go that are not small.
        most_bytes: all runs' outputs and files together, outputs of running ones as large as they may become.
        least_free_bytes: stays free on the folder's disk.
    """

    def __init__(self, folder: Path, most_bytes: int, least_free_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._least_free_bytes = least_free_bytes

    def check(self, runs: Iterable[Run], output_bytes: int) -> None:
        """Checks that a run that may keep `output_bytes` of each stream fits beside `runs`.

        The files that it may leave do not count: most programs leave none.

        Raises:
            ResourceExhaustedError: STORAGE_FULL, with how much there is and how much there may be.
        """
        kept, growing = _counted(runs)
        growing += 2 * output_bytes
        if kept + growing > self._most_bytes:
            raise _full(
                f"{kept} bytes of output and files wait for storage to confirm them and {growing} more may come, of "
                f"at most {self._most_bytes} (CRUCIBLE_EXECUTOR_MAX_KEPT_BYTES)"
            )
        free = self._free_bytes()
        if free - growing < self._least_free_bytes:
            raise _full(
                f"{free} bytes are free on the disk of {self._folder}, {growing} more bytes may come, and "
                f"{self._least_free_bytes} stay free (CRUCIBLE_EXECUTOR_MIN_FREE_BYTES); free some space"
            )

    def for_files(self, runs: Iterable[Run], wanted_bytes: int) -> int:
        """How many of `wanted_bytes` there is room for beside `runs`, for the files of one of them that has ended."""
        kept, growing = _counted(runs)
        free = self._free_bytes() - self._least_free_bytes
        return max(0, min(wanted_bytes, self._most_bytes - kept - growing, free - growing))

    def _free_bytes(self) -> int:
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize


def _counted(runs: Iterable[Run]) -> tuple[int, int]:
    """Bytes that are kept, and those that may come."""
    kept = growing = 0
    for run in runs:
        now = run.stdout.kept + run.stderr.kept
        kept += now
        if run.record is None:
            growing += run.stdout.limit + run.stderr.limit - now
        if run.left is not None:
            kept += run.left.size
            if run.record is None:
                growing += run.left.limit - run.left.size
    return kept, growing


def _full(text: str) -> ResourceExhaustedError:
    return ResourceExhaustedError("STORAGE_FULL", f"no room for another run's output: {text}", retry_after=_RETRY)
