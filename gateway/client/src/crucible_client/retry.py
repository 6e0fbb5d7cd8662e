"""How long a call that failed in passing is repeated, and how long to wait before each time."""

import random
import time
from collections.abc import Callable
from datetime import timedelta

from crucible_client import errors

_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0


class Patience:
    """Decides about one call, or one stream that is resumed; both clients ask it, each sleeps in its own way.

    Repeated are UNAVAILABLE, and RESOURCE_EXHAUSTED when the server says when to come again (a full queue; not a
    message that is too large). The server's hint is the least delay; without one the delay doubles from 0.1 s to 5 s.

    Args:
        retry_for: how long failures in a row are borne.
        within: the whole call's bound; None: none.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        retry_for: timedelta,
        *,
        within: timedelta | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._retry_for = retry_for.total_seconds()
        self._end = None if within is None else clock() + within.total_seconds()
        self._failing_since: float | None = None
        self._failures = 0

    def renew(self) -> None:
        """Something came: failures so far are forgiven."""
        self._failing_since = None
        self._failures = 0

    def timeout(self, longest: float | None) -> float | None:
        """Seconds that the next try may take: `longest`, but not past the whole call's bound."""
        if self._end is None:
            return longest
        left = max(0.001, self._end - self._clock())
        return left if longest is None else min(left, longest)

    def delay(self, error: errors.CallError, *, waits: bool = False) -> float | None:
        """Seconds to wait before the next try; None: give up and raise `error`.

        Args:
            error: how the try failed.
            waits: whether the call waits for something, so that its deadline alone is no failure.
        """
        now = self._clock()
        if waits and isinstance(error, errors.DeadlineExceededError):
            return 0.0 if self._end is None or now < self._end else None
        if not _passes(error):
            return None
        if self._failing_since is None:
            self._failing_since = now
        self._failures += 1
        delay = self._next_delay(error)
        if now + delay > self._failing_since + self._retry_for or (self._end is not None and now + delay > self._end):
            return None
        return delay

    def _next_delay(self, error: errors.CallError) -> float:
        backoff = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._failures - 1, 16))
        # Spread out, so that many callers that failed together do not come back together.
        backoff *= random.uniform(0.5, 1.0)  # noqa: S311
        hint = error.retry_after if isinstance(error, errors.RetryableError) else None
        return max(backoff, hint.total_seconds() * random.uniform(1.0, 1.2)) if hint else backoff  # noqa: S311


def _passes(error: errors.CallError) -> bool:
    if isinstance(error, errors.ResourceExhaustedError):
        return error.retry_after is not None
    return isinstance(error, errors.UnavailableError)
