import json
import os
from collections import Counter
from dataclasses import replace

import pytest

from crucible_deploy.bench.machine import Machine
from crucible_deploy.soak import __main__ as command
from crucible_deploy.soak.look import Look
from crucible_deploy.soak.programs import KINDS, mixed
from crucible_deploy.soak.report import Soaked, print_soaked
from crucible_deploy.soak.verdict import is_judged, verdicts

MACHINE = Machine("A CPU", 2, "6.1", 4096, "v2", {}, 0.1)


def looks(name, *values):
    return [Look(100 * number, {name: float(value)}, {}) for number, value in enumerate(values, 1)]


def verdict(name, *values):
    (only,) = verdicts(looks(name, *values))
    return only


def test_growth_of_a_twentieth_is_borne_and_more_is_not():
    assert not verdict("executor: RSS MiB", 100, 100, 100, 105, 105, 105).grew
    assert verdict("executor: RSS MiB", 100, 100, 100, 105.1, 105.1, 105.1).grew


def test_anything_that_was_not_there_before_is_growth():
    grown = verdict("sandboxes: mounts", 0, 0, 1, 1)
    assert grown.grew
    assert grown.growth == float("inf")
    assert not verdict("sandboxes: mounts", 0, 0, 0, 0).grew


def test_one_look_that_is_out_of_line_decides_nothing():
    assert not verdict("executor: RSS MiB", 100, 100, 100, 100, 100, 100, 130, 100).grew


def test_first_tenth_of_the_runs_is_warming_up():
    values = [10] + [100] * 19
    assert not verdict("executor: descriptors", *values).grew


def test_growth_of_the_executor_its_reader_and_their_sandboxes_is_judged_and_other_growth_is_shown():
    assert is_judged("executor: files of its state")
    assert is_judged("trace reader: RSS MiB")
    assert is_judged("sandboxes: cgroups")
    assert not is_judged("storage: MiB of its state")
    assert not verdict("storage: MiB of its state", 1, 2, 3, 4).grew


def test_journal_may_rise_to_its_bound_and_no_further():
    assert not verdict("executor: MiB of its state", 0.1, 2.0, 3.9, 1.0, 4.2).grew
    assert verdict("executor: MiB of its state", 0.1, 2.0, 8.1, 8.2, 8.3).grew


def test_reader_of_traces_may_fill_its_memory_of_messages_and_no_more():
    assert not verdict("trace reader: RSS MiB", 14.3, 14.5, 15.0, 15.2, 15.3).grew
    assert verdict("trace reader: RSS MiB", 14.3, 16.0, 18.0, 20.1, 22.0, 24.0).grew


def test_threads_may_be_as_many_as_blocking_calls_can_be_at_once_and_no_more():
    most = 9 + min(32, os.cpu_count() + 4)
    assert not verdict("executor: threads", most - 1, most - 1, most, most).grew
    assert verdict("executor: threads", most - 1, most - 1, most + 1, most + 1).grew


def test_one_look_shows_no_growth():
    with pytest.raises(ValueError, match="two looks"):
        verdicts(looks("executor: RSS MiB", 1))
    with pytest.raises(SystemExit):
        command.main(["--count", "10", "--every", "5"])


def test_process_that_was_started_again_is_wrong_whatever_its_figures_are():
    before, same, other = (Look(1, {}, {"executor": pid, "trace reader": 2}) for pid in (7, 7, 8))
    assert command.replaced([before]) == command.replaced([before, same]) == []
    assert command.replaced([before, same, other]) == ["executor: another process than before"]
    assert command.replaced([before, Look(2, {}, {"executor": 7})]) == ["trace reader: another process than before"]


async def test_every_program_of_a_batch_is_run_also_in_the_next_one(monkeypatch):
    ran = []

    class Ran:
        async def run(self, spec):
            ran.append(spec)

    monkeypatch.setattr(command, "_ending", lambda _: "Exited 0")
    kinds, soaked = iter([replace(KINDS[0], spec=number) for number in range(30)]), Soaked(MACHINE, 0.0, 0)
    for _ in range(3):
        await command._run_some(Ran(), kinds, 10, soaked)
    assert sorted(ran) == list(range(30))
    assert soaked.kinds.total() == 30


def test_hundred_programs_have_each_kind_as_often_as_it_says():
    assert sum(kind.often for kind in KINDS) == 100
    assert Counter(kind.name for kind in mixed(300)) == {kind.name: 3 * kind.often for kind in KINDS}
    first = {kind.name for kind in mixed(50)}
    assert {kind.name for kind in KINDS if kind.often > 1} <= first


def test_wrong_endings_and_growth_fail_the_soak_and_are_shown(capsys):
    grown = verdict("executor: descriptors", 10, 10, 20, 20)
    fine = Soaked(MACHINE, 10.0, 100, looks=tuple(looks("a: b", 1, 1)))
    assert fine.ok
    wrong = Soaked(MACHINE, 10.0, 100, wrong=Counter({"fails: Exited 0 instead of Exited 3": 2}), verdicts=(grown,))
    assert not wrong.ok
    print_soaked(wrong)
    shown = capsys.readouterr().out
    assert "GREW" in shown
    assert "2 x fails: Exited 0 instead of Exited 3" in shown
    assert "nothing" not in shown
    print_soaked(fine)
    assert "nothing that is judged grew" in capsys.readouterr().out
    told = json.loads(wrong.as_json())
    assert told["ok"] is False
    assert told["verdicts"][0]["growth"] == 1.0
