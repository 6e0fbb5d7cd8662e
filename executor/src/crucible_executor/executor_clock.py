"""The clock of one start of the executor, and the times that it tells others and knows again when they come back."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable

from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible_rpc.errors import FieldViolation, InvalidArgumentError

_SEAL_BYTES = 16


def uptime_clock() -> Callable[[], float]:
    """Seconds from this call on, by a clock that nobody sets and that goes on while the machine sleeps."""
    began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return lambda: (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - began) / 1e9


class ExecutorClock:
    """Tells the time since this start, sealed: whoever brings a time back was told it, so it is not yet to come.

    Args:
        boot_id: names this start.
        uptime: seconds; see `uptime_clock`.
    """

    def __init__(self, boot_id: str, uptime: Callable[[], float] | None = None) -> None:
        self._boot_id = boot_id
        self._uptime = uptime or uptime_clock()
        self._key = secrets.token_bytes(32)

    def now(self) -> float:
        """Seconds since this start."""
        return self._uptime()

    def tell(self) -> ExecutorTime:
        """The time, for others; never later than it is."""
        told = ExecutorTime(boot_id=self._boot_id)
        told.uptime.FromMicroseconds(int(self.now() * 1e6))
        told.seal = self._seal(told)
        return told

    def read(self, told: ExecutorTime) -> float:
        """Seconds since this start at the moment that this start told.

        Raises:
            InvalidArgumentError: INVALID_FIELD, of the field `since`: it told no such time.
        """
        if told.boot_id != self._boot_id or not hmac.compare_digest(told.seal, self._seal(told)):
            violation = FieldViolation("since", "must be a time that this start of the executor told")
            raise InvalidArgumentError("INVALID_FIELD", "since is no time of this start of the executor", [violation])
        return told.uptime.seconds + told.uptime.nanos / 1e9

    def _seal(self, told: ExecutorTime) -> bytes:
        text = b"%d %d" % (told.uptime.seconds, told.uptime.nanos)
        return hashlib.blake2b(text, key=self._key, digest_size=_SEAL_BYTES).digest()
