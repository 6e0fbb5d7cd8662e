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

MAX_TOLD = 32
"""Different actions of each kind that are told of one run while it goes on."""

MAX_UPDATES = 256
"""Of one run; each tells an action, a kind that is exhausted, or once that something is missing or not seen."""


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

    @classmethod
    def no_trace(cls, engine: str) -> Behaviour:
        """What every run of an engine without a trace says."""
        return cls.not_observed(f"the engine {engine} has no trace")


@dataclass(frozen=True)
class Sight:
    """An action that was seen for the first time in its run.

    Attributes:
        action: its kind.
        example: which, as in `Actions.examples`.
        count: of its kind until then, with this one.
        time: by this host's clock.
    """

    action: Action
    example: str
    count: int
    time: datetime


@dataclass(frozen=True)
class Update:
    """What is told of a run's behaviour while it goes on; after one with NOT_OBSERVED there is no other.

    Attributes:
        observation: how far what happened until now was seen.
        reason: why not all of it; empty with OBSERVED.
        sights: in their order.
        exhausted: kinds of which no more is told.
    """

    observation: Observation
    reason: str = ""
    sights: tuple[Sight, ...] = ()
    exhausted: tuple[Action, ...] = ()
