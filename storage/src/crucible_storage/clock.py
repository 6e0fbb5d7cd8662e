"""Time, as the rest of storage is given it: an argument, so that tests can move it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """The two clocks of a machine."""

    def now(self) -> int:
        """Microseconds since 1970, UTC. May be set forward or back while the process runs."""

    def monotonic(self) -> float:
        """Seconds since some moment; never set."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> int:
        """See `Clock.now`."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()


class DatabaseClock:
    """The clock of a database that several machines share: none of their own clocks decides when a lease has expired.

    Told the time when a transaction begins, it goes on by the time since the machine's start, sleep included. Until it
    is told for the first time it is the machine's own.
    """

    def __init__(self) -> None:
        self._ahead = time.time_ns() // 1000 - _uptime()

    def told(self, now: int) -> None:
        """Takes the database's time."""
        self._ahead = now - _uptime()

    def now(self) -> int:
        """See `Clock.now`."""
        return self._ahead + _uptime()

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return time.monotonic()


def _uptime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def micros(duration: timedelta) -> int:
    """A duration in whole microseconds, as the tables keep times."""
    return duration // timedelta(microseconds=1)


def timestamp(at: int) -> Timestamp:
    """A stored time as protobuf writes it."""
    return Timestamp(seconds=at // 1_000_000, nanos=at % 1_000_000 * 1000)


def duration(length: timedelta) -> Duration:
    """A duration as protobuf writes it."""
    message = Duration()
    message.FromTimedelta(length)
    return message


def from_timestamp(message: Timestamp) -> int:
    """Protobuf's time as the tables keep it, cut to microseconds."""
    return message.seconds * 1_000_000 + message.nanos // 1000


def text(at: int) -> str:
    """A stored time for people, as `2026-01-31T12:00:00.000Z`."""
    return (_EPOCH + timedelta(microseconds=at)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
