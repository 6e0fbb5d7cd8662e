"""One accepted run: what it wrote, how it ended, and who waits for news of it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_executor.behaviour import MAX_UPDATES, Update
from crucible_executor.engines.base import Sandbox
from crucible_executor.model import Stream
from crucible_executor.output import KeptOutput
from crucible_executor.permits import Permit

COALESCE_BYTES = 16 << 10
COALESCE_SECONDS = 0.02
MAX_CHUNK_BYTES = 64 << 10


class KillCause(enum.Enum):
    """Why the executor ended a run."""

    REQUESTED = "requested"
    PERMIT_EXPIRED = "permit_expired"
    SHUTDOWN = "shutdown"


class RunState(enum.Enum):
    """What the executor knows of a run."""

    UNKNOWN = "unknown"
    RUNNING = "running"
    FINISHED = "finished"
    REFUSED = "refused"


@dataclass(frozen=True)
class Started:
    """The program was started, by this machine's clock."""

    time: datetime


@dataclass(frozen=True)
class Chunk:
    """Kept bytes of one stream from `offset` on."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True)
class Tried:
    """The run's update number `sequence` (from 1) of what its program tries; the program was started at `started`."""

    sequence: int
    update: Update
    started: datetime


@dataclass(frozen=True)
class Finished:
    """The run ended; `record` is a signed, serialized `FinalRecord`. The last event."""

    record: SignedBytes


Event = Started | Chunk | Tried | Finished


class Run:
    """The sink of one sandbox, and the source of its events for any number of readers.

    A reader keeps its own offsets and reads from the kept output: nobody queues events, so a slow reader costs nothing
    and slows nobody.

    Args:
        run_id: its id.
        expires: when its ticket is worthless.
        stdout: takes its standard output.
        stderr: takes its standard error.
        on_fault: called with a reason when its output cannot be kept any more; should end the run.

    Attributes:
        started_at: when its program was started.
        record: its signed end, once it has one.
        kill_cause: why the executor ended it, first cause.
        sandbox: while there is one.
        permit: while it runs.
        watchdog: ends a run whose engine does not.
        fault: what went wrong on our side.
        accepted_at: on the loop's clock, for the metrics.
    """

    def __init__(
        self,
        run_id: str,
        expires: datetime,
        *,
        stdout: KeptOutput,
        stderr: KeptOutput,
        on_fault: Callable[[Run], None] | None = None,
    ) -> None:
        self.id = run_id
        self.expires = expires
        self.stdout = stdout
        self.stderr = stderr
        self.started_at: datetime | None = None
        self.record: SignedBytes | None = None
        self.kill_cause: KillCause | None = None
        self.sandbox: Sandbox | None = None
        self.permit: Permit | None = None
        self.watchdog: asyncio.Timeout | None = None
        self.fault = ""
        self.accepted_at = asyncio.get_running_loop().time()
        self._on_fault = on_fault
        self._updates: list[Update] = []
        self._news = 0
        self._unannounced = 0
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def state(self) -> RunState:
        """RUNNING or FINISHED."""
        return RunState.RUNNING if self.record is None else RunState.FINISHED

    def started(self) -> None:
        """See `Sink`."""
        self.started_at = datetime.now(UTC)
        self._announce_soon()

    def output(self, stream: Stream, data: bytes) -> None:
        """See `Sink`."""
        if self.fault:
            return
        try:
            kept = (self.stdout if stream is Stream.STDOUT else self.stderr).add(data)
        except OSError as error:
            self.fault = f"the executor could not keep the program's output: {error.strerror}"
            if self._on_fault is not None:
                self._on_fault(self)
            return
        self._unannounced += kept
        if self._unannounced >= COALESCE_BYTES:
            self._announce()
        elif kept:
            self._announce_soon()

    def tried(self, update: Update) -> None:
        """See `Sink`."""
        if self.record is None and len(self._updates) < MAX_UPDATES:
            self._updates.append(update)
            self._announce_soon()

    def finish(self, record: SignedBytes) -> None:
        """The run is over, and that is on disk."""
        self.record = record
        self._announce()

    async def finished(self) -> SignedBytes:
        """The signed record, as soon as there is one."""
        while self.record is None:
            await self._next(self._news)
        return self.record

    async def events(
        self, stdout_offset: int = 0, stderr_offset: int = 0, behaviour_sequence: int = 0
    ) -> AsyncGenerator[Event, None]:
        """What happened and happens, from these offsets and after this update on; ends after `Finished`."""
        at = {Stream.STDOUT: stdout_offset, Stream.STDERR: stderr_offset}
        told_start = False
        while True:
            news, record = self._news, self.record
            ends = (
                (Stream.STDOUT, self.stdout, self.stdout.kept),
                (Stream.STDERR, self.stderr, self.stderr.kept),
            )
            if self.started_at is not None and not told_start:
                told_start = True
                yield Started(self.started_at)
            if self.started_at is not None:  # nothing is told of a program that never was
                for sequence in range(behaviour_sequence + 1, len(self._updates) + 1):
                    behaviour_sequence = sequence
                    yield Tried(sequence, self._updates[sequence - 1], self.started_at)
            # Only what was there when the news came: a writer of single bytes must not make events of single bytes.
            for stream, kept, end in ends:
                while data := kept.read(at[stream], min(MAX_CHUNK_BYTES, max(0, end - at[stream]))):
                    at[stream] += len(data)
                    yield Chunk(stream, at[stream] - len(data), data)
            if record is not None:
                yield Finished(record)
                return
            await self._next(news)

    async def _next(self, news: int) -> None:
        if self._news != news:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _announce_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE_SECONDS, self._announce)

    def _announce(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unannounced = 0
        self._news += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
