"""The suite over real engines, as the command that people run. As root."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_executor.verify.attempts import ATTEMPTS

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]

BROKEN = """
import asyncio, dataclasses, sys
from crucible_executor.verify import __main__, attempts
from crucible_executor.verify.model import Verdict
changed = {changed}
__main__.ATTEMPTS = tuple(
    dataclasses.replace(one, **changed[one.name]) for one in attempts.ATTEMPTS if one.name in changed
)
sys.exit(__main__.main(["--json", *sys.argv[1:]]))
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    init = tmp_path_factory.mktemp("init")
    built = subprocess.run([ROOT / "executor/init/build.sh", init], check=True, capture_output=True, text=True)
    return {
        "PATH": os.environ["PATH"],
        "CRUCIBLE_EXECUTOR_RUNSC": str(sorted((CACHE / "runsc").glob("*/runsc"))[-1]),
        "CRUCIBLE_EXECUTOR_INIT_DIR": built.stdout.strip(),
        "CRUCIBLE_EXECUTOR_IMAGES_DIR": str(CACHE / "images"),
    }


def command(*arguments):
    return [sys.executable, "-m", "crucible_executor.verify", *arguments]


def run(environment, argv):
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode in (0, 1), done.stderr
    made = json.loads(done.stdout)
    assert made["good"] == (done.returncode == 0)
    return {one["name"]: one for one in made["attempts"]}, done.returncode


def changed(environment, engine, **attempts):
    return run(environment, [sys.executable, "-c", BROKEN.format(changed=attempts), "--engine", engine])


def leftovers():
    mounts = Path("/proc/self/mountinfo").read_text()
    cgroups = [str(one) for one in Path("/sys/fs/cgroup").glob("**/cv??????????????")]
    return [line for line in mounts.splitlines() if "crucible-verify" in line] + cgroups


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


def test_nothing_is_left_of_it_on_the_machine(gvisor):
    assert leftovers() == []


def test_the_engine_without_isolation_is_shown_as_vulnerable(environment):
    found, code = run(environment, command("--json", "--engine", "subprocess"))
    for name in ("docker-socket", "loopback-tcp", "abstract-socket", "metadata-service", "canary-by-path", "setuid",
                 "io-uring", "kill", "host-kernel", "host-name", "ptrace"):  # fmt: skip
        assert found[name]["verdict"] == "VULNERABLE", name
    for name in ("wall-time", "output-flood", "daemon", "terminal-escapes"):
        assert found[name]["verdict"] == "CONTAINED", name
    for name in ("fork-bomb", "memory", "kill-everybody", "load-module"):
        assert found[name]["verdict"] == "NOT_RUN", name
    assert code == 0  # it promises next to nothing


def test_an_attempt_that_did_not_run_is_never_contained(environment):
    broken = {"mount": "raise RuntimeError", "io-uring": "os._exit(0)", "bpf": "this is no Python("}
    found, code = changed(environment, "gvisor", **{name: {"code": text} for name, text in broken.items()})
    assert {name: one["verdict"] for name, one in found.items()} == dict.fromkeys(broken, "NOT_RUN")
    assert code == 1


def test_a_planted_weakness_fails_the_command(environment):
    # The same canary and the same judge, but an engine that cannot keep what is promised in its name.
    promise = "from crucible_executor.verify import promises; promises.PROMISES['subprocess'] = promises.ALL"
    code = f"{promise}\n{BROKEN.format(changed={'canary-by-path': {}})}"
    found, exit_code = run(environment, [sys.executable, "-c", code, "--engine", "subprocess"])
    assert found["canary-by-path"]["verdict"] == "VULNERABLE"
    assert exit_code == 1


def test_ctrl_c_ends_it_and_leaves_nothing(environment):
    argv = command("--json", "--only", "mount", "--only", "bpf", "--only", "wall-time", "--only", "stopped")
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as suite:
        suite.stderr.readline()  # the first finding: it is at work
        suite.send_signal(signal.SIGINT)
        _, said = suite.communicate(timeout=60)
    assert suite.returncode == 130, said
    assert leftovers() == []


def test_an_unknown_attempt_is_refused_by_name(environment):
    done = subprocess.run(
        command("--only", "nothing"), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_an_engine_that_the_suite_cannot_judge_is_refused_with_the_reason(environment):
    argv = command("--engine", "docker")
    done = subprocess.run(argv, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "outside the namespaces" in done.stderr
