"""What the watch sees of processes that a single look could miss."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from crucible_executor.verify.watch import Watch

PLACE = SimpleNamespace(mounts=lambda: "")


@pytest.fixture
def victim():
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"], stdout=-1) as made:
        made.stdout.readline()
        yield made
        made.kill()


def group(*pids):
    return SimpleNamespace(pids=lambda: list(pids), folders=(), cpu_time=lambda: SimpleNamespace(total_seconds=float))


def test_process_that_no_look_through_proc_finds_is_counted_from_the_cgroups_list():
    never_there = 4_194_304  # above every process id
    watch = Watch("no-such-name", "no-such-token", PLACE, group(never_there, os.getpid()), [])
    assert watch.alive() == 2
    assert watch.alive(apart=[os.getpid()]) == 1


def test_untouched_process_is_not_harmed(victim):
    watch = Watch("no-such-name", "no-such-token", PLACE, None, [victim.pid])
    watch._look_at_victims()
    assert watch.harm == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGUSR1])
def test_signal_is_seen_at_once_however_busy_the_machine_is(victim, number):
    watch = Watch("no-such-name", "no-such-token", PLACE, None, [victim.pid])
    victim.send_signal(number)
    watch._look_at_victims()  # no waiting: it is pending, or has already done what it does
    assert watch.harm


def test_process_that_has_gone_was_killed(victim):
    watch = Watch("no-such-name", "no-such-token", PLACE, None, [victim.pid])
    victim.kill()
    victim.wait()
    watch._look_at_victims()
    assert watch.harm == {"a process of the host was killed"}
