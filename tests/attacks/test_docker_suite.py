"""The suite over the Docker engines, in a daemon of its own. As root.

A chosen set, some of each family; `crucible verify --engine docker` and `docker-gvisor` run all of it.
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_executor.verify import enclosure
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.model import Family
from tests.attacks.suite_runs import (
    BROKEN,
    ROOT,
    command,
    leftovers,
    name,
    only,
    run,
    until_no_process_is_left,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CHOSEN = (
    "docker-socket", "cgroup-release-agent", "bpf", "devices", "system-v-ipc", "environments", "network-sysctl",
    "setuid", "capabilities", "metadata-service", "abstract-socket", "raw-socket", "read-only-root",
    "left-open-descriptors",
    "fork-bomb", "memory", "output-flood", "fork-race", "kill-everybody", "host-name", "other-tenants", "shared-memory",
    "forged-report", "kill-the-init", "forged-marks", "exit-of-another",
)  # fmt: skip
SHARED_KERNEL = ("host-kernel", "boot-id", "host-paths")
TRACED = tuple(one.name for one in ATTEMPTS if one.needs_trace)


@pytest.fixture(scope="module", params=["docker", "docker-gvisor"])
def judged(request, environment):
    chosen = only(*CHOSEN, *SHARED_KERNEL, *TRACED)
    return request.param, *run(environment, command("--json", "--engine", request.param, *chosen))


def test_the_chosen_attempts_are_of_every_family():
    assert {one.family for one in ATTEMPTS if one.name in CHOSEN} == set(Family)


def test_engine_contains_what_it_promises(judged):
    _, found, code = judged
    chosen = {name: found[name] for name in CHOSEN}
    assert {name: one["evidence"] for name, one in chosen.items() if one["verdict"] != "CONTAINED"} == {}
    assert all(one["promised"] for one in chosen.values())
    assert code == 0


def test_what_it_does_not_promise_is_tried_and_shown_as_it_is(judged):
    engine, found, _ = judged
    assert {found[name]["verdict"] for name in TRACED} == {"NOT_RUN"}
    assert not any(found[name]["promised"] for name in TRACED)
    expected = "VULNERABLE" if engine == "docker" else "CONTAINED"
    for one in (found[shared] for shared in SHARED_KERNEL):
        assert one["verdict"] == expected, one
        assert one["promised"] == (engine != "docker")
        assert bool(one["why_not_promised"]) == (engine == "docker")


def test_a_weakness_that_an_engine_has_fails_the_command_where_it_is_promised_away(environment):
    promise = "from crucible_executor.verify import promises; del promises.LESS['docker']['host-kernel']"
    code = f"{promise}\n{BROKEN.format(changed={'host-kernel': {}})}"
    found, exit_code = run(environment, [sys.executable, "-c", code, "--engine", "docker"])
    assert found["host-kernel"]["verdict"] == "VULNERABLE"
    assert exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_suite_that_is_stopped_or_killed_leaves_no_daemon_behind(environment, number):
    argv = command("--engine", "docker", *only("fork-race", "wall-time", "stopped", "memory"))
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as suite:
        suite.stderr.readline()  # the first finding: it is at work
        suite.send_signal(number)
        _, said = suite.communicate(timeout=90)
    until_no_process_is_left(suite.pid)
    if number == signal.SIGINT:
        assert suite.returncode == 130, said
    else:
        enclosure.remove_cgroups(name(suite.pid))  # empty folders, and nobody is left who could
    assert leftovers(suite.pid) == []


def test_without_dockerd_the_engine_is_unavailable_and_says_so(environment):
    without = environment | {"PATH": "/nowhere"}
    argv = command("--engine", "docker", *only("mount"))
    done = subprocess.run(argv, env=without, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "dockerd is not installed" in done.stderr


@pytest.mark.alone
def test_the_daemon_writes_nothing_where_a_docker_of_the_machine_does(environment):
    def written():
        places = [Path(place) for place in ("/etc/docker", "/opt/containerd", "/run/containerd", "/run/docker")]
        found = [one for place in places for one in (place, *place.rglob("*")) if one.exists()]
        return {str(one): one.lstat().st_mtime_ns for one in found}

    before = written()
    found, _ = run(environment, command("--json", "--engine", "docker", *only("forged-marks")))
    assert found["forged-marks"]["verdict"] == "CONTAINED"
    assert written() == before
