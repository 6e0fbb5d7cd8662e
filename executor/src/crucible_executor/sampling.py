"""Looks at a running sandbox's counters: often at first, then less and less, so that any run has a bounded series."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from crucible_executor.cgroups import Counters

FIRST_INTERVAL_S = 0.1
"""A run that ends sooner is never looked at: it costs a timer that does not fire."""

SAMPLES_PER_INTERVAL = 64
"""After so many the interval doubles: beyond its first 6 s, a run is looked at every 1/64 to 1/128 of its age."""

MAX_SAMPLES = 2048
"""Of one run; at these intervals a run of a year has some 1500."""


@dataclass(frozen=True)
class Sample:
    """The counters of a run at `since_start`, which rises from sample to sample; the CPU time never falls."""

    since_start: timedelta
    counters: Counters


def interval(taken: int) -> float:
    """Seconds until the next look, after so many samples were taken."""
    return float(FIRST_INTERVAL_S * 2 ** (taken // SAMPLES_PER_INTERVAL))
