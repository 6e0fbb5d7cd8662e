"""Keeps something that fails again and again from being tried without a pause."""

from __future__ import annotations

OPEN_AFTER = 3
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_FORGET_AFTER_S = 120.0


class Breaker:
    """Counts failures that follow each other; each doubles the pause until the next try, up to a minute.

    Times are seconds of one clock. Failures are forgotten two minutes after the last, not at a success: what boots and
    dies a moment later must not start anew without a pause.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._last = 0.0

    def failed(self, now: float) -> bool:
        """Notes a failure; True when it opened the breaker."""
        if now - self._last > _FORGET_AFTER_S:
            self._failures = 0
        self._failures += 1
        self._last = now
        return self._failures == OPEN_AFTER

    def retry_at(self) -> float:
        """The earliest time of the next try."""
        if not self._failures:
            return 0.0
        # 2 ** 10 pauses are beyond the longest anyway.
        doublings = min(10, self._failures - 1)
        return self._last + min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * float(1 << doublings))

    def is_open(self, now: float) -> bool:
        """Whether so many failures followed each other that something is wrong, and the pause is not over."""
        return self._failures >= OPEN_AFTER and now < self.retry_at()
