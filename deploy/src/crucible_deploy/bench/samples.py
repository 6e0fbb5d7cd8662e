"""The arithmetic of the benchmarks."""

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of all lie, interpolated linearly between the two nearest.

    Of few values a high percentile is nearly the largest: a 99th wants at least a hundred.

    Raises:
        ValueError: there are no values, or `percent` is not from 0 to 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError("a percentile needs values, and a percent from 0 to 100")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def p50(values: Sequence[float]) -> float:
    """The median."""
    return percentile(values, 50)


def p95(values: Sequence[float]) -> float:
    """The 95th percentile."""
    return percentile(values, 95)


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return percentile(values, 99)
