"""The database of a process: one writer thread with group commit, and a few connections that only read.

`write` queues a function for the writer. The writer takes all that wait (at most `MAX_BATCH`), runs each in a savepoint
of one transaction, commits once, which is one fsync for all, and only then answers the callers and wakes those who
wait for what changed. Sessions are synchronous, in threads of their own: a statement costs no hop through the event
loop, and no attribute can trigger a hidden query on it.

Where several processes share the database, they tell each other what they committed (`announcements.py`), and each
looks for itself every `POLL_SECONDS`. `last_position` and `queued` are then hints that are at most so old.
"""

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from sqlalchemy.engine import Connection

from crucible_rpc.errors import UnavailableError
from crucible_storage import announcements, faults
from crucible_storage.databases.base import Backend, Listener
from crucible_storage.faults import Fault
from crucible_storage.group_commit import LAST_POSITION, Committed, GroupCommit, Operation, Totals, read_totals
from crucible_storage.transaction import Counts, Notices, WriteTransaction

T = TypeVar("T")

MAX_BATCH = 128
MAX_PENDING = 8192
POLL_SECONDS = 1.0
READ_TRIES = 4
_READ_BACKOFF = 0.1
_LISTEN_SECONDS = 0.5  # then it looks whether the process stops
_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Who is told of every group commit, on the event loop, before anybody else."""

    def committed(self, operations: int, seconds: float, notices: Notices, counts: Counts) -> None:
        """A batch of `operations` was committed; BEGIN to COMMIT took `seconds`."""


class Pending(Operation):
    """An operation whose caller waits, for `future`."""

    __slots__ = ("future",)

    def __init__(self, run: Callable[[WriteTransaction], Any], future: "asyncio.Future[Any]") -> None:
        super().__init__(run)
        self.future = future

    def answer(self) -> None:
        """Tells the caller, unless it went away."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Database:
    """The database of one process; made by `state.open_state`, started on an event loop, closed at the end.

    Args:
        backend: has the current schema.
        publish: called on the event loop with what each commit changed, before its callers are answered.
        observer: see `Observer`.
    """

    def __init__(self, backend: Backend, publish: Callable[[Notices], None], observer: Observer | None = None) -> None:
        self._backend = backend
        self._publish = publish
        self._observer = observer
        self.process = secrets.randbits(31)
        """Names this process to the others on the same database."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._standing: deque[Pending] = deque()
        self._closing = False
        self._readers = ThreadPoolExecutor(backend.readers, thread_name_prefix="storage-read")
        self._threads = [threading.Thread(target=self._write_loop, name="storage-write", daemon=True)]
        if (listener := backend.listener(self.process)) is not None:
            listening = threading.Thread(target=self._listen, args=(listener,), name="storage-listen", daemon=True)
            self._threads.append(listening)
        self._begun = self._delivered = 0
        self._group_commit = GroupCommit(backend, self.process, lambda: self._closing, self._take_standing)
        totals = self._group_commit.load()
        self._last_position, self._queued = totals.last_position, totals.queued

    def start(self) -> None:
        """Starts the threads; call it on the event loop that will use the database."""
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()

    @property
    def shared(self) -> bool:
        """Whether other processes may write to it at the same time."""
        return self._backend.shared

    @property
    def last_position(self) -> int:
        """Of the event log, committed. Where processes share the database it may lag; see `log_end`."""
        return self._last_position

    @property
    def queued(self) -> int:
        """Evaluations that wait, committed, over all tenants. Where processes share the database it is a hint."""
        return self._queued

    async def log_end(self) -> int:
        """The last position of the event log, by whichever process."""
        if self._backend.shared:
            found: int = await self._reading(lambda connection: connection.execute(LAST_POSITION).scalar_one())
            self._last_position = max(self._last_position, found)
        return self._last_position

    async def write(self, run: Callable[[WriteTransaction], T]) -> T:
        """Runs `run` in the writer and answers when what it wrote is on the disk.

        `run` is run again when its group could not be committed. A caller that is cancelled meanwhile does not know
        whether it took effect.

        Raises:
            ResourceExhaustedError: STORAGE_FULL.
            UnavailableError: the process is stopping, too many writes wait, or the database is not to be reached. When
                that happened during the commit, nobody knows whether it took effect, and the message says so.
            Exception: what `run` raised; nothing of it was stored.
        """
        if self._closing or self._loop is None:
            raise UnavailableError("SHUTTING_DOWN", "storage is stopping; try again", retry_after=timedelta(seconds=1))
        if self._pending.qsize() >= MAX_PENDING:
            text_ = "storage has too many writes waiting; try again in a moment"
            raise UnavailableError("PEER_UNAVAILABLE", text_, retry_after=timedelta(seconds=1))
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending.put(Pending(run, future))
        return await future

    def stand_by(self, run: Callable[[WriteTransaction], T]) -> Pending:
        """Has `run` run once, in the next transaction that makes work to be leased; `stand_down` ends that.

        Who waits for work so gets it in the transaction that makes it, without one of its own. The future of what is
        returned then has what `write` would answer. Where processes share the database it is never run.
        """
        standing = Pending(run, asyncio.get_running_loop().create_future())
        self._standing.append(standing)
        return standing

    def stand_down(self, standing: Pending) -> bool:
        """Ends a `stand_by`. False: the writer has run it, and its future will have an answer."""
        try:
            self._standing.remove(standing)
        except ValueError:
            return False
        return True

    def _take_standing(self) -> Pending | None:
        try:
            return self._standing.popleft()
        except IndexError:
            return None

    async def read(self, run: Callable[[Connection], T]) -> T:
        """Runs `run` on a read-only connection, all of it in one snapshot of what is committed.

        Raises:
            UnavailableError: the database is not to be reached.
        """
        return await self._reading(run)

    async def close(self) -> None:
        """Waits for the writes that were queued, then closes the database."""
        if self._closing:
            return
        self._closing = True
        if self._loop is not None:
            self._pending.put(None)
            for thread in self._threads:
                await asyncio.to_thread(thread.join)
        self._readers.shutdown(wait=True)
        self._backend.reader.dispose()  # first: the last to leave SQLite's file must be one that can put it in order
        self._group_commit.close()
        self._backend.dispose()

    # Reading.

    async def _reading(self, run: Callable[[Connection], T]) -> T:
        if self._loop is None:
            raise RuntimeError("the database was not started")
        return await self._loop.run_in_executor(self._readers, self._read, run)

    def _read(self, run: Callable[[Connection], T]) -> T:
        for tries in range(READ_TRIES):
            try:
                with self._backend.reader.connect() as connection:
                    return run(connection)
            except Exception as error:
                fault = faults.fault_of(error)
                if fault is Fault.DAMAGED:
                    raise faults.to_read_error(fault) from error
                if fault in (None, Fault.READ_ONLY) or not self._backend.shared:
                    raise
                if fault is not Fault.GONE or tries + 1 == READ_TRIES or self._closing:
                    raise faults.to_read_error(fault) from error
            time.sleep(_READ_BACKOFF * (1 << tries))
        raise AssertionError("unreachable")

    # Writing.

    def _write_loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._begun += 1
            committed = self._group_commit.commit(batch)
            if committed is None and self._group_commit.away:
                batch += self._refuse_waiting(batch[0].error)
            totals = None if committed is not None or self._backend.shared else self._totals_after_failure()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._deliver, batch, committed, totals)

    def _next_batch(self) -> list[Pending] | None:
        """Waits for an operation and takes all that wait with it; None when the database is closed."""
        first = self._pending.get()
        return None if first is None else [first, *self._waiting(MAX_BATCH - 1)]

    def _waiting(self, most: int) -> list[Pending]:
        """Takes what waits, at most so many."""
        taken: list[Pending] = []
        while len(taken) < most:
            try:
                more = self._pending.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._pending.put(None)
                break
            taken.append(more)
        return taken

    def _refuse_waiting(self, error: BaseException | None) -> list[Pending]:
        """Takes all that wait: a database that is gone must not let each group wait for it in turn."""
        waiting = self._waiting(MAX_PENDING)
        for operation in waiting:
            operation.error = error
        return waiting

    def _totals_after_failure(self) -> Totals | None:
        """After a failed commit: the file is right, whatever the failure was. Unreadable, what is known still holds."""
        try:
            return self._group_commit.load()
        except Exception:
            _LOG.exception("the database cannot be read after a failed commit")
            return None

    def _deliver(self, batch: list[Pending], committed: Committed | None, totals: Totals | None) -> None:
        self._delivered += 1
        try:
            if totals is not None:
                self._last_position, self._queued = totals.last_position, totals.queued
            if committed is not None:
                self._note(committed.notices, committed.queued_change)
                if self._observer is not None:
                    self._observer.committed(len(batch), committed.seconds, committed.notices, committed.counts)
                self._publish(committed.notices)
        finally:
            for operation in batch:
                operation.answer()

    def _note(self, notices: Notices, queued_change: int) -> None:
        self._last_position = max(self._last_position, notices.last_position)
        self._queued = max(0, self._queued + queued_change)

    # Other processes.

    def _listen(self, listener: Listener) -> None:
        """Passes on what others announce, and looks by itself: regularly, and when it may have missed some."""
        looked, lost = 0.0, False
        while not self._closing:
            try:
                for text in listener.wait(_LISTEN_SECONDS):
                    self._pass_on(announcements.decoded(text))
                if time.monotonic() - looked >= POLL_SECONDS:
                    begun = self._begun
                    quiet = begun == self._delivered
                    self._call(self._refreshed, self._read(read_totals), begun if quiet else -1)
                    looked = time.monotonic()
                lost = False
            except Exception:
                if not lost:
                    _LOG.warning("announcements of other storage processes cannot be heard", exc_info=True)
                lost, looked = True, 0.0
                time.sleep(_LISTEN_SECONDS)
        listener.close()

    def _pass_on(self, heard: announcements.Announcement | None) -> None:
        if heard is not None and heard.process != self.process:
            self._call(self._heard, heard)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(function, *arguments)

    def _heard(self, heard: announcements.Announcement) -> None:
        # Of less work that waits the next look tells: it may have counted this already, and too much only costs a look.
        self._note(heard.notices, max(heard.queued_change, 0))
        self._publish(heard.notices)

    def _refreshed(self, totals: Totals, begun: int) -> None:
        """What was looked up when `begun` commits had begun and ended (-1: when some had not).

        Wakes whoever may have missed an announcement.
        """
        grown = totals.last_position - self._last_position
        self._last_position = max(self._last_position, totals.last_position)
        exact = begun == self._begun == self._delivered  # else a commit of our own is in it, or is not
        self._queued = totals.queued if exact else max(self._queued, totals.queued)
        if grown > 0 or totals.queued:
            notices = Notices(work=totals.queued > 0, last_position=self._last_position, appended=max(grown, 0))
            self._publish(notices)
