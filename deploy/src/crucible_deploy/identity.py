"""Names one process for good: a pid alone may be another's tomorrow, a pid with its start time never is."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of this boot.

    Attributes:
        pid: its id.
        start_time: when it started, in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    """

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has this pid now; None when there is none, or one that has ended and waits to be reaped."""
        try:
            # The name is in parentheses and may hold anything, so what follows is found from the end.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return type(self).of(self.pid) == self

    def open(self) -> int | None:
        """A descriptor of this process, readable when it has ended; None when it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive:
            return descriptor
        os.close(descriptor)
        return None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to this process, never to a later one with its pid; nothing when it is gone."""
        descriptor = self.open()
        if descriptor is None:
            return
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    def wait_gone(self, seconds: float) -> bool:
        """Waits until this process is gone, at most `seconds`; whether it is."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True
