"""What tenants use: counted in the transaction that causes it, by tenant and UTC day, and never counted anew.

The operations of one group commit add up here in memory; the transaction writes the sums once, before its commit.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from crucible_storage.prepared import Prepared

ALL_DAYS = 0
"""The day of the row that holds all days together, and the stored bytes."""

DAY = 86_400_000_000
"""µs."""

# In one order for everybody, so that two processes that write to one database never wait for each other in a circle.
ADD = Prepared(
    text(
        """
    INSERT INTO tenant_use (tenant, day, evaluations, cpu_micros, stored_bytes)
    VALUES (:tenant, :day, :evaluations, :cpu_micros, :stored_bytes)
    ON CONFLICT (tenant, day) DO UPDATE SET
        evaluations = tenant_use.evaluations + excluded.evaluations,
        cpu_micros = tenant_use.cpu_micros + excluded.cpu_micros,
        stored_bytes = tenant_use.stored_bytes + excluded.stored_bytes
    """
    )
)

Use = tuple[int, int, int]
"""Evaluations created, CPU time in µs, stored bytes."""

_NOTHING: Use = (0, 0, 0)


def day_of(time: int) -> int:
    """The UTC day of a time: days since 1970."""
    return time // DAY


def midnight_after(time: int) -> int:
    """When the UTC day of a time ends."""
    return (time // DAY + 1) * DAY


class Usage:
    """What the operations of one transaction use.

    Attributes:
        accounts: for `admission`: what it read in this transaction; part of what is undone.
    """

    def __init__(self) -> None:
        self._added: dict[tuple[str, int], Use] = {}
        self.accounts: dict[tuple[str, int], Any] = {}

    def created(self, tenant: str, time: int, count: int, stored_bytes: int) -> None:
        """So many more evaluations, whose programs together have so many bytes."""
        self._add(tenant, day_of(time), count, 0, 0)
        self._add(tenant, ALL_DAYS, count, 0, stored_bytes)

    def computed(self, tenant: str, time: int, cpu_micros: int) -> None:
        """An attempt that ended at `time` used so much CPU time."""
        self._add(tenant, day_of(time), 0, cpu_micros, 0)
        self._add(tenant, ALL_DAYS, 0, cpu_micros, 0)

    def stored(self, tenant: str, stored_bytes: int) -> None:
        """So many bytes are stored for good; negative when they were deleted."""
        if stored_bytes:
            self._add(tenant, ALL_DAYS, 0, 0, stored_bytes)

    def added(self, tenant: str, day: int) -> Use:
        """What this transaction added until now."""
        return self._added.get((tenant, day), _NOTHING)

    def rows(self) -> list[Mapping[str, Any]]:
        """What is to be written, as parameters of `ADD`."""
        return [
            {"tenant": tenant, "day": day, "evaluations": use[0], "cpu_micros": use[1], "stored_bytes": use[2]}
            for (tenant, day), use in sorted(self._added.items())
        ]

    def mark(self) -> dict[tuple[str, int], Use]:
        """For `back_to`."""
        return dict(self._added)

    def back_to(self, mark: dict[tuple[str, int], Use]) -> None:
        """Undoes what was added since; what was read is read again, for its locks went with the savepoint."""
        self._added = mark
        self.accounts.clear()

    def _add(self, tenant: str, day: int, evaluations: int, cpu_micros: int, stored_bytes: int) -> None:
        before = self._added.get((tenant, day), _NOTHING)
        after = (before[0] + evaluations, before[1] + cpu_micros, before[2] + stored_bytes)
        self._added[tenant, day] = after
