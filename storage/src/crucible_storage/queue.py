"""Which evaluation is leased next.

Within a tenant: by `rank` = creation time - priority x `Policy.ageing`, smallest first. That is the order of "priority
plus 1 for every 30 s waited" at any moment, as a constant that an index can hold. Priorities lie within -100 and 100,
so nothing is overtaken by what was created more than 200 x 30 s = 100 minutes after it.

Between tenants: whoever has the fewest evaluations running goes first, and among equals whoever was served longest ago.
So each tenant with work that waits gets an equal share of the slots, however much the others have queued; one that has
nothing running is served at the latest after one lease to every other tenant.

A lane is a tenant, an engine and a runtime; an executor sees the lanes that it can run. Their heads are read from one
index; nothing here depends on how long the queue is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from sqlalchemy import bindparam, or_, select, text, update
from sqlalchemy.engine import Connection

from crucible_storage import models
from crucible_storage.clock import micros
from crucible_storage.executors import Known
from crucible_storage.policy import Policy

_SEPARATOR = "\x1f"  # sorts before every character of a name and is part of none
_PAGE = 16

# No wait is as long as an hour: one that seems to be was noted before the clock was set back.
# Those that another process changes now it releases itself.
_ROW = models.evaluation.c
_DUE = (
    select(_ROW.seq)
    .where(
        text("state = 1 AND not_before IS NOT NULL"),
        or_(_ROW.not_before <= bindparam("now"), _ROW.not_before > bindparam("now") + 3_600_000_000),
    )
    .with_for_update(key_share=True, skip_locked=True)
)
_RELEASE_DELAYED = update(models.evaluation).where(_ROW.seq.in_(_DUE)).values(not_before=None)
_NEXT_DELAYED = text("SELECT min(not_before) FROM evaluation WHERE state = 1 AND not_before IS NOT NULL")
_LANES = text(
    """
    WITH RECURSIVE lanes(lane) AS (
        SELECT min(lane) FROM evaluation WHERE state = 1 AND not_before IS NULL
        UNION ALL
        SELECT (SELECT min(lane) FROM evaluation WHERE state = 1 AND not_before IS NULL AND lane > lanes.lane)
        FROM lanes WHERE lanes.lane IS NOT NULL
    )
    SELECT lane FROM lanes WHERE lane IS NOT NULL
    """
)
_HEADS = text(
    """
    SELECT rank, seq, create_time, run_spec_size FROM evaluation
    WHERE state = 1 AND not_before IS NULL AND lane = :lane AND (rank, seq) > (:rank, :seq)
    ORDER BY rank, seq LIMIT :limit
    """
)
# `lease_renewed` is set exactly while a lease is held; naming it, and nothing that another index is ordered by, makes
# SQLite use the small index of held leases.
_HELD = text(
    "SELECT tenant || '', count(*) FROM evaluation WHERE state IN (2, 3) AND lease_renewed > 0 GROUP BY tenant || ''"
)
_BEFORE_ALL = -(1 << 62)


def lane_of(tenant: str, engine: str, runtime: str) -> str:
    """The lane of work; none of the three contains a control character."""
    return _SEPARATOR.join((tenant, engine, runtime))


def rank_of(create_time: int, priority: int, policy: Policy) -> int:
    """The place within a lane; see the module."""
    return create_time - priority * micros(policy.ageing)


def next_delayed(connection: Connection) -> int | None:
    """When the next evaluation that waits for a time may be leased; None when none does."""
    at: int | None = connection.execute(_NEXT_DELAYED).scalar_one()
    return at


@dataclass(frozen=True, slots=True, order=True)
class Waiting:
    """The head of a lane. Orders as work of one tenant does."""

    rank: int
    seq: int
    create_time: int
    size: int


@dataclass(slots=True)
class _Lane:
    connection: Connection
    name: str
    heads: list[Waiting] = field(default_factory=list)
    more: bool = True

    def head(self) -> Waiting | None:
        """The first of what waits here and was not taken; pages are kept in reverse."""
        if not self.heads and self.more:
            self._read(_BEFORE_ALL, 0)
        return self.heads[-1] if self.heads else None

    def take(self) -> Waiting:
        """Takes the head."""
        taken = self.heads.pop()
        if not self.heads and self.more:
            self._read(taken.rank, taken.seq)
        return taken

    def _read(self, rank: int, seq: int) -> None:
        rows = self.connection.execute(_HEADS, {"lane": self.name, "rank": rank, "seq": seq, "limit": _PAGE}).fetchall()
        self.more = len(rows) == _PAGE
        self.heads = [Waiting(*row) for row in reversed(rows)]


@dataclass(slots=True)
class _Tenant:
    running: int
    served: int
    lanes: list[_Lane] = field(default_factory=list)

    def best(self) -> _Lane | None:
        """The lane whose head goes first."""
        heads = [(head, lane) for lane in self.lanes if (head := lane.head()) is not None]
        return min(heads, key=lambda pair: pair[0])[1] if heads else None


class Queue:
    """Picks work fairly. Remembers, for the life of the process, who was served last."""

    def __init__(self) -> None:
        self._turn = count(1)
        self._served: dict[str, int] = {}

    def pick(self, connection: Connection, known: Known, now: int) -> Iterator[Waiting]:
        """Work for an executor, best first, for as long as the caller leases what it is given.

        Runs in the writer's transaction.
        """
        connection.execute(_RELEASE_DELAYED, {"now": now})
        tenants = self._tenants(connection, known)
        while tenants:
            name, lane = self._next(tenants)
            if lane is None:
                del tenants[name]
                continue
            taken = lane.take()
            tenants[name].running += 1
            tenants[name].served = self._served[name] = next(self._turn)
            yield taken

    def _next(self, tenants: dict[str, _Tenant]) -> tuple[str, _Lane | None]:
        name = min(tenants, key=lambda one: (tenants[one].running, tenants[one].served, one))
        return name, tenants[name].best()

    def _tenants(self, connection: Connection, known: Known) -> dict[str, _Tenant]:
        """The tenants with work that this executor can run."""
        tenants: dict[str, _Tenant] = {}
        names = [row[0] for row in connection.execute(_LANES)]
        if not names:
            return tenants
        running = {row[0]: row[1] for row in connection.execute(_HELD)}
        for name in names:
            tenant, engine, runtime = name.split(_SEPARATOR)
            if engine in known.engines and runtime in known.runtimes:
                one = tenants.setdefault(tenant, _Tenant(running.get(tenant, 0), self._served.get(tenant, 0)))
                one.lanes.append(_Lane(connection, name))
        return tenants
