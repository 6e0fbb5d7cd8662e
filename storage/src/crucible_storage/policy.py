"""The numbers that govern the life of an evaluation, in one place."""

from dataclasses import dataclass
from datetime import timedelta

LEAST_INLINE = 16 << 10
"""Output of a stream that is smaller is always kept in the database."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the queue promises and allows.

    Attributes:
        lease: how long a lease lasts after a renewal.
        orphan_grace: how long an executor lets a run go on after the last renewal was sent.
        kill_margin: what a kill may take after that; the next attempt waits for it too.
        max_attempts: attempts before an infrastructure failure is final.
        max_queued: evaluations that may wait at once, over all tenants.
        backoff: wait after the first failed attempt; doubles with each further one, up to `backoff_limit`.
        backoff_limit: the longest such wait.
        ageing: the waiting time that counts as one step of priority; see `queue`.
        max_artifact_bytes: kept of the files that one program leaves, all together; 0: none.
        inline_output_bytes: output of a stream that is larger is moved to the artifact store after the end.
        cache_bytes: of evaluations that have ended, remembered by each process; 0: none.

    Raises:
        ValueError: the numbers do not fit together.
    """

    lease: timedelta = timedelta(seconds=10)
    orphan_grace: timedelta = timedelta(seconds=15)
    kill_margin: timedelta = timedelta(seconds=2)
    max_attempts: int = 3
    max_queued: int = 200_000
    backoff: timedelta = timedelta(seconds=1)
    backoff_limit: timedelta = timedelta(seconds=60)
    ageing: timedelta = timedelta(seconds=30)
    max_artifact_bytes: int = 1 << 30
    inline_output_bytes: int = 64 << 10
    cache_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        if self.lease <= timedelta(0) or self.kill_margin < timedelta(0):
            raise ValueError("lease must be more than 0 and kill_margin at least 0")
        if self.orphan_grace <= self.lease:
            raise ValueError("orphan_grace must be longer than lease, or a late renewal costs the run its life")
        if self.max_attempts < 1 or self.max_queued < 1:
            raise ValueError("max_attempts and max_queued must be at least 1")
        if not 0 <= self.max_artifact_bytes <= 1 << 40:
            raise ValueError("max_artifact_bytes must be 0 to 1099511627776")
        if not LEAST_INLINE <= self.inline_output_bytes <= 1 << 40:
            raise ValueError(f"inline_output_bytes must be {LEAST_INLINE} to 1099511627776")
        if self.cache_bytes < 0:
            raise ValueError("cache_bytes must be at least 0")

    @property
    def fence(self) -> timedelta:
        """From the last renewal to the moment at which nothing of the run can be alive any more."""
        return self.orphan_grace + self.kill_margin

    def backoff_after(self, attempt: int, jitter: float) -> timedelta:
        """The wait after failed attempt `attempt` (from 1): doubling, plus up to a quarter by `jitter` (0 to 1)."""
        plain = min(self.backoff * (1 << min(attempt - 1, 30)), self.backoff_limit)
        return plain * (1 + 0.25 * jitter)
