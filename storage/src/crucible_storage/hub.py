"""Wakes those who wait, on the event loop, after the commit of what they wait for."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from crucible_rpc.errors import UnavailableError
from crucible_storage.lifecycle import End
from crucible_storage.recent import Recent
from crucible_storage.transaction import Notices, Stop

MAX_STOPS_WAITING = 4096
MAX_UNENDED = 100_000
"""How many evaluations are remembered as not ended; of those beyond it, storage looks."""


class Signal:
    """Something that happens again and again. Subscribe, look, then wait: nothing that happens in between is missed."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    @contextmanager
    def subscribed(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever the signal is fired; clear it before looking."""
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            yield event
        finally:
            self._waiting.discard(event)

    def fire(self) -> None:
        """Sets the events of all subscribers."""
        for event in self._waiting:
            event.set()

    def __len__(self) -> int:
        return len(self._waiting)


@dataclass(slots=True, eq=False)
class EndWatch:
    """Somebody who waits for an evaluation to end.

    Attributes:
        changed: set when it may have ended.
        end: how, when all of that is known.
    """

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    end: End | None = None


class StopWatch:
    """The stops of one watcher that it has not taken; at most `MAX_STOPS_WAITING`, renewals tell of the rest."""

    def __init__(self) -> None:
        self._stops: list[Stop] = []
        self._some = asyncio.Event()

    def wake(self) -> None:
        """Ends a `take` that waits, with nothing."""
        self._some.set()

    def put(self, stop: Stop) -> None:
        """Adds one, unless too many wait."""
        if len(self._stops) < MAX_STOPS_WAITING:
            self._stops.append(stop)
        self._some.set()

    async def take(self) -> list[Stop]:
        """Waits until there are some, and takes them all."""
        await self._some.wait()
        self._some.clear()
        taken, self._stops = self._stops, []
        return taken


class Hub:
    """The subscribers of one process; used on its event loop alone.

    Attributes:
        work: there may be work to lease.
        appended: events were appended.
        inspections: there may be an inspection to lease.
        held_back: tenants who had work to lease but for their quota of running: the end of a run makes room.
        closing: the process stops.
    """

    def __init__(self) -> None:
        self.work = Signal()
        self.held_back: frozenset[str] = frozenset()
        self.appended = Signal()
        self.inspections = Signal()
        self.batch_work = Signal()
        self._batches: dict[str, Signal] = {}
        self.recent = Recent()
        self._finished: defaultdict[str, set[EndWatch]] = defaultdict(set)
        self._unended: dict[str, str] = {}
        self.closing = False
        self._stops: defaultdict[str, set[StopWatch]] = defaultdict(set)

    def close(self) -> None:
        """The process stops: wakes everybody, for good."""
        self.closing = True
        for signal in (
            self.work,
            self.appended,
            self.inspections,
            self.batch_work,
            *self._batches.values(),
        ):
            signal.fire()
        for waiting in self._finished.values():
            for one in waiting:
                one.changed.set()
        for watches in self._stops.values():
            for watch in watches:
                watch.wake()

    def check_open(self) -> None:
        """Ends a stream when the process stops.

        Raises:
            UnavailableError: SHUTTING_DOWN.
        """
        if self.closing:
            text = "storage is stopping; call again in a moment"
            raise UnavailableError("SHUTTING_DOWN", text, retry_after=timedelta(seconds=1))

    def publish(self, notices: Notices) -> None:
        """Wakes those whom a commit concerns."""
        if notices.work or not self.held_back.isdisjoint(notices.freed):
            self.work.fire()
        if notices.appended:
            told = notices.events if len(notices.events) == notices.appended else []
            self.recent.add(told, notices.last_position)
            self.appended.fire()
        if notices.inspections:
            self.inspections.fire()
        for evaluation_id, tenant in notices.created:
            if len(self._unended) < MAX_UNENDED:
                self._unended[evaluation_id] = tenant
        for evaluation_id in notices.finished:
            self._unended.pop(evaluation_id, None)
            for waiting in self._finished.get(evaluation_id, ()):
                waiting.end = notices.ends.get(evaluation_id)
                waiting.changed.set()
        if notices.batch_work:
            self.batch_work.fire()
        for batch in notices.batches:
            if signal := self._batches.get(batch):
                signal.fire()
        for stop in notices.stops:
            for watch in self._stops.get(stop.executor, ()):
                watch.put(stop)

    def forget(self, evaluation_id: str) -> None:
        """Notes that an evaluation was seen to have ended, in case nobody told."""
        self._unended.pop(evaluation_id, None)

    def is_unended(self, tenant: str, evaluation_id: str) -> bool:
        """Whether this tenant's evaluation is known to be there and not terminal; False: it must be looked for."""
        return self._unended.get(evaluation_id) == tenant

    @contextmanager
    def end_of(self, evaluation_id: str) -> Iterator[EndWatch]:
        """Told when the evaluation becomes terminal."""
        watch = EndWatch()
        self._finished[evaluation_id].add(watch)
        try:
            yield watch
        finally:
            self._finished[evaluation_id].discard(watch)
            if not self._finished[evaluation_id]:
                del self._finished[evaluation_id]

    @contextmanager
    def changes_of(self, batch: str) -> Iterator[asyncio.Event]:
        """An event that is set when something of a batch changed."""
        signal = self._batches.setdefault(batch, Signal())
        try:
            with signal.subscribed() as event:
                yield event
        finally:
            if not len(signal):
                self._batches.pop(batch, None)

    @contextmanager
    def stops_of(self, executor: str) -> Iterator[StopWatch]:
        """The stops of an executor's runs, from now on."""
        watch = StopWatch()
        self._stops[executor].add(watch)
        try:
            yield watch
        finally:
            self._stops[executor].discard(watch)
            if not self._stops[executor]:
                del self._stops[executor]


async def wait_for(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(
            seconds
        ):  # `asyncio.wait_for` of 3.11 swallows a cancellation that comes with the event
            await event.wait()
