"""Ctrl-C leaves nothing: no sandbox, mount, cgroup, process or user that was not there before."""

import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crucible_deploy import host, private_homes, record, users
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths
from tests.system.local import COMMAND, LocalStack, until

CHECKOUT = Path(__file__).parents[2]


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


def test_ctrl_c_while_the_stack_starts_leaves_no_process(stack):
    local = LocalStack(like=stack)
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


def home_of(demo: subprocess.Popen) -> Layout:
    """The private home that this demo made, and no other command's."""

    def mine() -> list[Layout]:
        return [one.layout for one in private_homes.found() if one.maker is not None and one.maker.pid == demo.pid]

    until(mine, 60, "the demo's home")
    [layout] = mine()
    return layout


def left_of(layout: Layout, made: set[str]) -> list[str]:
    """Whatever the host still shows of this home, of its runtime folder, its cgroups and the users that it made."""
    left = [str(host.traces(layout))] if host.traces(layout) else []
    left += [f"folder {path}" for path in (layout.home, layout.runtime) if os.path.lexists(path)]
    left += [f"cgroup {path}" for path in (*host.cgroup_folders(layout), *host.trace_cgroup_folders(layout))]
    names = [os.fsencode(layout.home), os.fsencode(layout.runtime)]
    mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    left += [f"mount {line!r}" for line in mounts if any(name in line for name in names)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if any(name in said for name in names):
            left.append(f"process {folder.name}: {said[:100]!r}")
    given_away = {name for one in private_homes.found() for name in users.made_by(one.layout.home)}
    there = {entry.pw_name for entry in pwd.getpwall()} & made
    left += [f"user {name}" for name in there - given_away - set(users.made_by(Paths().home))]
    return left


@pytest.mark.parametrize("when", ["while it installs", "while programs run"])
def test_ctrl_c_during_the_demo_leaves_the_machine_as_it_was(when):
    """Looked for by the demo's own names, so that nobody else's stack that comes or goes meanwhile is its fault."""
    with start_demo() as demo:
        layout = home_of(demo)
        if when == "while it installs":
            until(lambda: list(layout.envs.glob("*")), 60, "an environment")
        else:
            lines = []
            while "reference solutions" not in "".join(lines):
                line = demo.stdout.readline()
                assert line, "".join(lines)
                lines.append(line)
            until(lambda: host.traces(layout).processes, 60, "a sandbox of the demo")
            assert len(left_of(layout, set())) > 10  # it is seen where there is something to be seen
        made = set(users.made_by(layout.home))
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(timeout=60) == 130, rest
    deadline = time.monotonic() + 10
    while (left := left_of(layout, made)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
