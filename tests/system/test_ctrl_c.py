"""Ctrl-C leaves nothing: no sandbox, mount, cgroup, process or user that was not there before."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crucible_deploy import host, record
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from crucible_deploy.private_stack import remove_stale
from tests.system.local import COMMAND, LocalStack, until

CHECKOUT = Path(__file__).parents[2]


def users() -> set[str]:
    return {entry.pw_name for entry in pwd.getpwall()}


def cgroups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob("**/crucible*")}


def private() -> set[str]:
    return {str(path) for root in ("/var/tmp", "/run") for path in Path(root).glob("crucible-*")}


def mounts() -> int:
    return sum("crucible" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())


def runscs() -> set[int]:
    """Processes of runsc for private stacks, whoever started them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"/run/crucible-" in path.read_bytes():
                found.add(int(path.parts[2]))
        except OSError:
            continue
    return found


def test_ctrl_c_during_a_run_ends_its_sandbox(stack, tmp_path):
    file = tmp_path / "main.py"
    file.write_text("print('up', flush=True)\nimport time; time.sleep(60)\n")
    with subprocess.Popen(
        [*COMMAND, "run", str(file)], env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "up\n"
        assert host.traces(stack.layout).processes
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == 130, running.stderr.read()
    left = host.wait_for_none(stack.layout, 10, spare_waiting=True)
    assert not left, str(left)


def started(local):
    """The processes that the supervisor says it started; none before it says so."""
    found = record.read(local.layout)
    return found.processes if found is not None else {}


def test_ctrl_c_while_the_stack_starts_leaves_no_process(tmp_path):
    local = LocalStack()
    try:
        with subprocess.Popen(
            [*COMMAND, "up"], env=local.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        ) as starting:
            until(lambda: "storage" in started(local), 90, "storage's start")
            processes = list(started(local).values())
            starting.send_signal(signal.SIGINT)
            starting.wait(timeout=60)
        assert all(process.wait_gone(5) for process in processes)
        assert not host.traces(local.layout)
    finally:
        local.remove()


def start_demo() -> subprocess.Popen:
    command = [sys.executable, "-m", "crucible_deploy.demo"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=CHECKOUT, **pipes)


@pytest.mark.parametrize("when", ["while it installs", "while programs run"])
def test_ctrl_c_during_the_demo_leaves_the_machine_as_it_was(when):
    remove_stale(Layout(Paths()))
    before = users(), cgroups(), private(), mounts(), runscs()
    with start_demo() as demo:
        if when == "while it installs":
            until(lambda: list(Path("/var/tmp").glob("crucible-private-*/envs/*")), 60, "an environment")
        else:
            lines = []
            while "reference solutions" not in "".join(lines):
                line = demo.stdout.readline()
                assert line, "".join(lines)
                lines.append(line)
            until(lambda: runscs() - before[4], 60, "a sandbox of the demo")
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(timeout=60) == 130, rest
    until(lambda: (users(), cgroups(), private(), mounts(), runscs()) == before, 10, "everything gone")
