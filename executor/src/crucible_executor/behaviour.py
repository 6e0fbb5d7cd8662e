"""What a program tried, beside what it printed: counts and bounded examples of what its sandbox's kernel was asked."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

MAX_EXAMPLES = 10
"""Kept of each kind of action, all different."""

MAX_EXAMPLE_CHARACTERS = 160
"""Of one example, escaped: printable ASCII."""


class Observation(enum.Enum):
    """How far what a program tried is known."""

    NOT_OBSERVED = "NOT_OBSERVED"
    OBSERVED = "OBSERVED"
    PARTIAL = "PARTIAL"


class Action(enum.Enum):
    """What is told apart; each is an attempt, whether or not the kernel granted it, but for PROGRAMS and PROCESSES."""

    PROGRAMS = "programs"
    FILES_WRITTEN = "files_written"
    PROBES = "probes"
    SOCKETS = "sockets"
    CONNECTIONS = "connections"
    PROCESSES = "processes"
    PRIVILEGE = "privilege"


@dataclass(frozen=True)
class Actions:
    """All of one kind. `first` is by this host's clock; None when there was none."""

    count: int = 0
    first: datetime | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Behaviour:
    """What one run tried. With NOT_OBSERVED, `actions` is empty and says nothing; `reason` says why.

    `dropped` counts messages that were sent or due and are missing in `actions`. `refused_processes` counts processes
    and threads that the sandbox's kernel refused for there being too many: no kind of attempt, but a limit's doing.
    """

    observation: Observation
    reason: str
    actions: Mapping[Action, Actions]
    dropped: int = 0
    refused_processes: int = 0

    @classmethod
    def not_observed(cls, reason: str) -> Behaviour:
        """Nobody watched, so nothing can be said."""
        return cls(Observation.NOT_OBSERVED, reason, {})
