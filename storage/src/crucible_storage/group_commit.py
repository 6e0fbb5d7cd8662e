"""The one connection of a process that writes: groups of operations, each group one transaction."""

import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import text
from sqlalchemy.engine import Connection, RootTransaction

from crucible_storage import announcements, faults
from crucible_storage.databases.base import Backend
from crucible_storage.faults import Fault
from crucible_storage.transaction import QUEUED, Counts, Notices, WriteTransaction

LAST_POSITION = text("SELECT position FROM log_head")
MAX_TRIES = 6
PATIENCE = 5.0
"""Seconds for which a group waits for a database that is gone."""

_BACKOFF = 0.02
_MAX_BACKOFF = 1.0
_LOG = logging.getLogger(__name__)


class Operation:
    """What a caller wants done, and what became of it; run again when its group could not be committed.

    Args:
        run: writes by the transaction alone; what it changes elsewhere it can change twice.
    """

    __slots__ = ("error", "result", "run")

    def __init__(self, run: Callable[[WriteTransaction], Any]) -> None:
        self.run = run
        self.result: Any = None
        self.error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What the whole database has."""

    last_position: int
    queued: int


@dataclass(frozen=True, slots=True)
class Committed:
    """A group that was committed: what it changed, and how long BEGIN to COMMIT took."""

    notices: Notices
    counts: Counts
    queued_change: int
    seconds: float


AnyOperation = TypeVar("AnyOperation", bound=Operation)


class GroupCommit(Generic[AnyOperation]):
    """Commits groups; used by one thread.

    Args:
        backend: where.
        process: names this process in what it tells the others.
        stopping: whether there is no time left to wait.
        standing: takes one operation of those that wait for work to be made; None when there is none.
    """

    def __init__(
        self,
        backend: Backend,
        process: int,
        stopping: Callable[[], bool],
        standing: Callable[[], AnyOperation | None] = lambda: None,
    ) -> None:
        self._backend = backend
        self._process = process
        self._stopping = stopping
        self._standing = standing
        self._connection: Connection | None = None
        self._queued: int | None = None
        self.away = False

    def load(self) -> Totals:
        """Reads what the database has; what one process alone writes it then knows."""
        connection = self._connected()
        with connection.begin():
            totals = read_totals(connection)
        self._queued = None if self._backend.shared else totals.queued
        return totals

    def commit(self, group: list[AnyOperation]) -> Committed | None:
        """Runs and commits a group, and fills in each operation's result or error. None when nothing was committed.

        When it makes work, operations that stand by for that join it. A group that met another process's, or whose
        connection was lost before its commit, is tried again; one that could not undo a failed operation, with
        savepoints.
        """
        begun = time.monotonic()
        tries = 0
        ahead = True
        while True:
            tries += 1
            try:
                return self._attempt(group, ahead=ahead)
            except Exception as error:
                if faults.fault_of(error) is Fault.UNDO:
                    _LOG.debug("a group commit is run again with savepoints", exc_info=error)
                    ahead = False
                    continue
                if faults.fault_of(error) is Fault.GONE:
                    self._drop()
                if self._wait_to_try_again(error, tries, begun):
                    continue
                self._give_up(group, error)
                return None

    def close(self) -> None:
        """Ends the connection."""
        self._drop()

    def _attempt(self, group: list[AnyOperation], *, ahead: bool) -> Committed:
        connection = self._connected()
        begun = time.perf_counter()
        under_way = connection.begin()
        try:
            transaction = WriteTransaction(connection, self._backend, self._queued, ahead=ahead)
            for operation in group:
                _run(operation, transaction)
            self._give_out(group, transaction)
            transaction.flush()
            if self._backend.shared and (told := announcements.encoded(transaction, self._process)):
                self._backend.announce(connection, told)
        except BaseException as error:
            self._roll_back(under_way, error)
            raise
        self._end(under_way)
        if self._queued is not None:
            self._queued += transaction.queued_change
        seconds = time.perf_counter() - begun
        return Committed(transaction.notices, transaction.counts, transaction.queued_change, seconds)

    def _give_out(self, group: list[AnyOperation], transaction: WriteTransaction) -> None:
        """Lets those who wait for work take what the group made, in the same transaction.

        Not where processes share the database: locks of tenants who create and of tenants whose work is leased would
        be taken in different orders.
        """
        if self._backend.shared or not transaction.notices.work:
            return
        while transaction.queued > 0 and (operation := self._standing()) is not None:
            group.append(operation)
            _run(operation, transaction)

    def _end(self, under_way: RootTransaction) -> None:
        try:
            under_way.commit()
        except Exception as error:
            self._roll_back(under_way, error)
            if faults.fault_of(error) is Fault.GONE:
                raise faults.FateUnknownError from error
            raise

    def _roll_back(self, under_way: RootTransaction, error: BaseException) -> None:
        """Leaves nothing of a transaction, nor a connection of which that is not sure."""
        if faults.fault_of(error) is not Fault.GONE:
            try:
                under_way.rollback()
                return
            except Exception:
                _LOG.warning("a transaction could not be rolled back; its connection is closed", exc_info=True)
        self._drop()

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._backend.writer.connect()
            if self.away:
                _LOG.info("the database is back: %s", self._backend.place)
            self.away = False
        return self._connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # whatever it says: nothing uses it any more
                connection.invalidate()
            with suppress(Exception):
                connection.close()

    def _wait_to_try_again(self, error: Exception, tries: int, begun: float) -> bool:
        """Waits before the next try; False when there is none."""
        fault = faults.fault_of(error)
        if not self._backend.shared or self._stopping():
            return False
        if fault is Fault.CONFLICT and tries < MAX_TRIES:
            _LOG.debug("a group commit met another process's and is run again", exc_info=error)
        elif fault is not Fault.GONE or self.away or time.monotonic() - begun > PATIENCE:
            return False
        time.sleep(min(_BACKOFF * (1 << min(tries - 1, 10)), _MAX_BACKOFF) * random.uniform(0.5, 1))  # noqa: S311
        return True

    def _give_up(self, group: list[AnyOperation], error: Exception) -> None:
        known = faults.fault_of(error) is Fault.GONE
        if known and not self.away:
            _LOG.error("the database cannot be reached: %s", self._backend.place)
        self.away = known
        _LOG.error("a group commit of %d operations failed", len(group), exc_info=None if known else error)
        told = faults.to_call_error(error)
        for operation in group:
            operation.result, operation.error = None, told


def read_totals(connection: Connection) -> Totals:
    """What the whole database has, as a transaction sees it."""
    last_position = connection.execute(LAST_POSITION).scalar_one()
    return Totals(last_position, int(connection.execute(QUEUED).scalar_one()))


def _run(operation: Operation, transaction: WriteTransaction) -> None:
    """Runs one operation in its savepoint; raises only what ends the whole transaction."""
    for last in (False, True):
        operation.result = operation.error = None
        try:
            with transaction.savepoint():
                operation.result = operation.run(transaction)
            return
        except Exception as error:
            if faults.ends_transaction(error):
                raise
            damaged = faults.fault_of(error) is Fault.DAMAGED
            operation.error = faults.to_call_error(error) if damaged else error
            if last or not faults.is_duplicate(error):  # else another process stored it just now: it will be seen
                return
