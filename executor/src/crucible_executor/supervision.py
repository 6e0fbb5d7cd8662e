"""Watches one run from outside: its clock, its CPU time, its output; the first of them to end it is the cause."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta

from crucible_executor import collecting
from crucible_executor.cgroups import Counters
from crucible_executor.collecting import Collector
from crucible_executor.engines.base import Sink
from crucible_executor.host_pipes import PipeReader
from crucible_executor.model import OUTPUT_KILL_FACTOR, Artifacts, Limit, LimitExceeded, Limits, Stream, Termination
from crucible_executor.sampling import MAX_SAMPLES, Sample, interval

_SHORTEST_CPU_CHECK_S = 0.02
_MEMORY_CHECK_S = 0.2
FILES_GRACE_S = 0.5
"""How long after a limit a sandbox may hand over its program's files: everything must have ended within a second."""

_NOT_ASKED = "nobody asked for the program's files"
_ENDED = "the program was ended from outside, and its files went with its sandbox"


class Supervision:
    """The watch over one run, from `begin` to `close`.

    `over` is done when the run has to end, or has ended: with the `Termination` that something outside decided, or None
    when the sandbox itself ended and has to be asked how.
    """

    def __init__(self, limits: Limits, sink: Sink) -> None:
        self._limits = limits
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._readers: list[PipeReader] = []
        self._began = self._ended = 0.0
        self._taken = 0
        self._unreadable = True
        self._last_cpu = timedelta(0)
        self._collector: Collector | None = None
        self._grace: asyncio.Future[None] | None = None
        self.over: asyncio.Future[Termination | None] = self._loop.create_future()
        self.output_bytes = {Stream.STDOUT: 0, Stream.STDERR: 0}

    def begin(
        self,
        cpu_time: Callable[[], timedelta] | None = None,
        oom_kills: Callable[[], int] | None = None,
        counters: Callable[[], Counters | None] | None = None,
    ) -> None:
        """Starts the clock.

        What is not given, of what tells the cgroup's CPU time, OOM kills and counters, is not watched.
        """
        self._began = time.monotonic()
        self._timers["wall"] = self._loop.call_later(self._limits.wall_time.total_seconds(), self._wall_time_over)
        if cpu_time is not None and self._limits.cpu_time is not None:
            self._check_cpu(cpu_time, self._limits.cpu_time, cpu_time())
        if oom_kills is not None:
            self._check_memory(oom_kills)
        if counters is not None:
            self._unreadable = False
            self._sample_later(counters)

    def read_output(self, fd: int, stream: Stream) -> None:
        """Passes the bytes of a pipe on to the sink and counts them."""
        self._readers.append(PipeReader(fd, lambda data: self.output(stream, data)))

    def end(self, cause: Termination | None) -> None:
        """Says that the run is over; only the first cause counts."""
        if not self.over.done():
            self._ended = self._ended or time.monotonic()
            self.over.set_result(cause)
            self._sink.ending()
        if self._grace is not None and not self._grace.done():
            self._grace.set_result(None)
        self._stop_timers()

    def left(self) -> Collector | None:
        """The program has ended and left files: what takes them, unless nobody asked for any.

        Where it ended by itself, its clocks stop here: the run is over when the sandbox says so, or takes too long.
        """
        ending = self._grace is not None and not self._grace.done()
        if not self._limits.artifact_bytes or (self.over.done() and not ending):
            return None
        if not ending:
            self._ended = time.monotonic()
            self._stop_timers()
            self._timers["files"] = self._loop.call_later(collecting.PATIENCE_S, self.end, None)
        self._collector = Collector(self._limits.artifact_bytes, self._sink.spool())
        return self._collector

    async def files_of_ended(self, cause: Termination | None, stop: Callable[[], None]) -> None:
        """Where time, CPU time or output ended the program, lets the sandbox hand over its files for a moment.

        Args:
            cause: what ended it.
            stop: tells the sandbox to end the program by itself.
        """
        by_limit = isinstance(cause, LimitExceeded) and cause.limit is not Limit.MEMORY
        if by_limit and self._limits.artifact_bytes and self._collector is None:
            self._grace = self._loop.create_future()
            stop()
            await asyncio.wait([self._grace], timeout=FILES_GRACE_S)
            self._grace.cancel()

    def flush(self) -> asyncio.Future[None] | None:
        """Done when what came of the files is written; until then nothing more of them may be taken."""
        return None if self._collector is None else self._collector.flush()

    async def artifacts(self, *, started: bool, gone: bool) -> Artifacts:
        """What the program left, as far as it was collected.

        Args:
            started: whether there was a program.
            gone: whether the sandbox ended in order.
        """
        if self._collector is not None:
            return await self._collector.artifacts()
        if not started or (gone and self._limits.artifact_bytes):
            return Artifacts()
        return Artifacts(not_collected=_ENDED if self._limits.artifact_bytes else _NOT_ASKED)

    @property
    def wall_time(self) -> timedelta:
        """From `begin` to the program's end."""
        return timedelta(seconds=max(0.0, self._ended - self._began))

    @property
    def samples(self) -> int | None:
        """How many were passed on; None when the kernel does not tell what there is to sample."""
        return None if self._unreadable and not self._taken else self._taken

    async def drain(self, limit: timedelta = timedelta(seconds=5)) -> bool:
        """Reads the rest of the output; False when a stream had no end within `limit` (somebody still holds it)."""
        if all(reader.finished.done() for reader in self._readers):
            return True
        for reader in self._readers:
            reader.resume()
        _, unfinished = await asyncio.wait([reader.finished for reader in self._readers], timeout=limit.total_seconds())
        return not unfinished

    def close(self) -> None:
        """Stops watching. Idempotent."""
        self._stop_timers()
        for reader in self._readers:
            reader.close()

    def _stop_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def output(self, stream: Stream, data: bytes) -> None:
        """Takes what the program wrote, from an engine whose streams are no pipes of their own.

        What comes of a stream after it has gone beyond what ends a run is dropped: how much that is, is a matter of how
        busy the machine is, and nobody is to be kept busy by it.
        """
        limit = OUTPUT_KILL_FACTOR * self._limits.output_bytes
        if self.output_bytes[stream] > limit:
            return
        self.output_bytes[stream] += len(data)
        self._sink.output(stream, data)
        if self.output_bytes[stream] > limit:
            written = self.output_bytes[stream]
            self.end(LimitExceeded(Limit.OUTPUT, f"{written} bytes read from {stream.value}, ended beyond {limit}"))

    def _wall_time_over(self) -> None:
        limit, passed = self._limits.wall_time.total_seconds(), time.monotonic() - self._began
        self.end(LimitExceeded(Limit.WALL_TIME, f"{passed:.3f} s passed on the executor's clock, limit {limit:g} s"))

    def _check_memory(self, oom_kills: Callable[[], int]) -> None:
        """Ends a run of which the kernel killed only a part: the rest could have that done again and again."""
        if oom_kills():
            self.end(None)
        else:
            self._timers["memory"] = self._loop.call_later(_MEMORY_CHECK_S, self._check_memory, oom_kills)

    def _sample_later(self, counters: Callable[[], Counters | None]) -> None:
        if self._taken < MAX_SAMPLES:
            self._timers["sample"] = self._loop.call_later(interval(self._taken), self._sample, counters)

    def _sample(self, counters: Callable[[], Counters | None]) -> None:
        found = counters()
        self._unreadable = found is None
        if found is not None:
            self._taken += 1
            self._last_cpu = max(self._last_cpu, found.cpu_time)  # whoever takes it in refuses one that falls
            since_start = timedelta(seconds=time.monotonic() - self._began)
            self._sink.sampled(Sample(since_start, dataclasses.replace(found, cpu_time=self._last_cpu)))
        self._sample_later(counters)

    def _check_cpu(self, cpu_time: Callable[[], timedelta], limit: timedelta, before: timedelta) -> None:
        used = cpu_time() - before
        left = (limit - used).total_seconds()
        if left <= 0:
            evidence = (
                f"{used.total_seconds():.3f} s of CPU time in the sandbox's cgroup, limit {limit.total_seconds():g} s"
            )
            self.end(LimitExceeded(Limit.CPU_TIME, evidence))
            return
        # It cannot be used up sooner than by all the CPUs it may have.
        pause = max(_SHORTEST_CPU_CHECK_S, left / max(1.0, self._limits.cpus))
        self._timers["cpu"] = self._loop.call_later(pause, self._check_cpu, cpu_time, limit, before)
