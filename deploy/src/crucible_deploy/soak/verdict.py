"""Whether a figure grew, from looks at it over a long time."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from crucible_deploy.soak.look import EXECUTOR_AND_HELPERS, Look

MOST_GROWTH = 0.05
_WARMING_UP = 0.1
"""Of all runs, from the first on: caches fill, modules are loaded, and no growth is seen in that."""
_AVERAGED = 3
_BOUNDED = {
    "executor: MiB of its state": 8.0,
    "executor: threads": 9.0 + min(32, (os.cpu_count() or 1) + 4),
    "trace reader: RSS MiB": 20.0,
    "trace reader: PSS MiB": 14.0,
}
"""What rises up to a bound that is no growth: the journal is rewritten when it has 4 MiB; threads for blocking calls
are made when that many are under way at once, and kept (`ThreadPoolExecutor`: CPUs + 4, at most 32; beside nine of the
executor's own and grpc's); the reader of traces remembers what at most 4096 messages said (measured: from 14.3 MiB on
2.5 KiB with each run, for three new messages)."""


@dataclass(frozen=True)
class Verdict:
    """What became of one figure.

    Attributes:
        name: of the figure.
        first: the median of the first looks after warming up.
        last: the median of the last looks.
        judged: whether growth of it fails the soak: all but what grows by its purpose, as storage's database.
    """

    name: str
    first: float
    last: float
    judged: bool

    @property
    def growth(self) -> float:
        """As a share of `first`; infinite where there was nothing before."""
        if self.last <= self.first:
            return 0.0 if not self.first else self.last / self.first - 1
        return self.last / self.first - 1 if self.first else float("inf")

    @property
    def grew(self) -> bool:
        """Whether it fails the soak."""
        allowed = max(self.first * (1 + MOST_GROWTH), _BOUNDED.get(self.name, 0.0))
        return self.judged and self.last > allowed


def verdicts(looks: Sequence[Look]) -> list[Verdict]:
    """One for each figure that every look has.

    Raises:
        ValueError: there are fewer than two looks after warming up.
    """
    total = looks[-1].runs if looks else 0
    warm = [look for look in looks if look.runs >= _WARMING_UP * total and look.runs]
    if len(warm) < 2:
        raise ValueError("growth needs two looks after the first tenth of the runs")
    few = max(1, min(_AVERAGED, len(warm) // 2))
    names = [name for name in warm[-1].figures if all(name in look.figures for look in warm)]
    return [
        Verdict(name, _median(warm[:few], name), _median(warm[-few:], name), judged=is_judged(name)) for name in names
    ]


def is_judged(name: str) -> bool:
    """Everything of the executor and its helpers; the rest is shown."""
    return name.partition(":")[0] in (*EXECUTOR_AND_HELPERS, "sandboxes")


def _median(looks: Sequence[Look], name: str) -> float:
    return statistics.median(look.figures[name] for look in looks)
