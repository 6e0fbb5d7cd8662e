"""Which kinds of sandboxes were asked for lately, and how many of each should wait."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_REMEMBERED = 32


class Demand(Generic[K]):
    """The last requests.

    Args:
        size: how many sandboxes wait at most.
        idle_s: a kind that nobody asked for during this time is not kept.
    """

    def __init__(self, size: int, idle_s: float) -> None:
        self._size = size
        self._idle_s = idle_s
        self._asked: deque[tuple[float, K]] = deque(maxlen=_REMEMBERED)
        self._last: dict[K, float] = {}

    def asked(self, kind: K, now: float) -> None:
        """Somebody asked for this kind."""
        self._asked.append((now, kind))
        self._last[kind] = now

    def targets(self, now: float) -> dict[K, int]:
        """How many of each kind should wait, in proportion to the last requests; the latest kind first.

        What came once gets a place only while nothing came twice: much never comes again.
        """
        self._last = {kind: last for kind, last in self._last.items() if now - last < self._idle_s}
        counts = Counter(kind for _, kind in self._asked if kind in self._last)
        repeated = Counter({kind: count for kind, count in counts.items() if count > 1})
        counts = repeated or counts
        total = counts.total()
        recent = sorted(counts, key=self._last.__getitem__, reverse=True)
        targets = {kind: self._size * counts[kind] // total for kind in recent}
        for kind in recent[: self._size - sum(targets.values())]:
            targets[kind] += 1
        return targets

    def next_change(self) -> float | None:
        """When the next kind becomes idle, if nobody asks for anything."""
        return min(self._last.values()) + self._idle_s if self._last else None
