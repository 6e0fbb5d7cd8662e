"""What a run used over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from crucible.evaluation.v1.usage_samples_pb2 import UsagePoint as PointMessage
from crucible.gateway.v1.evaluation_service_pb2 import ListUsageSamplesResponse
from crucible_client import convert
from crucible_client.results import Observation


@dataclass(frozen=True, slots=True)
class UsagePoint:
    """One sample of a running sandbox, or what is kept of the samples of a stretch of time.

    All is what the host counted for the whole sandbox, its own kernel included.

    Attributes:
        since_start: from the program's start to the last of its samples.
        cpu_time: used until then, the sandbox's start included.
        samples: how many it stands for; 1: it is a sample as it was taken.
        memory_bytes: the mean.
        min_memory_bytes: the least.
        max_memory_bytes: the most.
        tasks: processes and threads that the host's kernel counts, the mean; with gVisor mostly its own threads.
        min_tasks: the least.
        max_tasks: the most.
    """

    since_start: timedelta
    cpu_time: timedelta
    samples: int
    memory_bytes: int
    min_memory_bytes: int
    max_memory_bytes: int
    tasks: int
    min_tasks: int
    max_tasks: int


@dataclass(frozen=True, slots=True)
class UsageSamples:
    """What one attempt used over time.

    Attributes:
        attempt: of which; 0: there was none yet.
        observation: OBSERVED: the points stand for all samples taken until now. PARTIAL: some are missing.
            NOT_OBSERVED: there are no points, and that says nothing of what was used.
        reason: why not everything is there.
        points: in order.
    """

    attempt: int
    observation: Observation
    reason: str
    points: tuple[UsagePoint, ...]


def decoded(message: ListUsageSamplesResponse) -> UsageSamples:
    """The answer as a plain value."""
    return UsageSamples(
        attempt=message.attempt,
        observation=convert.observation(message.observation),
        reason=message.reason,
        points=tuple(_point(point) for point in message.points),
    )


def cpus(points: Sequence[UsagePoint]) -> list[float | None]:
    """CPUs that were busy on average since the point before; None for the first, before which nothing is known."""
    if not points:
        return []
    rates: list[float | None] = [None]
    for before, after in pairwise(points):
        passed = (after.since_start - before.since_start).total_seconds()
        rates.append((after.cpu_time - before.cpu_time).total_seconds() / passed if passed > 0 else None)
    return rates


def _point(message: PointMessage) -> UsagePoint:
    return UsagePoint(
        since_start=message.since_start.ToTimedelta(),
        cpu_time=message.cpu_time.ToTimedelta(),
        samples=message.samples,
        memory_bytes=message.memory_bytes,
        min_memory_bytes=message.min_memory_bytes,
        max_memory_bytes=message.max_memory_bytes,
        tasks=message.tasks,
        min_tasks=message.min_tasks,
        max_tasks=message.max_tasks,
    )
