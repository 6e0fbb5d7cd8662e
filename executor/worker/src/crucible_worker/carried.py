"""One run on its way from the executor to storage."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from crucible.evaluation.v1.evaluation_pb2 import OUTPUT_STREAM_STDOUT
from crucible.executor.v1.executor_service_pb2 import RunEvent
from crucible.storage.v1 import work_service_pb2 as work

MAX_PENDING_BYTES = 256 << 10
"""What one run may have in memory before its stream from the executor has to wait."""


class CarriedRun:
    """What the worker knows of a run whose lease it holds.

    Attributes:
        run_id: its id.
        epoch: its lease's.
        stdout_offset: bytes of stdout received.
        stderr_offset: bytes of stderr received.
        behaviour_sequence: number of the last behaviour update received.
        usage_samples: number of the last usage sample received. Taken over, a run begins again at 0: storage ignores
            what it has, and they are few.
        ended: the executor said how it ended, or never will: its slot is free.
        storing: the executor has ended it, so that its slot is free, and its files are stored before that is reported.
        outcome: what is reported instead of an end.
        resync: its reports do not fit to what storage has: to be attached again where storage says.
        resyncs: how often that happened.
        generation: rises when pending events are thrown away.
        task: carries its events.
        due: when what is pending is to be reported, by the event loop's clock.
        reported: something of it was in a report.
    """

    def __init__(
        self, run_id: str, epoch: int, stdout_offset: int = 0, stderr_offset: int = 0, behaviour_sequence: int = 0
    ) -> None:
        self.run_id = run_id
        self.epoch = epoch
        self.stdout_offset = stdout_offset
        self.stderr_offset = stderr_offset
        self.behaviour_sequence = behaviour_sequence
        self.usage_samples = 0
        self.ended = self.storing = False
        self.outcome: work.Refused | work.RunLost | None = None
        self.resync = False
        self.resyncs = 0
        self.generation = 0
        self.task: asyncio.Task[None] | None = None
        self.due = math.inf
        self.reported = False
        self.pending: deque[tuple[RunEvent, int]] = deque()
        self.pending_bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    def ref(self) -> work.LeaseRef:
        """Its lease."""
        return work.LeaseRef(run_id=self.run_id, epoch=self.epoch)

    def take(self, event: RunEvent) -> None:
        """Keeps an event until storage has it."""
        kind = event.WhichOneof("kind")
        if kind == "output":
            end = event.output.offset + len(event.output.data)
            if event.output.stream == OUTPUT_STREAM_STDOUT:
                self.stdout_offset = max(self.stdout_offset, end)
            else:
                self.stderr_offset = max(self.stderr_offset, end)
        elif kind == "behaviour":
            self.behaviour_sequence = max(self.behaviour_sequence, event.behaviour.sequence)
        elif kind == "usage_samples":
            last = event.usage_samples.first + len(event.usage_samples.samples) - 1
            self.usage_samples = max(self.usage_samples, last)
        elif kind == "finished":
            self.ended = True
        size = event.ByteSize()
        self.pending.append((event, size))
        self._count(size)

    def drop(self, count: int) -> None:
        """Forgets the first `count` events: storage has them."""
        for _ in range(count):
            self._count(-self.pending.popleft()[1])
        if count:
            self.generation += 1

    def restart(self, stdout_offset: int, stderr_offset: int, behaviour_sequence: int) -> None:
        """Throws away what is pending, to begin again at these offsets and after this update."""
        self.pending.clear()
        self._count(-self.pending_bytes)
        self.stdout_offset, self.stderr_offset = stdout_offset, stderr_offset
        self.behaviour_sequence, self.usage_samples = behaviour_sequence, 0
        self.ended = self.storing = self.resync = False
        self.generation += 1

    async def room(self) -> None:
        """Returns when more may be taken."""
        await self._room.wait()

    def _count(self, size: int) -> None:
        self.pending_bytes += size
        if self.pending_bytes < MAX_PENDING_BYTES:
            self._room.set()
        else:
            self._room.clear()
