"""What a suite's grades come to."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crucible_client.suites.grading import Grade
from crucible_client.suites.pass_at_k import mean_pass_at_k


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one suite.

    Attributes:
        problems: how many problems have a decided sample.
        samples: how many samples there are.
        passed: how many of them passed.
        failed: how many of them were decided and did not pass.
        undecided: how many the infrastructure failed, or were not reached.
        ended: how often each ending came, among the decided.
        pass_at: pass@k by k; None where a problem has fewer than k decided samples.
        ran: how many samples were decided now, not taken from the results file.
        seconds: how long that took.
        per_second: `ran` by `seconds`.
        p50_seconds: median time from creation to end of those that ran now; None when none did.
        p95_seconds: as `p50_seconds`, 95th percentile.
    """

    problems: int
    samples: int
    passed: int
    failed: int
    undecided: int
    ended: dict[str, int] = field(default_factory=dict)
    pass_at: dict[int, float | None] = field(default_factory=dict)
    ran: int = 0
    seconds: float = 0.0
    per_second: float = 0.0
    p50_seconds: float | None = None
    p95_seconds: float | None = None


def summarize(
    decided: Sequence[Grade], *, samples: int, ks: Iterable[int], new: Sequence[Grade] = (), seconds: float = 0.0
) -> Summary:
    """Counts grades.

    Args:
        decided: every decided grade, from the results file and from now.
        samples: how many samples there are.
        ks: for which k pass@k is wanted.
        new: those of `decided` that ran now.
        seconds: how long that took.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for grade in decided:
        counts[grade.task_id][0] += 1
        counts[grade.task_id][1] += bool(grade.passed)
    passed = sum(one for _, one in counts.values())
    times = sorted(grade.seconds for grade in new if grade.seconds is not None)
    pairs = [(total, good) for total, good in counts.values()]
    return Summary(
        problems=len(counts),
        samples=samples,
        passed=passed,
        failed=len(decided) - passed,
        undecided=samples - len(decided),
        ended=dict(Counter(grade.ended for grade in decided).most_common()),
        pass_at={k: mean_pass_at_k(pairs, k) for k in ks},
        ran=len(new),
        seconds=seconds,
        per_second=len(new) / seconds if seconds > 0 else 0.0,
        p50_seconds=percentile(times, 0.50),
        p95_seconds=percentile(times, 0.95),
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of ordered values; None when there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
