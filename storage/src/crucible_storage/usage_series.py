"""A run's usage over time: points, how they are packed into one row, what is made of them when they are old."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

MAX_BUCKETS = 64
"""Points of a series that was downsampled."""

LEAST_BUCKET = 1_000_000
"""µs: a downsampled series is no finer than this."""

_SAMPLE = struct.Struct("<QQQI")
_POINT = struct.Struct("<QQIQQQIII")


@dataclass(frozen=True, slots=True)
class Point:
    """What is kept of `samples` samples; of one sample, mean, least and most are the same.

    Attributes:
        since_start: µs from the program's start to the last of them.
        cpu: µs of CPU time that the sandbox had used by then, its start included.
        samples: how many.
        memory: mean bytes charged to the sandbox.
        min_memory: the least.
        max_memory: the most.
        tasks: mean number of processes and threads, rounded.
        min_tasks: the least.
        max_tasks: the most.
    """

    since_start: int
    cpu: int
    samples: int
    memory: int
    min_memory: int
    max_memory: int
    tasks: int
    min_tasks: int
    max_tasks: int

    @classmethod
    def of_sample(cls, since_start: int, cpu: int, memory: int, tasks: int) -> "Point":
        """One sample as it was taken."""
        return cls(since_start, cpu, 1, memory, memory, memory, tasks, tasks, tasks)


def pack_samples(points: Iterable[Point]) -> bytes:
    """Samples as they were taken: 28 bytes each."""
    return b"".join(_SAMPLE.pack(one.since_start, one.cpu, one.memory, one.tasks) for one in points)


def unpack(data: bytes, *, downsampled: bool) -> list[Point]:
    """All points of a row.

    Raises:
        ValueError: the bytes are no whole number of points.
    """
    try:
        if downsampled:
            return [Point(*fields) for fields in _POINT.iter_unpack(data)]
        return [Point.of_sample(*fields) for fields in _SAMPLE.iter_unpack(data)]
    except struct.error as error:
        raise ValueError(str(error)) from error


def downsampled(points: Sequence[Point]) -> list[Point]:
    """At most 64 points, of buckets of equal length, each at least a second.

    Of a bucket are kept: how many samples it had, the time and the CPU counter of the last, and mean, least and most of
    memory and tasks. So CPU time between two points is exact, no peak among the samples is lost, and what is lost is
    when within the bucket it was.
    """
    if not points:
        return []
    width = max(LEAST_BUCKET, -(-(points[-1].since_start + 1) // MAX_BUCKETS))
    return [_merged(list(bucket)) for _, bucket in groupby(points, lambda one: one.since_start // width)]


def pack_points(points: Iterable[Point]) -> bytes:
    """What `downsampled` made: 56 bytes each."""
    return b"".join(
        _POINT.pack(
            one.since_start,
            one.cpu,
            one.samples,
            one.memory,
            one.min_memory,
            one.max_memory,
            one.tasks,
            one.min_tasks,
            one.max_tasks,
        )
        for one in points
    )


def in_order(points: Sequence[Point]) -> bool:
    """Whether time rises from point to point, CPU time never falls, and means lie between least and most."""
    return all(
        before.since_start < after.since_start and before.cpu <= after.cpu for before, after in pairwise(points)
    ) and all(
        one.samples >= 1
        and one.min_memory <= one.memory <= one.max_memory
        and one.min_tasks <= one.tasks <= one.max_tasks
        for one in points
    )


def _merged(bucket: Sequence[Point]) -> Point:
    last, count = bucket[-1], sum(one.samples for one in bucket)
    return Point(
        since_start=last.since_start,
        cpu=last.cpu,
        samples=count,
        memory=sum(one.memory * one.samples for one in bucket) // count,
        min_memory=min(one.min_memory for one in bucket),
        max_memory=max(one.max_memory for one in bucket),
        tasks=round(sum(one.tasks * one.samples for one in bucket) / count),
        min_tasks=min(one.min_tasks for one in bucket),
        max_tasks=max(one.max_tasks for one in bucket),
    )
