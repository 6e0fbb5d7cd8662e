"""The suite's namespaces: nothing in them outlives the command, and none of them is the machine's. As root."""

import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from crucible_executor import cgroups
from crucible_executor.verify import enclosure

pytestmark = pytest.mark.root

HEAD = """
import os, sys, time
from crucible_executor.verify import enclosure
def left_behind():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv("/bin/sleep", [sys.argv[1], "300"])
        os._exit(0)
    os.wait()
"""
TAIL = "\nsys.exit(enclosure.run(action, sys.argv[1]))"


@pytest.fixture
def name():
    return f"cvtest{uuid.uuid4().hex[:12]}"


def argv(name, action):
    return [sys.executable, "-c", f"{HEAD}{action}{TAIL}", name]


def run(name, action):
    return subprocess.run(argv(name, action), capture_output=True, text=True, timeout=60, check=False)


def named(name):
    """Processes whose own name is this."""
    found = []
    for one in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [one] if one.read_text().startswith(f"{name}\0") else []
        except OSError:
            continue
    return found


def until_gone(name):
    deadline = time.monotonic() + 20
    while named(name):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_its_exit_code_is_the_actions_and_what_it_left_is_ended(name):
    done = run(name, "def action():\n    left_behind()\n    return 7\n")
    assert (done.returncode, done.stderr) == (7, "")
    assert named(name) == []


def test_none_of_its_namespaces_is_the_machines_and_only_its_own_processes_are_to_be_seen(name):
    kinds = ("net", "mnt", "ipc", "uts", "pid")
    done = run(
        name,
        f"def action():\n    print(*(os.readlink('/proc/self/ns/' + kind) for kind in {kinds}))\n"
        "    print(*(one for one in os.listdir('/proc') if one.isdigit()))\n    return 0\n",
    )
    theirs, pids = done.stdout.splitlines()
    assert len(theirs.split()) == len(kinds)
    assert not set(theirs.split()) & {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds}
    assert len(pids.split()) == 2


def test_an_action_that_fails_says_so(name):
    done = run(name, "def action():\n    left_behind()\n    raise ValueError('spoilt')\n")
    assert done.returncode == 1
    assert "ValueError: spoilt" in done.stderr
    assert named(name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_it_and_it_cleans_up(name, number):
    action = """
def action():
    left_behind()
    print("at work", flush=True)
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        print("cleaned up", flush=True)
        return 130
"""
    with subprocess.Popen(argv(name, action), stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == "at work\n"
        command.send_signal(number)
        assert command.communicate(timeout=30)[0] == "cleaned up\n"
    assert command.returncode == 130
    assert named(name) == []


def test_what_is_in_it_ends_with_a_command_that_is_killed(name):
    action = "def action():\n    left_behind()\n    print('at work', flush=True)\n    time.sleep(300)\n"
    with subprocess.Popen(argv(name, action), stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == "at work\n"
        command.kill()
    until_gone(name)


def test_its_cgroups_are_removed_with_all_in_them_and_no_others(name):
    tree, other = cgroups.detect(f"{name}-docker"), cgroups.detect(f"other-{name}")
    for one in (tree, other):
        one.prepare()
        one.create("inner", cgroups.Bounds(64 << 20, 8))
    try:
        enclosure.remove_cgroups(name)
        assert tree.existing() == []
        assert [one.name for one in other.existing()] == ["inner"]
    finally:
        enclosure.remove_cgroups(f"other-{name}")
    assert list(Path("/sys/fs/cgroup").glob(f"*/*{name}*")) == []
