"""The chaos misses no fault, and its report has a verdict for each promise."""

import itertools
import random
from collections import Counter

from crucible_deploy.chaos import report
from crucible_deploy.chaos.faults import all_faults, in_order
from crucible_deploy.chaos.judge import Promise, Wrong
from crucible_deploy.chaos.result import Chaos


def test_every_fault_happens_before_one_happens_twice_and_a_seed_repeats_the_order():
    faults = all_faults()
    names = [one.name for one in itertools.islice(in_order(faults, random.Random(1)), 500)]
    assert len(set(names[: len(faults)])) == len(faults)
    again = [one.name for one in itertools.islice(in_order(faults, random.Random(1)), 500)]
    assert names == again
    often = Counter(names)
    assert often["kill storage"] > often["cut the executor off"]


def test_each_promise_has_its_verdict():
    wrong = [Wrong(Promise.ALONE, f"program {number} had two attempts alive at once") for number in range(30)]
    found = Chaos(7, 299, accepted=300, faults=Counter({"kill storage": 3}), wrong=wrong)
    lines = list(report.lines(found))
    assert "seed 7, SQLite: 300 evaluations" in lines[0]
    assert [line for line in lines if line.startswith("BROKEN")] == [f"BROKEN  {Promise.ALONE}"]
    assert len([line for line in lines if line.startswith("held")]) == len(Promise) - 1
    assert lines[-2:] == ["and 10 more", "FAILED"]
    assert not any("time was over" in line for line in lines)
    found.wrong.clear()
    assert list(report.lines(found))[-1] == "every promise held"


def test_time_that_was_over_is_told():
    assert any("before all 2000 programs had begun" in line for line in report.lines(Chaos(7, 2000, time_over=True)))
