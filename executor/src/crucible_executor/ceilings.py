"""The most that this executor allows of each limit, whatever a ticket says, and which limits are in force for a run."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

from crucible_executor.model import Limit, Limits
from crucible_rpc.errors import FailedPreconditionError

_LIMIT_OF = {
    "wall_time": Limit.WALL_TIME,
    "cpu_time": Limit.CPU_TIME,
    "cpus": Limit.CPUS,
    "memory_bytes": Limit.MEMORY,
    "processes": Limit.PROCESSES,
    "open_files": Limit.OPEN_FILES,
    "output_bytes": Limit.OUTPUT,
    "disk_bytes": Limit.DISK,
    "disk_inodes": Limit.DISK_INODES,
}


@dataclass(frozen=True)
class AskedLimits:
    """What a ticket sets; None where it sets nothing."""

    wall_time: timedelta | None = None
    cpu_time: timedelta | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    open_files: int | None = None
    output_bytes: int | None = None
    disk_bytes: int | None = None
    disk_inodes: int | None = None


class Ceilings:
    """Checks what a ticket asks for.

    Args:
        most: the largest value of each limit.
    """

    def __init__(self, most: Limits) -> None:
        self.most = most

    def admit(self, asked: AskedLimits, engine: str, enforces: Set[Limit]) -> Limits:
        """The limits of a run: what is asked for; the ceiling where nothing is.

        CPU time and inodes that nobody asked for stay without a limit of their own: wall time and bytes bound them.

        Raises:
            FailedPreconditionError: ABOVE_CEILING, or LIMIT_NOT_ENFORCEABLE by this engine.
        """
        given: dict[str, Any] = {
            field.name: value for field in fields(asked) if (value := getattr(asked, field.name)) is not None
        }
        for name, value in given.items():
            if _LIMIT_OF[name] not in enforces:
                raise FailedPreconditionError(
                    "LIMIT_NOT_ENFORCEABLE", f"the engine {engine} cannot enforce the limit {name}; leave it unset"
                )
            most = getattr(self.most, name)
            # `not <=` and not `>`: a NaN is above every ceiling.
            if most is not None and not value <= most:
                raise FailedPreconditionError(
                    "ABOVE_CEILING", f"the limit {name} is {_shown(value)}, and this executor allows {_shown(most)}"
                )
        return replace(self.most, **{"cpu_time": None, "disk_inodes": None, **given})


def in_force(limits: Limits, enforces: Set[Limit]) -> AskedLimits:
    """The part of `limits` that an engine enforces: what a record may state."""
    values: dict[str, Any] = {name: getattr(limits, name) for name, limit in _LIMIT_OF.items() if limit in enforces}
    return AskedLimits(**values)


def _shown(value: object) -> str:
    return f"{value.total_seconds():g} s" if isinstance(value, timedelta) else str(value)
