"""What one operation of the writer works with: statements, the events it appends, the counts and wake-ups it causes.

All operations of one group commit share a transaction of the database. Each runs in its own savepoint; when it fails,
what it wrote, appended, counted and would have woken is undone, and the others are untouched. Where a statement costs a
trip to a server, a group is first run without savepoints, whose two trips would be half of all: an operation that fails
before it wrote is undone in memory, and any other failure has the whole group run again with them.

Events get their positions last: from the one row of `log_head`, which is locked from then to the commit. So positions
have no gaps and are in the order of commits, also when several processes write to one database, and only the short end
of a transaction waits for that of another. Output is kept until then, for its rows carry their events' positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, insert, text, update
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.sql.expression import Executable
from sqlmodel import Session

from crucible.evaluation.v1.event_pb2 import Event
from crucible_storage import faults, models, usage
from crucible_storage.databases.base import Backend
from crucible_storage.faults import MustBeUndoneError
from crucible_storage.lifecycle import End
from crucible_storage.prepared import Prepared, wire_of

_INSERT_EVENTS = Prepared(insert(models.event))
_PENDING = [column.name for column in models.audit_pending.c if not column.primary_key]
_INSERT_AUDIT = Prepared(insert(models.audit_pending).values({name: bindparam(name) for name in _PENDING}).inline())
_INSERT_OUTPUT = Prepared(insert(models.output))
_ADD_COUNT = Prepared(
    text(
        """
    INSERT INTO evaluation_count (tenant, state, count) VALUES (:tenant, :state, :count)
    ON CONFLICT (tenant, state) DO UPDATE SET count = evaluation_count.count + excluded.count
    """
    )
)
_ADD_BATCH_COUNT = Prepared(
    text(
        """
    INSERT INTO batch_count (batch, kind, tenant, count) VALUES (:batch, :kind, :tenant, :count)
    ON CONFLICT (batch, kind) DO UPDATE SET count = batch_count.count + excluded.count
    """
    )
)
_END_ITEM = Prepared(
    update(models.batch_item)
    .where(models.batch_item.c.evaluation_seq == bindparam("owner"))
    .values(end_position=bindparam("position"), end_kind=bindparam("end"))
)
_ADVANCE = Prepared(text("UPDATE log_head SET position = position + :count RETURNING position"))
QUEUED = text("SELECT coalesce(sum(count), 0) FROM evaluation_count WHERE state = 1")
_WAITING = 1  # the state of an evaluation that waits


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
        ends: all of those of them that ended at once, in their first attempt, by id.
        freed: tenants of whom a run ended.
        stops: runs to be ended.
        batches: ids of batches of which something changed.
        batch_work: whether there is more to do to items of a batch, in the background.
        inspections: whether an inspection changed.
        last_position: of the event log; 0 when nothing was appended.
        appended: events of this commit.
        events: these, in order, whole but for their positions; other than `appended` when not all were given.
    """

    work: bool = False
    created: list[tuple[str, str]] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    ends: dict[str, End] = field(default_factory=dict)
    freed: set[str] = field(default_factory=set)
    stops: list[Stop] = field(default_factory=list)
    batches: set[str] = field(default_factory=set)
    batch_work: bool = False
    inspections: bool = False
    last_position: int = 0
    appended: int = 0
    events: list[Event] = field(default_factory=list)


Counts = dict[tuple[str, int], int]


class WriteTransaction:
    """The writer's transaction, as an operation sees it.

    What an operation reads to decide by is locked (`with_for_update`, which SQLite has no need of), guarded by a unique
    key, or compared when it is written: another process may write to the same database meanwhile.

    Args:
        connection: in a transaction.
        backend: whose.
        queued: evaluations that wait, committed; None: the database is to be asked.
        ahead: goes on before the database has answered, where answers cost a trip, and makes no savepoints: what
            fails and cannot be undone in memory then raises `MustBeUndoneError`, and the transaction is to be begun
            anew without this.
    """

    def __init__(self, connection: Connection, backend: Backend, queued: int | None, *, ahead: bool) -> None:
        self.connection = connection
        self.backend = backend
        self.notices = Notices()
        self.counts: Counts = {}
        self._ends: list[tuple[int, dict[str, Any]]] = []
        self._batch_counts: dict[tuple[str, int, str], int] = {}
        self.usage = usage.Usage()
        self._committed_queued = queued
        self._events: list[dict[str, Any]] = []
        self._outputs: list[tuple[int, dict[str, Any]]] = []
        self._with_output: set[int] = set()
        self._written = _Written(0, 0, 0)
        self._audit: list[dict[str, Any]] = []
        self._session: Session | None = None
        self._depth = 0
        self._wire = wire_of(connection)
        if self._wire is not None:
            self._wire.ahead = ahead

    def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Runs a statement of SQLAlchemy Core."""
        return self.connection.execute(statement, parameters)

    @property
    def shared(self) -> bool:
        """Whether other processes may write to the database at the same time."""
        return self.backend.shared

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
        if self._committed_queued is None:
            self._committed_queued = int(self.execute(QUEUED).scalar_one())
        return self._committed_queued + self.queued_change

    @property
    def queued_change(self) -> int:
        """How many more evaluations wait after this transaction than before."""
        return sum(change for (_, state), change in self.counts.items() if state == _WAITING)

    def append_event(self, tenant: str, evaluation_seq: int, attempt: int, time: int, body: bytes) -> None:
        """Appends to the event log."""
        self._events.append(
            {"tenant": tenant, "evaluation_seq": evaluation_seq, "time": time, "attempt": attempt, "body": body}
        )

    def append_output(self, evaluation_seq: int, time: int, row: dict[str, Any]) -> None:
        """Appends the event that tells of some output, and the row of `output` that has it."""
        self.append_event(row["tenant"], evaluation_seq, row["attempt"], time, b"")
        self._outputs.append((len(self._events) - 1, row | {"evaluation_seq": evaluation_seq}))
        self._with_output.add(evaluation_seq)

    def settled(self, evaluation_seq: int) -> Connection:
        """The connection to read an evaluation's output by: what was appended of it so far is in its table."""
        if evaluation_seq in self._with_output:
            self._write_events()
        return self.connection

    def append_audit(self, row: dict[str, Any]) -> None:
        """Keeps a row of `audit_pending` to be written with all others of the group; see `audit.record`."""
        self._audit.append(row)

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
        events, outputs, written = len(self._events), len(self._outputs), self._written
        counts, work, inspections = dict(self.counts), self.notices.work, self.notices.inspections
        ends, batch_counts, batch_work = len(self._ends), dict(self._batch_counts), self.notices.batch_work
        audit = len(self._audit)
        used = self.usage.mark()
        created, finished, stops = len(self.notices.created), len(self.notices.finished), len(self.notices.stops)
        told = len(self.notices.events)
        ahead = self._wire if self._wire is not None and self._wire.ahead else None
        writes = 0 if ahead is None else ahead.writes
        raw: Any = self.connection.connection.dbapi_connection
        if ahead is None:
            raw.execute(f"SAVEPOINT {name}")  # by the driver: some for each evaluation, and SQLAlchemy's way costs more
        self._depth += 1
        try:
            yield
            self._end_session(commit=True)
        except BaseException as error:
            if ahead is None:
                self._undo(name, error)
            elif not faults.ends_transaction(error) and (ahead.writes != writes or faults.is_of_database(error)):
                raise MustBeUndoneError("an operation failed after it had written") from error
            for finished_id in self.notices.finished[finished:]:
                self.notices.ends.pop(finished_id, None)
            del self._events[events:], self._outputs[outputs:], self._ends[ends:], self._audit[audit:]
            del self.notices.created[created:]
            del self.notices.finished[finished:], self.notices.stops[stops:], self.notices.events[told:]
            self.counts, self.notices.work, self.notices.inspections = counts, work, inspections
            self._batch_counts, self.notices.batch_work = batch_counts, batch_work
            self._written = written
            self._with_output = {row["evaluation_seq"] for _, row in self._outputs[written.outputs :]}
            self.usage.back_to(used)
            raise
        finally:
            self._depth -= 1
        if ahead is None:
            raw.execute(f"RELEASE {name}")

    def flush(self) -> None:
        """Writes the events, audit records, counts and usage of all operations; called once, before the commit."""
        self._write_events()
        if self._ends:
            before = self._written.position - len(self._events)
            _END_ITEM.many(self.connection, [row | {"position": before + 1 + number} for number, row in self._ends])
        if self._audit:
            _INSERT_AUDIT.many(self.connection, self._audit)
        changed = [{"tenant": t, "state": s, "count": c} for (t, s), c in sorted(self.counts.items()) if c]
        if changed:
            _ADD_COUNT.many(self.connection, changed)
        moved = [
            {"batch": b, "kind": k, "tenant": t, "count": c} for (b, k, t), c in sorted(self._batch_counts.items()) if c
        ]
        if moved:
            _ADD_BATCH_COUNT.many(self.connection, moved)
        if used := self.usage.rows():
            usage.ADD.many(self.connection, used)
        self.notices.appended = len(self._events)
        self.notices.last_position = self._written.position
        if self._wire is not None:
            self._wire.settle()

    def _write_events(self) -> None:
        """Gives positions to the events that have none, and writes them and their output."""
        events, outputs = self._events[self._written.events :], self._outputs[self._written.outputs :]
        if not events:
            return
        row = _ADVANCE.first(self.connection, {"count": len(events)})
        if row is None:
            raise LookupError("the event log has no head")
        last: int = row[0]
        before = last - len(self._events)  # the first of `_events` comes after it: nobody else appends meanwhile
        first = before + self._written.events + 1
        _INSERT_EVENTS.many(self.connection, [event | {"position": at} for at, event in enumerate(events, first)])
        if outputs:
            _INSERT_OUTPUT.many(self.connection, [row | {"position": before + 1 + number} for number, row in outputs])
        self._with_output.clear()
        self._written = _Written(len(self._events), len(self._outputs), last)

    def _undo(self, name: str, error: BaseException) -> None:
        if faults.ends_transaction(error):  # there may be nothing left to undo, nor anybody to tell it
            with suppress(Exception):
                self._end_session(commit=False)
            return
        try:
            self._end_session(commit=False)
            self.connection.exec_driver_sql(f"ROLLBACK TO {name}")
            self.connection.exec_driver_sql(f"RELEASE {name}")
        except Exception as lost:
            raise faults.TransactionLostError("an operation could not be undone") from lost

    def _end_session(self, *, commit: bool) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            if commit:
                session.commit()
        finally:
            session.close()


@dataclass(frozen=True, slots=True)
class _Written:
    """How many events and outputs of a transaction are in their tables, and the last one's position."""

    events: int
    outputs: int
    position: int
