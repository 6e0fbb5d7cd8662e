"""What one operation of the writer works with: statements, the events it appends, the counts and wake-ups it causes.

All operations of one group commit share a transaction of the database. Each runs in its own savepoint; when it fails,
what it wrote, appended, counted and would have woken is undone, and the others are untouched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, insert, text, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.sql.expression import Executable
from sqlmodel import Session

from crucible_storage import models

_INSERT_EVENTS = insert(models.event)
_ADD_COUNT = upsert(models.evaluation_count).values(
    tenant=bindparam("tenant"), state=bindparam("state"), count=bindparam("count")
)
_ADD_COUNT = _ADD_COUNT.on_conflict_do_update(
    index_elements=["tenant", "state"], set_={"count": models.evaluation_count.c.count + _ADD_COUNT.excluded.count}
)
_ADD_BATCH_COUNT = text(
    """
    INSERT INTO batch_count (batch, kind, tenant, count) VALUES (:batch, :kind, :tenant, :count)
    ON CONFLICT (batch, kind) DO UPDATE SET count = batch_count.count + excluded.count
    """
)

_END_ITEM = (
    update(models.batch_item)
    .where(models.batch_item.c.evaluation_seq == bindparam("owner"))
    .values(end_position=bindparam("position"), end_kind=bindparam("end"))
)


@dataclass(frozen=True, slots=True)
class Stop:
    """A run that its executor is to end.

    Attributes:
        executor: who holds its lease.
        run_id: the run.
        epoch: the lease.
        time: when the intent was stored.
    """

    executor: str
    run_id: str
    epoch: int
    time: int


@dataclass(slots=True)
class Notices:
    """What a commit makes known to those who wait.

    Attributes:
        work: whether an evaluation may now be leased that could not before.
        created: ids of new evaluations, each with its tenant.
        finished: ids of evaluations that became terminal.
        stops: runs to be ended.
        batches: ids of batches of which something changed.
        batch_work: whether there is more to do to items of a batch, in the background.
        last_position: of the event log.
        appended: events of this commit.
    """

    work: bool = False
    created: list[tuple[str, str]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    batches: set[str] = field(default_factory=set)
    batch_work: bool = False
    last_position: int = 0
    appended: int = 0


Counts = dict[tuple[str, int], int]


class WriteTransaction:
    """The writer's transaction, as an operation sees it.

    Args:
        connection: in a transaction.
        last_position: of the event log, committed.
        queued: evaluations that wait, committed.
    """

    def __init__(self, connection: Connection, last_position: int, queued: int) -> None:
        self.connection = connection
        self.notices = Notices(last_position=last_position)
        self.counts: Counts = {}
        self._ends: list[tuple[int, dict[str, Any]]] = []
        self._batch_counts: dict[tuple[str, int, str], int] = {}
        self._committed_queued = queued
        self._first_position = last_position + 1
        self._events: list[dict[str, Any]] = []
        self._session: Session | None = None
        self._depth = 0

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Runs a statement of SQLAlchemy Core."""
        return self.connection.execute(statement, parameters)

    @property
    def session(self) -> Session:
        """A session of sqlmodel for paths that are not hot; not for use around or inside a nested savepoint.

        It has a savepoint of its own: a flush that fails would otherwise roll back the whole group.
        """
        if self._depth != 1:
            raise RuntimeError("a session belongs to a whole operation, not to a nested savepoint")
        if self._session is None:
            self._session = Session(self.connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
        return self._session

    @property
    def queued(self) -> int:
        """Evaluations that wait, over all tenants, with what this transaction changed."""
        return self._committed_queued + sum(change for (_, state), change in self.counts.items() if state == 1)

    def append_event(self, tenant: str, evaluation_seq: int, attempt: int, time: int, body: bytes) -> int:
        """Appends to the event log; answers the event's position."""
        position = self._first_position + len(self._events)
        self._events.append(
            {
                "position": position,
                "tenant": tenant,
                "evaluation_seq": evaluation_seq,
                "time": time,
                "attempt": attempt,
                "body": body,
            }
        )
        return position

    def count(self, tenant: str, state: int, change: int) -> None:
        """Notes that `change` more evaluations of the tenant are in `state`."""
        key = (tenant, state)
        self.counts[key] = self.counts.get(key, 0) + change

    def count_batch(self, batch: str, kind: int, tenant: str, change: int) -> None:
        """Changes how many items of a batch are of a kind of `progress`."""
        key = (batch, kind, tenant)
        self._batch_counts[key] = self._batch_counts.get(key, 0) + change
        self.notices.batches.add(batch)

    def end_item(self, evaluation_seq: int, kind: int) -> None:
        """Notes that an item of a batch ended as a kind of `progress`; the event that was appended last tells of it."""
        self._ends.append((len(self._events) - 1, {"owner": evaluation_seq, "end": kind}))

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undoes everything done inside when it raises."""
        name = f"s{self._depth}"
        events, counts, work = len(self._events), dict(self.counts), self.notices.work
        ends, batch_counts, batch_work = len(self._ends), dict(self._batch_counts), self.notices.batch_work
        created, finished, stops = len(self.notices.created), len(self.notices.finished), len(self.notices.stops)
        raw: Any = self.connection.connection.dbapi_connection
        raw.execute(f"SAVEPOINT {name}")  # by the driver: some for each evaluation, and SQLAlchemy's way costs more
        self._depth += 1
        try:
            yield
            self._end_session(commit=True)
        except BaseException:
            self._end_session(commit=False)
            self._undo(name)
            del self._events[events:], self._ends[ends:], self.notices.created[created:]
            del self.notices.finished[finished:], self.notices.stops[stops:]
            self.counts, self.notices.work = counts, work
            self._batch_counts, self.notices.batch_work = batch_counts, batch_work
            raise
        finally:
            self._depth -= 1
        raw.execute(f"RELEASE {name}")

    def flush(self) -> None:
        """Writes the events and counts of all operations; called once, before the commit."""
        if self._events:
            self.execute(_INSERT_EVENTS, self._events)
        if self._ends:
            first = self._first_position
            self.execute(_END_ITEM, [row | {"position": first + number} for number, row in self._ends])
        changed = [{"tenant": t, "state": s, "count": c} for (t, s), c in self.counts.items() if c]
        if changed:
            self.execute(_ADD_COUNT, changed)
        moved = [
            {"batch": b, "kind": k, "tenant": t, "count": c} for (b, k, t), c in sorted(self._batch_counts.items()) if c
        ]
        if moved:
            self.execute(_ADD_BATCH_COUNT, moved)
        self.notices.appended = len(self._events)
        self.notices.last_position += len(self._events)

    def _undo(self, name: str) -> None:
        raw: Any = self.connection.connection.dbapi_connection
        if raw.in_transaction:  # a full disk can make SQLite itself give up the whole transaction
            self.connection.exec_driver_sql(f"ROLLBACK TO {name}")
            self.connection.exec_driver_sql(f"RELEASE {name}")

    def _end_session(self, *, commit: bool) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            if commit:
                session.commit()
        finally:
            session.close()
