"""The unbiased estimator of pass@k."""

from collections.abc import Iterable
from statistics import fmean


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that at least one of `k` samples, drawn without replacement, is among those that passed.

    1 - C(n - c, k) / C(n, k) with n = `samples` and c = `passed`, as the product of 1 - k / (n - c + i) over i = 1 … c,
    which needs no large numbers. Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code",
    arXiv:2107.03374, section 2.1.

    Raises:
        ValueError: not 0 <= passed <= samples, or not 1 <= k <= samples.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {passed} passed among {samples} samples is not defined")
    if samples - passed < k:
        return 1.0
    product = 1.0
    for number in range(samples - passed + 1, samples + 1):
        product *= 1.0 - k / number
    return 1.0 - product


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float | None:
    """The mean of pass@k over problems, each given as (samples, passed); None when one has fewer than `k` samples."""
    counts = list(counts)
    if not counts or any(samples < k for samples, _ in counts):
        return None
    return fmean(pass_at_k(samples, passed, k) for samples, passed in counts)
