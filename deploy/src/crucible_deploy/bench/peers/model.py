"""What a peer is, and what is told of it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any


class PeerAbsentError(Exception):
    """This machine cannot run this peer; the text says why and what would mend it."""


@dataclass(frozen=True)
class Ran:
    """One program, run from nothing to its last byte.

    Attributes:
        seconds: as the caller of the peer sees it.
        stdout: what the program wrote.
        warm: of our engines: whether its sandbox had been booted ahead.
    """

    seconds: float
    stdout: bytes
    warm: bool = False


Run = Callable[[str], Awaitable[Ran]]
"""Runs the text of a Python program; a BenchError when it did not run."""


@dataclass(frozen=True)
class Peer:
    """One way to run a program.

    Attributes:
        name: for the tables.
        open: makes it ready and yields what runs a program; PeerAbsentError when it cannot be had here.
        pause_s: how long the machine is left alone before each single run, so that what is booted ahead is there.
    """

    name: str
    open: Callable[[], AbstractAsyncContextManager[Run]]
    pause_s: float = 0.0


@dataclass(frozen=True)
class Compared:
    """One peer's line in the tables.

    Attributes:
        name: of the peer.
        reason: why there are no figures; empty: there are.
        failed: whether it ought to have run; a peer that this machine lacks has not failed.
        median_ms: of one program at a time.
        p95_ms: likewise.
        per_second: programs, four at once.
        runs: how many single runs there were.
        note: what else a reader must know.
        inside: what a program inside sees of its isolation, by subject, in words; None: it was not looked at.
    """

    name: str
    reason: str = ""
    failed: bool = False
    median_ms: float = 0.0
    p95_ms: float = 0.0
    per_second: float = 0.0
    runs: int = 0
    note: str = ""
    inside: dict[str, str] | None = None

    def as_record(self) -> dict[str, Any]:
        """For JSON: figures only when there are any."""
        if self.reason:
            return {"name": self.name, "reason": self.reason, "failed": self.failed}
        figures = {"median_ms": self.median_ms, "p95_ms": self.p95_ms, "per_second_4_wide": self.per_second}
        return {"name": self.name, **figures, "runs": self.runs, "note": self.note, "inside": self.inside}
