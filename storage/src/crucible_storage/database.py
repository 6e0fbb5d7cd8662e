"""One SQLite file, opened by nobody else: one writer thread with group commit, and a few read-only connections.

`write` queues a function for the writer. The writer takes all that wait (at most `MAX_BATCH`), runs each in a savepoint
of one transaction, commits once, which is one fsync for all, and only then answers the callers and wakes those who
wait for what changed. Sessions are synchronous, in threads of their own: a statement costs no hop through the event
loop, and no attribute can trigger a hidden query on it.
"""

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import QueuePool, StaticPool

from crucible_rpc.errors import UnavailableError
from crucible_storage import faults
from crucible_storage.transaction import Counts, Notices, WriteTransaction

T = TypeVar("T")

MAX_BATCH = 128
MAX_PENDING = 8192
READERS = 2
_CACHE_KIB = 8192
_LAST_POSITION = text("SELECT coalesce(max(position), 0) FROM event")
_QUEUED = text("SELECT coalesce(sum(count), 0) FROM evaluation_count WHERE state = 1")
_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Who is told of every group commit, on the event loop, before anybody else."""

    def committed(self, operations: int, seconds: float, notices: Notices, counts: Counts) -> None:
        """A batch of `operations` was committed; BEGIN to COMMIT took `seconds`."""


@dataclass(slots=True)
class _Pending:
    run: Callable[[WriteTransaction], Any]
    future: "asyncio.Future[Any]"
    result: Any = None
    error: BaseException | None = None

    def answer(self) -> None:
        """Tells the caller, unless it went away."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


@dataclass(frozen=True, slots=True)
class _Committed:
    notices: Notices
    counts: Counts
    seconds: float


class Database:
    """The database of one process; made by `state.open_database`, started on an event loop, closed at the end.

    Args:
        file: exists and has the current schema.
        publish: called on the event loop with each commit's notices, before its callers are answered.
        observer: see `Observer`.
    """

    def __init__(self, file: Path, publish: Callable[[Notices], None], observer: Observer | None = None) -> None:
        self._publish = publish
        self._observer = observer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._closing = False
        self._writer_engine = writer_engine(file)
        self._reader_engine = _reader_engine(file)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="storage-read")
        self._writer = threading.Thread(target=self._write_loop, name="storage-write", daemon=True)
        self._connection = self._writer_engine.connect()
        self._last_position = 0
        self._queued = 0
        self._load()

    def start(self) -> None:
        """Starts the writer; call it on the event loop that will use the database."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    @property
    def last_position(self) -> int:
        """Of the event log, committed."""
        return self._last_position

    @property
    def queued(self) -> int:
        """Evaluations that wait, committed, over all tenants."""
        return self._queued

    async def write(self, run: Callable[[WriteTransaction], T]) -> T:
        """Runs `run` in the writer and answers when what it wrote is on the disk.

        A caller that is cancelled meanwhile does not know whether it took effect.

        Raises:
            ResourceExhaustedError: STORAGE_FULL.
            UnavailableError: the process is stopping, or too many writes wait.
            Exception: what `run` raised; nothing of it was stored.
        """
        if self._closing or self._loop is None:
            raise UnavailableError("SHUTTING_DOWN", "storage is stopping; try again", retry_after=timedelta(seconds=1))
        if self._pending.qsize() >= MAX_PENDING:
            text_ = "storage has too many writes waiting; try again in a moment"
            raise UnavailableError("PEER_UNAVAILABLE", text_, retry_after=timedelta(seconds=1))
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending.put(_Pending(run, future))
        return await future

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Runs `run` on a read-only connection, all of it in one snapshot of what is committed."""
        if self._loop is None:
            raise RuntimeError("the database was not started")
        return await self._loop.run_in_executor(self._readers, self._read, run)

    async def close(self) -> None:
        """Waits for the writes that were queued, then closes the file."""
        if self._closing:
            return
        self._closing = True
        if self._loop is not None:
            self._pending.put(None)
            await asyncio.to_thread(self._writer.join)
        self._readers.shutdown(wait=True)
        self._reader_engine.dispose()
        self._connection.close()
        self._writer_engine.dispose()

    def _read(self, run: Callable[[Connection], T]) -> T:
        with self._reader_engine.connect() as connection:
            return run(connection)

    def _write_loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            committed = self._commit(batch)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._deliver, batch, committed)

    def _next_batch(self) -> list[_Pending] | None:
        """Waits for an operation and takes all that wait with it; None when the database is closed."""
        first = self._pending.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                more = self._pending.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._pending.put(None)
                break
            batch.append(more)
        return batch

    def _commit(self, batch: list[_Pending]) -> _Committed | None:
        """Runs and commits a batch; fills in each operation's result or error. None when nothing was committed."""
        begun = time.perf_counter()
        try:
            with self._connection.begin():
                transaction = WriteTransaction(self._connection, self._last_position, self._queued)
                for operation in batch:
                    _run(operation, transaction)
                transaction.flush()
        except Exception as error:
            _LOG.exception("a group commit of %d operations failed; none of them was stored", len(batch))
            for operation in batch:
                operation.error = faults.to_call_error(error)
            self._load_or_keep()
            return None
        self._last_position = transaction.notices.last_position
        self._queued = transaction.queued
        return _Committed(transaction.notices, transaction.counts, time.perf_counter() - begun)

    def _deliver(self, batch: list[_Pending], committed: _Committed | None) -> None:
        try:
            if committed is not None and self._observer is not None:
                self._observer.committed(len(batch), committed.seconds, committed.notices, committed.counts)
            if committed is not None:
                self._publish(committed.notices)
        finally:
            for operation in batch:
                operation.answer()

    def _load(self) -> None:
        """Reads the log's end and the queue's length from the file."""
        with self._connection.begin():
            self._last_position = self._connection.execute(_LAST_POSITION).scalar_one()
            self._queued = self._connection.execute(_QUEUED).scalar_one()

    def _load_or_keep(self) -> None:
        """After a failed commit: the file is right, whatever the failure was. Unreadable, what is known still holds."""
        try:
            self._load()
        except Exception:
            _LOG.exception("the database cannot be read after a failed commit")


def _run(operation: _Pending, transaction: WriteTransaction) -> None:
    """Runs one operation in its savepoint; raises only what ends the whole transaction."""
    try:
        with transaction.savepoint():
            operation.result = operation.run(transaction)
    except Exception as error:
        if faults.ends_transaction(error):
            raise
        operation.error = error


def writer_engine(file: Path) -> Engine:
    """An engine with the one connection that writes; transactions take the write lock when they begin."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=0)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute(f"PRAGMA journal_size_limit = {64 << 20}")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _reader_engine(file: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(file))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB // READERS}")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=READERS, max_overflow=0)
    event.listen(engine, "begin", _begin)
    return engine


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
