"""Follows the event log by position: every event once and in order, also across interruptions."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import NoReturn, Protocol

from crucible.evaluation.v1 import event_pb2
from crucible.storage.v1 import event_log_service_pb2 as log_api
from crucible_rpc import logs
from crucible_rpc.errors import CallError

ONLY_THOSE_TO_COME = -1
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class LogDamagedError(Exception):
    """The log is not the one that was followed so far, or it has a gap: watchers cannot be told the truth any more."""


class _GapError(Exception):
    """An event is missing between two that came."""


class TailSource(Protocol):
    """A log that can be followed."""

    def tail(self, after_position: int) -> AsyncGenerator[log_api.TailEventsResponse, None]:
        """All events after a position (-1: only those to come), and then without end; raises CallError."""
        ...


class Tail:
    """The one reader of the log.

    It begins with the events to come and keeps its position: after an interruption it goes on where it was, so that
    nothing is missed or doubled, however long storage was away. An event that is missing is asked for once more; when
    it is missing again, or the log ends before the position reached (it is another log), `run` raises and the process
    must end: a new one begins afresh.

    Args:
        source: the log.
        publish: takes each event, in order.
        observe: takes each batch that was published, for counting.
        first_pause_seconds: before the first new attempt; doubles up to 2 s.
    """

    def __init__(
        self,
        source: TailSource,
        publish: Callable[[event_pb2.Event], None],
        observe: Callable[[Iterable[event_pb2.Event]], None] = lambda _: None,
        *,
        first_pause_seconds: float = _FIRST_PAUSE_SECONDS,
    ) -> None:
        self.position: int | None = None
        self.connected = False
        self._source = source
        self._publish = publish
        self._observe = observe
        self._first_pause = first_pause_seconds
        self._pause = first_pause_seconds

    async def run(self) -> NoReturn:
        """Follows the log until cancelled.

        Raises:
            LogDamagedError: see the class.
        """
        gap_after: int | None = None
        while True:
            try:
                await self._follow()
                _log.info("storage ended the tail; it is shutting down")
            except CallError as error:
                level = logging.WARNING if self.connected else logging.DEBUG
                _log.log(level, "the tail broke off", extra=logs.fields(error=str(error), position=self.position))
            except _GapError as error:
                if gap_after == self.position:
                    raise LogDamagedError(f"the event log has a gap: {error}") from None
                gap_after = self.position
                _log.error("events are missing; asking again", extra=logs.fields(error=str(error)))
            finally:
                self.connected = False
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    async def _follow(self) -> None:
        after = ONLY_THOSE_TO_COME if self.position is None else self.position
        async with aclosing(self._source.tail(after)) as batches:
            async for batch in batches:
                if not self.connected:
                    self._begin(batch)
                self._take(batch.events)

    def _begin(self, batch: log_api.TailEventsResponse) -> None:
        """The first batch: empty, with the log's last position at the time of the call."""
        if self.position is None:
            self.position = batch.events[0].position - 1 if batch.events else batch.last_position
        elif not batch.events and batch.last_position < self.position:
            text = f"the event log ends at {batch.last_position}, but {self.position} was reached before"
            raise LogDamagedError(text)
        self.connected = True
        self._pause = self._first_pause
        _log.info("following the event log", extra=logs.fields(position=self.position))

    def _take(self, events: Iterable[event_pb2.Event]) -> None:
        taken = []
        try:
            for event in events:
                expected = (self.position or 0) + 1
                if event.position < expected:
                    continue  # was published before
                if event.position > expected:
                    raise _GapError(f"{event.position} came where {expected} was expected")
                self.position = event.position
                self._publish(event)
                taken.append(event)
        finally:
            if taken:
                self._observe(taken)
