"""Private stacks end with the process that made them; what a killed one leaves is found, by name, and removed."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from crucible_deploy import daemon, private_homes, record, users
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout, make_home
from crucible_deploy.paths import Paths
from tests.deploy.test_supervisor import process

pytestmark = pytest.mark.root

MAKER = """
import sys
from pathlib import Path
from crucible_deploy import private_homes
print(private_homes.make(Path("/nowhere"), parent=Path(sys.argv[1])).home, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(home):
    """Where other processes make private homes; nothing else is there."""
    folder = home.parent / "private"
    folder.mkdir(mode=0o755)
    return folder


class Maker:
    """A process that makes a private home and lives until it is killed."""

    def __init__(self, parent: Path) -> None:
        command = [sys.executable, "-c", MAKER, str(parent)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.layout = Layout(Paths(home=Path(self.process.stdout.readline().strip()), cache=parent / "cache"))
        make_home(self.layout)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def maker(parent):
    made = Maker(parent)
    yield made
    made.kill()
    private_homes.remove(made.layout, Layout(Paths()), parent)


@contextmanager
def held(layout):
    """The home's lock, as `crucible up` holds it."""
    lock = record.lock(layout)
    try:
        yield
    finally:
        os.close(lock)


async def test_stack_ends_with_the_process_that_made_its_home_and_leaves_nothing(maker):
    ready = asyncio.Event()
    with held(maker.layout):
        serving = asyncio.ensure_future(
            daemon.serve(maker.layout, [process("a"), process("b")], say=lambda *_: None, ready=ready.set)
        )
        await asyncio.wait_for(ready.wait(), 20)
        running = record.read(maker.layout).processes
        assert all(one.alive for one in running.values())
        maker.kill()
        await asyncio.wait_for(serving, 20)
    assert not any(one.alive for one in running.values())
    assert not maker.layout.home.exists()
    assert not maker.layout.runtime.exists()


async def test_stack_of_a_home_whose_maker_is_gone_already_does_not_come_up(maker):
    maker.kill()
    said = []
    await asyncio.wait_for(
        daemon.serve(maker.layout, [process("a")], say=lambda *_: None, ready=lambda: said.append("ready")), 20
    )
    assert said == []
    assert not maker.layout.home.exists()


async def test_stack_of_a_home_that_nobody_made_for_himself_stays(layout):
    make_home(layout)
    ready = asyncio.Event()
    serving = asyncio.ensure_future(daemon.serve(layout, [process("a")], say=lambda *_: None, ready=ready.set))
    await asyncio.wait_for(ready.wait(), 20)
    serving.cancel()
    await asyncio.wait_for(serving, 20)
    assert layout.home.exists()


def test_what_a_killed_maker_left_is_removed_when_nothing_of_it_runs(maker, parent):
    common = Layout(Paths(home=parent / "none"))
    assert private_homes.remove_stale(common, parent) == []  # its maker lives
    maker.kill()
    with held(maker.layout):
        assert private_homes.remove_stale(common, parent) == []  # its supervisor is still at it
    left = subprocess.Popen(["/bin/sleep", "600"])
    try:
        one = ProcessIdentity.of(left.pid)
        gone = ProcessIdentity(one.pid, one.start_time - 1)
        record.write(maker.layout, record.Record(gone, "127.0.0.1:1", True, {"storage": one}))
        removed = private_homes.remove_stale(common, parent)
        assert left.wait(5) == -signal.SIGTERM
    finally:
        left.kill()
        left.wait()
    assert removed == [maker.layout.home]
    assert private_homes.found(parent) == []


def test_what_is_found_says_whose_it_is(maker, parent):
    [found] = private_homes.found(parent)
    assert found.in_use
    assert f"process {maker.process.pid}" in str(found)
    maker.kill()
    [found] = private_homes.found(parent)
    assert not found.in_use
    supervisor = subprocess.Popen(["/bin/sleep", "600"])
    try:
        record.write(maker.layout, record.Record(ProcessIdentity.of(supervisor.pid), "127.0.0.1:1", True, {}))
        [found] = private_homes.found(parent)
        assert found.in_use
        assert f"supervisor {supervisor.pid}" in str(found)
        assert f"CRUCIBLE_HOME={maker.layout.home} make uninstall" in str(found)
    finally:
        supervisor.kill()
        supervisor.wait()
    assert not private_homes.found(parent)[0].in_use


def test_a_folder_that_is_not_roots_or_not_ours_is_not_looked_at(parent):
    (parent / "crucible-private-of-somebody").mkdir()
    (parent / "crucible-private-link").symlink_to(parent)
    assert private_homes.found(parent) == []
    assert private_homes.remove_stale(Layout(Paths()), parent) == []
    assert (parent / "crucible-private-of-somebody").is_dir()


def test_users_that_another_home_needs_are_given_to_it(maker, parent):
    other = Layout(private_homes.make(parent / "cache", parent=parent))
    users.adopt(maker.layout.home, ["crucible-no-such-user"])
    assert private_homes.leave_users(maker.layout, None, parent) == []
    assert users.made_by(other.home) == ["crucible-no-such-user"]
    assert users.made_by(maker.layout.home) == []
