"""One accepted run: what it wrote, how it ended, and who waits for news of it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_executor.behaviour import MAX_UPDATES, Update
from crucible_executor.engines.base import Sandbox
from crucible_executor.model import Artifact, Stream
from crucible_executor.output import KeptOutput
from crucible_executor.permits import Permit
from crucible_executor.sampling import MAX_SAMPLES, Sample
from crucible_executor.spool import Spool
from crucible_rpc.errors import CallError, NotFoundError

COALESCE_BYTES = 16 << 10
COALESCE_SECONDS = 0.02
STARTED_SECONDS = 0.15
"""A start hardly hurries: of a short program it travels with the end, as one message."""

ENDING_SECONDS = 0.2
"""As does what it wrote last: removing the processes of a sandbox takes some ten milliseconds."""

MAX_CHUNK_BYTES = 64 << 10
SAMPLES_TOGETHER = 16
SAMPLES_WITHIN = timedelta(seconds=10)
"""Samples hurry even less: so many travel together, or what has come in so long, or what is there at the end."""

MAX_SAMPLES_TOGETHER = 256
ARTIFACT_CHUNK_BYTES = 256 << 10


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
class Sampled:
    """The run's samples from number `first` (from 1) on."""

    first: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Finished:
    """The run ended; `record` is a signed, serialized `FinalRecord`. The last event."""

    record: SignedBytes


Event = Started | Chunk | Tried | Sampled | Finished


class Run:
    """The sink of one sandbox, and the source of its events for any number of readers.

    A reader keeps its own offsets and reads from the kept output: nobody queues events, so a slow reader costs nothing
    and slows nobody.

    Args:
        run_id: its id.
        stdout: takes its standard output.
        stderr: takes its standard error.
        on_fault: called with a reason when its output cannot be kept any more; should end the run.
        make_spool: makes the spool of what its program left; asked once at most.

    Attributes:
        started_at: when its program was started.
        record: its signed end, once it has one.
        refusal: why it was withdrawn or never accepted instead, if so.
        kill_cause: why the executor ended it, first cause.
        sandbox: while there is one.
        left: the bytes of the files that its program left; None when it left none.
        artifacts: these files, when it has ended.
        processes_gone: its engine saw the sandbox's last process end.
        permit: while it runs.
        watchdog: ends a run whose engine does not.
        fault: what went wrong on our side.
        accepted_at: on the loop's clock, for the metrics.
    """

    def __init__(
        self,
        run_id: str,
        *,
        stdout: KeptOutput,
        stderr: KeptOutput,
        on_fault: Callable[[Run], None] | None = None,
        make_spool: Callable[[Run], Spool] | None = None,
    ) -> None:
        self.id = run_id
        self.stdout = stdout
        self.stderr = stderr
        self.started_at: datetime | None = None
        self.record: SignedBytes | None = None
        self.refusal: CallError | None = None
        self.kill_cause: KillCause | None = None
        self.sandbox: Sandbox | None = None
        self.left: Spool | None = None
        self.artifacts: tuple[Artifact, ...] = ()
        self.processes_gone = False
        self.permit: Permit | None = None
        self.watchdog: asyncio.Timeout | None = None
        self.fault = ""
        self.accepted_at = asyncio.get_running_loop().time()
        self._on_fault = on_fault
        self._make_spool = make_spool
        self._updates: list[Update] = []
        self._samples: list[Sample] = []
        self._released, self._released_at = 0, timedelta(0)
        self._news = 0
        self._unannounced = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def state(self) -> RunState:
        """RUNNING or FINISHED."""
        return RunState.RUNNING if self.record is None else RunState.FINISHED

    def started(self) -> None:
        """See `Sink`."""
        self.started_at = datetime.now(UTC)
        self._announce_within(STARTED_SECONDS)

    def ending(self) -> None:
        """See `Sink`."""
        self._is_ending = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._announce_within(ENDING_SECONDS)

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
            self._announce_within(COALESCE_SECONDS)

    def tried(self, update: Update) -> None:
        """See `Sink`."""
        if self.record is None and len(self._updates) < MAX_UPDATES:
            self._updates.append(update)
            self._announce_within(COALESCE_SECONDS)

    def sampled(self, sample: Sample) -> None:
        """See `Sink`."""
        if self.record is None and len(self._samples) < MAX_SAMPLES:
            self._samples.append(sample)
            waiting, waited = len(self._samples) - self._released, sample.since_start - self._released_at
            if waiting >= SAMPLES_TOGETHER or waited >= SAMPLES_WITHIN:
                self._released, self._released_at = len(self._samples), sample.since_start
                self._announce_within(COALESCE_SECONDS)

    def spool(self) -> Spool:
        """See `Sink`."""
        if self._make_spool is None or self.left is not None:
            raise RuntimeError(f"The run {self.id} has no spool to give.")
        self.left = self._make_spool(self)
        return self.left

    def finish(self, record: SignedBytes) -> None:
        """The run is over, and that is on disk."""
        self.record = record
        self._announce()

    def withdraw(self, refusal: CallError) -> None:
        """Nothing of it ever started, and the journal does not say any more, or never said, that it is accepted."""
        self.refusal = refusal
        self._announce()

    async def over(self) -> None:
        """Returns when it has its signed record, or has a refusal instead."""
        while self.record is None and self.refusal is None:
            await self._next(self._news)

    async def events(
        self, stdout_offset: int = 0, stderr_offset: int = 0, behaviour_sequence: int = 0, samples: int = 0
    ) -> AsyncGenerator[list[Event], None]:
        """What happened and happens, from these offsets and after this update and sample on; ends after `Finished`.

        Each time all that is new, at least one event, and of output little more than `MAX_CHUNK_BYTES`.

        Raises:
            CallError: it was withdrawn or never accepted; then there was no event.
        """
        at = {Stream.STDOUT: stdout_offset, Stream.STDERR: stderr_offset}
        told_start = False
        while True:
            if self.refusal is not None:
                raise self.refusal
            news, record = self._news, self.record
            ends = (
                (Stream.STDOUT, self.stdout, self.stdout.kept),
                (Stream.STDERR, self.stderr, self.stderr.kept),
            )
            new: list[Event] = []
            if self.started_at is not None:  # nothing is told of a program that never was
                if not told_start:
                    told_start = True
                    new.append(Started(self.started_at))
                for sequence in range(behaviour_sequence + 1, len(self._updates) + 1):
                    behaviour_sequence = sequence
                    new.append(Tried(sequence, self._updates[sequence - 1], self.started_at))
                released = self._released if record is None else len(self._samples)
                while samples < released:
                    some = tuple(self._samples[samples : min(released, samples + MAX_SAMPLES_TOGETHER)])
                    new.append(Sampled(samples + 1, some))
                    samples += len(some)
            # Only what was there when the news came: a writer of single bytes must not make events of single bytes.
            for stream, kept, end in ends:
                while data := kept.read(at[stream], min(MAX_CHUNK_BYTES, max(0, end - at[stream]))):
                    at[stream] += len(data)
                    new.append(Chunk(stream, at[stream] - len(data), data))
                    if len(data) >= MAX_CHUNK_BYTES:
                        yield new
                        new = []
            if record is not None:
                yield [*new, Finished(record)]
                return
            if new:
                yield new
            await self._next(news)

    async def read_artifact(self, path: str) -> AsyncGenerator[bytes, None]:
        """The kept bytes of one file that its program left, in order, in pieces of at most `ARTIFACT_CHUNK_BYTES`.

        Raises:
            NotFoundError: ARTIFACT_NOT_FOUND: it has no such file, or not any more.
        """
        file = next((file for file in self.artifacts if file.path == path), None)
        if file is None:
            raise NotFoundError("ARTIFACT_NOT_FOUND", f"the run {self.id} has no such file")
        at, end = file.offset, file.offset + file.bytes_kept
        while at < end:
            data = b""
            if self.left is not None:
                with contextlib.suppress(FileNotFoundError):
                    data = await asyncio.to_thread(self.left.read, at, min(ARTIFACT_CHUNK_BYTES, end - at))
            if not data:
                raise NotFoundError("ARTIFACT_NOT_FOUND", f"the files of the run {self.id} are not kept any more")
            at += len(data)
            yield data

    async def _next(self, news: int) -> None:
        if self._news != news:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def _announce_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + (ENDING_SECONDS if self._is_ending else seconds)
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(due, self._announce)

    def _announce(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unannounced = 0
        self._news += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
