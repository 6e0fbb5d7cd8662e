"""The executors that registered: what each offers, which start of it is current, and when it was last heard of."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam, func, text
from sqlalchemy.engine import Connection
from sqlmodel import Session, col, select

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible_rpc.errors import FailedPreconditionError
from crucible_storage import models
from crucible_storage.clock import Clock, micros
from crucible_storage.database import Database
from crucible_storage.models import PLATFORM, ExecutorRow
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared
from crucible_storage.regularly import regularly
from crucible_storage.transaction import WriteTransaction

MAX_EXECUTORS = 1000
FORGET_AFTER = timedelta(hours=1)
"""An executor that was not heard of for so long may make room for a new one when there are too many."""

_ROW = models.executor.c
# Until the transaction that goes by it ends, a later start of the executor cannot register with another process.
_CURRENT = Prepared(
    select(_ROW.boot_id, _ROW.registration).where(_ROW.id == bindparam("id")).with_for_update(read=True)
)
_DESCRIPTION = select(_ROW.description, _ROW.registration).where(_ROW.id == bindparam("id"))
# What lies more than a minute ahead was written before the clock was set back.
_SEEN = text(
    "UPDATE executor SET last_seen = :now WHERE id = :id AND (last_seen < :now OR last_seen > :now + 60000000)"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of an executor between calls."""

    registration: int
    boot_id: str
    engines: frozenset[str]
    runtimes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Listed:
    """An executor, as it registered."""

    executor: Executor
    last_seen: int
    live: bool


@dataclass(frozen=True, slots=True)
class _Heard:
    """When this process heard of an executor last: `time` for people, `monotonic` for how long that is ago."""

    time: int
    monotonic: float


class Executors:
    """The registry. The table is the truth; what was read of it is remembered, and who was heard of since."""

    def __init__(self, database: Database, policy: Policy, clock: Clock) -> None:
        self._database = database
        self._policy = policy
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._heard: dict[str, _Heard] = {}
        self._unstored: dict[str, int] = {}
        self._calling: dict[str, int] = {}

    async def load(self) -> None:
        """Remembers what earlier processes stored; call it once, before anything else."""

        def run(connection: Connection) -> dict[str, Known]:
            rows = Session(connection).exec(select(ExecutorRow)).all()
            return {row.id: _known(Executor.FromString(row.description), row.registration) for row in rows}

        self._known = await self._database.read(run)

    def store(self, transaction: WriteTransaction, executor: Executor, now: int) -> int:
        """Writes down what an executor says of itself; its earlier start may lease nothing from then on.

        Returns:
            The number of this registration, for `remember` once it is committed.

        Raises:
            FailedPreconditionError: there are too many executors.
        """
        session = transaction.session
        row = session.get(ExecutorRow, executor.id, with_for_update=True)
        if row is None:
            if session.exec(select(func.count(col(ExecutorRow.id)))).one() >= MAX_EXECUTORS:
                self._forget_oldest(session, now)
            row = ExecutorRow(id=executor.id, tenant=PLATFORM, boot_id="", description=b"", last_seen=now)
        row.boot_id, row.description, row.last_seen = executor.boot_id, executor.SerializeToString(), now
        row.registration = secrets.randbits(62)
        session.add(row)
        session.flush()
        return row.registration

    def remember(self, executor: Executor, registration: int) -> None:
        """Notes what was stored, and that the executor was heard of."""
        self._known[executor.id] = _known(executor, registration)
        self.heard(executor.id)

    def _forget_oldest(self, session: Session, now: int) -> None:
        """Makes room: where executors are replaced under new ids, those of the past would one day be the most."""
        held = text("SELECT 1 FROM evaluation WHERE executor = :id AND state IN (2, 3) LIMIT 1")
        for row in session.exec(select(ExecutorRow).order_by(col(ExecutorRow.last_seen), col(ExecutorRow.id))):
            seen = max(row.last_seen, self._heard[row.id].time if row.id in self._heard else 0)
            gone = now - seen > micros(FORGET_AFTER) and not self._calling.get(row.id)
            if gone and session.connection().execute(held, {"id": row.id}).first() is None:
                session.delete(row)
                self._known.pop(row.id, None)
                self._heard.pop(row.id, None)
                return
        raise FailedPreconditionError("NOT_REGISTERED", f"storage knows {MAX_EXECUTORS} executors already")

    def registered_now(self, transaction: WriteTransaction, executor_id: str, boot_id: str) -> Known:
        """What this start of an executor offers; it stays the current one until the transaction ends.

        Raises:
            FailedPreconditionError: NOT_REGISTERED.
        """
        row = _CURRENT.first(transaction.connection, {"id": executor_id})
        if row is None or row[0] != boot_id:
            raise _not_registered()
        known = self._known.get(executor_id)
        if known is None or known.registration != row[1]:
            known = _read(transaction.connection, executor_id)
        if known is None:
            raise _not_registered()
        self._known[executor_id] = known
        return known

    async def _refreshed(self, executor_id: str) -> Known | None:
        known = await self._database.read(lambda connection: _read(connection, executor_id))
        if known is not None:
            self._known[executor_id] = known
        return known

    async def check_registered(self, executor_id: str, boot_id: str) -> None:
        """Refuses another start of an executor than the current one; a later `registered_now` decides.

        Raises:
            FailedPreconditionError: NOT_REGISTERED.
        """
        known = self._known.get(executor_id)
        if known is None or known.boot_id != boot_id:  # it may have registered with another process
            known = await self._refreshed(executor_id)
        if known is None or known.boot_id != boot_id:
            raise _not_registered()

    def heard(self, executor_id: str) -> None:
        """Notes that an executor's worker was heard of now."""
        if executor_id in self._known:
            now = self._unstored[executor_id] = self._clock.now()
            self._heard[executor_id] = _Heard(now, self._clock.monotonic())

    @contextmanager
    def calling(self, executor_id: str) -> Iterator[None]:
        """Counts an executor as heard of while its worker waits in a call."""
        self.heard(executor_id)
        self._calling[executor_id] = self._calling.get(executor_id, 0) + 1
        try:
            yield
        finally:
            self.heard(executor_id)
            self._calling[executor_id] -= 1
            if not self._calling[executor_id]:
                del self._calling[executor_id]

    async def keep_stored(self) -> None:
        """Writes down regularly who was heard of, for other processes on the same database; until cancelled."""
        seconds = self._policy.lease.total_seconds() / 3
        await regularly(seconds, self.store_all_heard, "it was not stored which executors were heard of")

    async def store_all_heard(self) -> None:
        """Writes down who was heard of since it was done last; when that fails, the next time does."""
        now = self._clock.now()
        heard, self._unstored = self._unstored | dict.fromkeys(self._calling, now), {}
        if heard:
            rows = [{"id": executor_id, "now": at} for executor_id, at in sorted(heard.items())]
            try:
                await self._database.write(lambda transaction: transaction.execute(_SEEN, rows) and None)
            except BaseException:
                self._unstored = heard | self._unstored
                raise

    def store_heard(self, transaction: WriteTransaction, executor_id: str, now: int) -> None:
        """Writes down that an executor was heard of now."""
        transaction.execute(_SEEN, {"id": executor_id, "now": now})

    async def list(self) -> list[Listed]:
        """Every executor that ever registered, by id."""

        def run(connection: Connection) -> list[tuple[bytes, int]]:
            rows = Session(connection).exec(select(ExecutorRow).order_by(col(ExecutorRow.id))).all()
            return [(row.description, row.last_seen) for row in rows]

        return [self._listed(Executor.FromString(blob), seen) for blob, seen in await self._database.read(run)]

    def _listed(self, executor: Executor, stored: int) -> Listed:
        now, lease = self._clock.now(), self._policy.lease
        if self._calling.get(executor.id):
            return Listed(executor, now, live=True)
        heard = self._heard.get(executor.id)
        if heard is not None and self._clock.monotonic() - heard.monotonic <= lease.total_seconds():
            return Listed(executor, heard.time, live=True)
        # Another process may have heard of it since, or an earlier start of this one.
        seen = max(stored, 0 if heard is None else heard.time)
        return Listed(executor, seen, live=abs(now - stored) <= micros(lease))


def _not_registered() -> FailedPreconditionError:
    text = "this start of this executor is not registered, or a later one is; register it first"
    return FailedPreconditionError("NOT_REGISTERED", text)


def _read(connection: Connection, executor_id: str) -> Known | None:
    row = connection.execute(_DESCRIPTION, {"id": executor_id}).fetchone()
    return None if row is None else _known(Executor.FromString(row[0]), row[1])


def _known(executor: Executor, registration: int) -> Known:
    engines = frozenset(engine.name for engine in executor.engines if engine.available)
    runtimes = frozenset(runtime.name for runtime in executor.runtimes if not runtime.unavailable_reason)
    return Known(registration, executor.boot_id, engines, runtimes)
