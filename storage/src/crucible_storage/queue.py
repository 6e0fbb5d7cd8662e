"""Which evaluation is leased next.

Within a tenant: by `rank` = creation time - priority x `Policy.ageing`, smallest first. That is the order of "priority
plus 1 for every 30 s waited" at any moment, as a constant that an index can hold.

The longest wait. In a tenant whose highest priority is P, an evaluation of priority p is overtaken by nothing that was
created more than (P - p) x 30 s after it; priorities lie within -100 and 100, so that is 100 minutes at most, and
nothing at all where all have one priority. What is ahead of it then was there already, and is worked off at the speed
of its tenant's share. So it waits (P - p) x 30 s at most, and as long as the tenant's share of the slots takes for what
is ahead of it then. `queue_simulation` measures both over a day of load.

Between tenants: by weight and running work; see `fairness`. A tenant with as much under way as its quota allows, or
whose queue is paused, is passed over.

A lane is a tenant, an engine and a runtime; an executor sees the lanes that it can run. Their heads are read from one
index; nothing here depends on how long the queue is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import BindParameter, bindparam, null, or_, select, text, update
from sqlalchemy.engine import Connection

from crucible_storage import models
from crucible_storage.clock import micros
from crucible_storage.fairness import Fairness, Share
from crucible_storage.lifecycle import HELD
from crucible_storage.models import PLATFORM
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared

_SEPARATOR = "\x1f"  # sorts before every character of a name and is part of none
_PAGE = 16

# Firsts by ORDER BY and LIMIT, not by min(): for that PostgreSQL reads the whole queue as long as its statistics say
# that there is none.

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
_RELEASE_DELAYED = Prepared(update(models.evaluation).where(_ROW.seq.in_(_DUE)).values(not_before=null()))
_NEXT_DELAYED = text(
    """
    SELECT (SELECT not_before FROM evaluation WHERE state = 1 AND not_before IS NOT NULL ORDER BY not_before LIMIT 1)
    """
)
_LANES = Prepared(
    text(
        """
    WITH RECURSIVE lanes(lane) AS (
        SELECT (SELECT lane FROM evaluation WHERE state = 1 AND not_before IS NULL AND blocked = 0
                ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT (SELECT lane FROM evaluation
                WHERE state = 1 AND not_before IS NULL AND blocked = 0 AND lane > lanes.lane ORDER BY lane LIMIT 1)
        FROM lanes WHERE lanes.lane IS NOT NULL
    )
    SELECT lane FROM lanes WHERE lane IS NOT NULL
    """
    )
)
_HEADS = Prepared(
    text(
        """
    SELECT rank, seq, create_time, run_spec_size FROM evaluation
    WHERE state = 1 AND not_before IS NULL AND blocked = 0 AND lane = :lane AND (rank, seq) > (:rank, :seq)
    ORDER BY rank, seq LIMIT :limit
    """
    )
)
# Pauses, and the tenants whose settings are not the plain ones; a pause shows by the weight 0, which no tenant has.
_SETTINGS = Prepared(
    text(
        """
    SELECT tenant, weight, max_running FROM tenant WHERE weight <> 1 OR max_running > 0
    UNION ALL
    SELECT tenant, 0, 0 FROM queue_pause
    """
    )
)
_RUNNING = Prepared(text("SELECT tenant, count FROM evaluation_count WHERE state IN (2, 3) AND count > 0"))
_TENANT = models.tenant.c
_NAMED: BindParameter[list[str]] = bindparam("tenants", expanding=True)
_LOCK = select(_TENANT.tenant).where(_TENANT.tenant.in_(_NAMED)).order_by(_TENANT.tenant).with_for_update()
_BEFORE_ALL = -(1 << 62)
_PLAIN = (1, 0)


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


class Runnable(Protocol):
    """What an executor can run."""

    @property
    def engines(self) -> frozenset[str]:
        """Names of engines."""

    @property
    def runtimes(self) -> frozenset[str]:
        """Names of runtimes."""


class Picking(Protocol):
    """What picking needs of a write transaction."""

    @property
    def connection(self) -> Connection:
        """In the transaction."""

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the database at the same time."""

    @property
    def counts(self) -> dict[tuple[str, int], int]:
        """How many more evaluations of a tenant are in a state than `evaluation_count` says."""


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
        rows = _HEADS.all(self.connection, {"lane": self.name, "rank": rank, "seq": seq, "limit": _PAGE})
        self.more = len(rows) == _PAGE
        self.heads = [Waiting(*row) for row in reversed(rows)]


class Queue:
    """Picks work fairly.

    Attributes:
        held_back: tenants of whom more could run but for their quota, as of the last pick.
    """

    def __init__(self) -> None:
        self._fairness = Fairness()
        self.held_back: frozenset[str] = frozenset()

    def pick(self, transaction: Picking, known: Runnable, now: int) -> Iterator[Waiting]:
        """Work for an executor, best first, for as long as the caller leases what it is given.

        Runs in the writer's transaction.
        """
        connection = transaction.connection
        _RELEASE_DELAYED.run(connection, {"now": now})
        settings, paused = _settings(connection)
        lanes = {} if PLATFORM in paused else _lanes(connection, known, paused)
        shares = _shares(transaction, lanes, settings)
        self._fairness.begin(shares.values(), now)
        self.held_back = frozenset(name for name, share in shares.items() if share.full)
        while (share := self._fairness.next(shares.values())) is not None:
            best = _best(lanes[share.tenant])
            if best is None:
                del shares[share.tenant]
                continue
            taken = best.take()
            self._fairness.served(share)
            if share.full:
                self.held_back |= {share.tenant}
            yield taken


def _best(lanes: list[_Lane]) -> _Lane | None:
    """The lane whose head goes first."""
    heads = [(head, lane) for lane in lanes if (head := lane.head()) is not None]
    return min(heads, key=lambda pair: pair[0])[1] if heads else None


def _settings(connection: Connection) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Weight and quota of running of the tenants who have other than the plain ones, and whose queue is paused."""
    settings: dict[str, tuple[int, int]] = {}
    paused = set()
    for tenant, weight, max_running in _SETTINGS.all(connection, {}):
        if weight:
            settings[tenant] = (weight, max_running)
        else:
            paused.add(tenant)
    return settings, paused


def _lanes(connection: Connection, known: Runnable, paused: set[str]) -> dict[str, list[_Lane]]:
    """The lanes with work that this executor can run and that no pause holds back, by tenant."""
    lanes: dict[str, list[_Lane]] = {}
    for (name,) in _LANES.all(connection, {}):
        tenant, engine, runtime = name.split(_SEPARATOR)
        if engine in known.engines and runtime in known.runtimes and tenant not in paused:
            lanes.setdefault(tenant, []).append(_Lane(connection, name))
    return lanes


def _shares(
    transaction: Picking, lanes: dict[str, list[_Lane]], settings: dict[str, tuple[int, int]]
) -> dict[str, Share]:
    """What the order between these tenants rests on."""
    shares = {}
    for tenant in lanes:
        weight, max_running = settings.get(tenant, _PLAIN)
        shares[tenant] = Share(tenant, weight, 0, max_running)
    limited = sorted(tenant for tenant, share in shares.items() if share.max_running)
    if len(shares) < 2 and not limited:
        return shares  # nobody to share with
    connection = transaction.connection
    if limited and transaction.shared:
        connection.execute(_LOCK, {"tenants": limited})  # who else leases of these has committed when this returns
    for tenant, running in _RUNNING.all(connection, {}):
        if tenant in shares:
            shares[tenant].running += running
    for (tenant, state), change in transaction.counts.items():
        if state in HELD and tenant in shares:
            shares[tenant].running += change
    return shares
