"""The suite over the default engine, as the command that people run. As root."""

import signal
import subprocess
import sys

import pytest

from crucible_executor.verify import enclosure
from crucible_executor.verify.attempts import ATTEMPTS
from tests.attacks.suite_runs import (
    BROKEN,
    ROOT,
    changed,
    command,
    leftovers,
    name,
    only,
    run,
    until_no_process_is_left,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def gvisor(environment):
    return run(environment, command("--json", "--controls"))


def test_gvisor_contains_every_attempt(gvisor):
    found, code = gvisor
    assert {name: one["evidence"] for name, one in found.items() if one["verdict"] != "CONTAINED"} == {}
    assert len(found) == len(ATTEMPTS)
    assert code == 0


def test_every_control_says_vulnerable_or_is_named_as_not_run(gvisor):
    verdicts = {name: one["control"]["verdict"] for name, one in gvisor[0].items()}
    without = {one.name for one in ATTEMPTS if one.control is None}
    assert {name for name, verdict in verdicts.items() if verdict == "CONTROL_NOT_RUN"} == without
    assert {name for name, verdict in verdicts.items() if verdict != "VULNERABLE"} == without


def test_an_attempt_that_did_not_run_is_never_contained(environment):
    broken = {"mount": "raise RuntimeError", "io-uring": "os._exit(0)", "bpf": "this is no Python("}
    found, code = changed(environment, "gvisor", **{name: {"code": text} for name, text in broken.items()})
    assert {name: one["verdict"] for name, one in found.items()} == dict.fromkeys(broken, "NOT_RUN")
    assert code == 1


def test_a_trace_that_nobody_reads_is_not_run_and_fails_the_command(environment):
    untraced = environment | {"CRUCIBLE_EXECUTOR_TRACE": "false"}
    found, code = run(untraced, command("--json", *only("forged-trace", "forged-marks")))
    verdicts = {name: one["verdict"] for name, one in found.items()}
    assert verdicts == {"forged-trace": "NOT_RUN", "forged-marks": "CONTAINED"}
    assert code == 1


def test_a_record_that_lacks_what_the_program_did_is_vulnerable(environment):
    # As if the trace of a real sandbox had lost ten calls and not said so: the record says one, the truth eleven.
    truth = "from crucible_executor.verify.attempts import trace\ntrace.TRUTHS['trace-socket'] = "
    truth += "trace.Truth(trace.Action.FILES_WRITTEN, 11)\n"
    code = truth + BROKEN.format(changed={"trace-socket": {}})
    found, exit_code = run(environment, [sys.executable, "-c", code, "--engine", "gvisor"])
    assert found["trace-socket"]["verdict"] == "VULNERABLE"
    assert "the program did 11" in found["trace-socket"]["evidence"]
    assert exit_code == 1


def test_controls_of_what_forks_and_ends_all_the_time_are_never_blind(environment):
    names = ("fork-race", "fork-tree", "stopped-children", "daemon")
    twice = ["--json", "--controls", *only(*names)]
    for _ in range(2):
        found, _ = run(environment, command(*twice))
        controls = {name: found[name]["control"] for name in names}
        assert [one for one in controls.items() if one[1]["verdict"] != "VULNERABLE"] == []


def test_ctrl_c_ends_it_and_leaves_nothing(environment):
    argv = command("--json", *only("mount", "bpf", "wall-time", "stopped"))
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as suite:
        suite.stderr.readline()  # at work
        suite.send_signal(signal.SIGINT)
        _, said = suite.communicate(timeout=60)
    assert suite.returncode == 130, said
    assert leftovers(suite.pid) == []


def test_a_command_that_is_killed_takes_everything_in_its_namespaces_with_it(environment):
    argv = command("--json", *only("fork-race", "wall-time", "stopped"))
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as suite:
        suite.stderr.readline()
        suite.kill()
    until_no_process_is_left(suite.pid)
    enclosure.remove_cgroups(name(suite.pid))  # empty folders, and nobody is left who could
    assert leftovers(suite.pid) == []


def test_an_unknown_attempt_is_refused_by_name(environment):
    done = subprocess.run(
        command("--only", "nothing"), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_the_engine_without_isolation_is_refused_and_nothing_is_run(environment):
    argv = command("--engine", "subprocess", *only("canary-by-path"))
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no isolation" in done.stderr
