"""The attempts as data: enough of them, each with a judge that is proved, each with a promise."""

import ast
from collections import Counter

import pytest

from crucible_executor.engines.registry import ENGINES
from crucible_executor.model import Exited, Limit, LimitExceeded, SandboxFailed
from crucible_executor.verify import report
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.attempts.prelude import program
from crucible_executor.verify.attempts.record import EXPECTED
from crucible_executor.verify.attempts.trace import TRUTHS
from crucible_executor.verify.judges import ALWAYS, JUDGES
from crucible_executor.verify.model import (
    BEGAN,
    RAN,
    ControlFinding,
    ControlVerdict,
    Family,
    Finding,
    Verdict,
)
from crucible_executor.verify.promises import ALL, LESS, MARGINS, NOT_VERIFIED, PROMISES


def named(name):
    return next(one for one in ATTEMPTS if one.name == name)


def made(*findings, controls=()):
    return report.Report("gvisor", "1", "USER_KERNEL", findings, controls, 1.0)


def test_there_are_sixty_attempts_in_eleven_families_none_of_them_small():
    families = Counter(one.family for one in ATTEMPTS)
    assert len(ATTEMPTS) >= 60
    assert set(families) == set(Family)
    assert len(Family) == 11
    assert min(families.values()) >= 6
    assert len({one.name for one in ATTEMPTS}) == len(ATTEMPTS)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda one: one.name)
def test_each_attempt_is_a_program_with_known_judges(attempt):
    ast.parse(program(attempt.code))
    assert attempt.judges
    assert set(attempt.judges) <= set(JUDGES)
    assert "record" not in attempt.judges or attempt.name in EXPECTED
    assert ("trace" in attempt.judges) == attempt.needs_trace == (attempt.name in TRUTHS)
    assert attempt.breach


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda one: one.name)
def test_each_attempt_has_a_control_or_says_why_there_is_none(attempt):
    assert (attempt.control is None) == bool(attempt.no_control)


def test_every_judge_is_proved_by_a_control_or_named():
    proved = {name for one in ATTEMPTS if one.control is not None for name in one.judges}
    # The host's kernel cannot be changed on purpose and back; the image is judged by the bait where it is not real.
    assert set(JUDGES) - proved <= {"kernel"}
    assert set(ALWAYS) <= set(JUDGES)


def test_promises_cover_every_engine_and_name_only_attempts_that_exist():
    assert set(PROMISES) == set(MARGINS)
    assert set(PROMISES) | set(NOT_VERIFIED) == set(ENGINES)
    assert not set(PROMISES) & set(NOT_VERIFIED)
    assert all(promised <= ALL for promised in PROMISES.values())
    assert PROMISES["gvisor"] == ALL


def test_what_an_engine_does_not_promise_is_an_attempt_and_has_a_reason():
    assert all(name in ALL and reason for less in LESS.values() for name, reason in less.items())
    traced = {one.name for one in ATTEMPTS if one.needs_trace}
    assert set(LESS["docker-gvisor"]) == traced  # the same kernel in front of the program as `gvisor`
    assert traced < set(LESS["docker"])


def test_an_attempt_ran_only_when_it_began_and_ended_as_it_must():
    attempt, token = named("mount"), "t0ken"
    began = BEGAN + b"t0ken"
    assert attempt.ran(Exited(RAN), began, token)
    assert not attempt.ran(Exited(RAN), b"", token)
    assert not attempt.ran(Exited(RAN), BEGAN + b"another", token)
    assert not attempt.ran(Exited(1), began, token)
    assert not attempt.ran(SandboxFailed("x"), began, token)
    assert not attempt.ran(LimitExceeded(Limit.WALL_TIME, ""), began, token)
    assert named("memory").ran(LimitExceeded(Limit.MEMORY, ""), began, token)


@pytest.mark.parametrize("verdict", [Verdict.VULNERABLE, Verdict.NOT_RUN])
def test_a_verdict_short_of_its_promise_fails_the_report(verdict):
    assert not made(Finding(named("mount"), verdict, "seen", 0.1, promised=True)).good
    assert made(Finding(named("mount"), verdict, "seen", 0.1, promised=False)).good
    assert made(Finding(named("mount"), Verdict.CONTAINED, "nothing", 0.1, promised=True)).good


def test_a_blind_judge_fails_the_report_and_a_control_that_cannot_be_run_does_not():
    good = Finding(named("mount"), Verdict.CONTAINED, "nothing", 0.1, promised=True)
    blind = ControlFinding(named("mount"), ControlVerdict.BLIND, "saw nothing", 0.1)
    missing = ControlFinding(named("load-module"), ControlVerdict.CONTROL_NOT_RUN, "no way", 0.0)
    assert not made(good, controls=[blind]).good
    assert made(good, controls=[missing]).good
    assert "`load-module`: CONTROL_NOT_RUN, no way" in report.markdown(made(good, controls=[missing]), "the command")


def test_a_report_shows_each_verdict_as_it_is():
    findings = [Finding(named("mount"), verdict, "evi|dence", 0.1, promised=True) for verdict in Verdict]
    for text in (report.table(made(*findings)), report.markdown(made(*findings), "c"), report.as_json(made(*findings))):
        assert all(verdict.value in text for verdict in Verdict)
    assert "VULNERABLE: evi/dence |" in report.markdown(made(*findings), "c")
