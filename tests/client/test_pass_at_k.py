"""pass@k against its definition, counted exactly."""

from fractions import Fraction
from itertools import combinations
from math import comb, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_client.suites.pass_at_k import mean_pass_at_k, pass_at_k


@st.composite
def cases(draw, most=200):
    samples = draw(st.integers(1, most))
    return samples, draw(st.integers(0, samples)), draw(st.integers(1, samples))


@given(cases())
def test_equals_the_exact_count_of_combinations(case):
    samples, passed, k = case
    exact = 1 - Fraction(comb(samples - passed, k), comb(samples, k))
    assert isclose(pass_at_k(samples, passed, k), float(exact), rel_tol=1e-9, abs_tol=1e-12)


@given(cases(most=7))
def test_equals_trying_every_draw(case):
    samples, passed, k = case
    draws = list(combinations(range(samples), k))
    share = sum(any(one < passed for one in draw) for draw in draws) / len(draws)
    assert isclose(pass_at_k(samples, passed, k), share, abs_tol=1e-12)


@pytest.mark.parametrize("case", [(0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_undefined_is_refused(case):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(*case)


def test_mean_needs_enough_samples_of_every_problem():
    assert mean_pass_at_k([(2, 1), (2, 2)], 1) == 0.75
    assert mean_pass_at_k([(2, 1), (1, 1)], 2) is None
    assert mean_pass_at_k([], 1) is None
