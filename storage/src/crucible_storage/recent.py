"""The newest events of the log, kept in memory as their commits told of them.

Who follows the log is rarely more than a moment behind: it need not read back what this process has just written. What
is not here is in the database, and nothing is taken from here that does not follow without a gap on what is.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from crucible.evaluation.v1.event_pb2 import Event

MAX_KEPT = 4096
MAX_KEPT_BYTES = 4 << 20


class Recent:
    """A stretch of the log without gaps; used on the event loop alone."""

    def __init__(self, max_kept: int = MAX_KEPT, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_kept = max_kept
        self._max_bytes = max_kept_bytes
        self._events: deque[tuple[Event, int]] = deque()
        self._bytes = 0
        self._end = -1

    def add(self, events: Sequence[Event], last_position: int) -> None:
        """A commit: these are the events up to `last_position`, in order, not yet numbered.

        Events between the end that was known and these (of another process, say) break the stretch: it begins anew.
        What is told late, when the log is known to go on behind it, is left to the database.
        """
        if last_position <= self._end:
            return
        first = last_position - len(events) + 1
        if first != self._end + 1:
            self._events.clear()
            self._bytes = 0
        self._end = last_position
        for position, event in enumerate(events, first):
            event.position = position
            size = event.ByteSize()
            self._events.append((event, size))
            self._bytes += size
        while len(self._events) > self._max_kept or self._bytes > self._max_bytes:
            self._bytes -= self._events.popleft()[1]

    def after(self, position: int, max_events: int, max_bytes: int) -> list[Event] | None:
        """The events that follow `position`, as many as fit, at least one; [] when it is the end; None: not here."""
        behind = self._end - position
        if not 0 <= behind <= len(self._events):
            return None
        found: list[Event] = []
        room = max_bytes
        # From the end, where those who follow are: a deque is slow to reach its middle.
        newest_first = list(islice(reversed(self._events), behind))
        for event, size in islice(reversed(newest_first), max_events):
            room -= size
            if found and room < 0:
                break
            found.append(event)
        return found
