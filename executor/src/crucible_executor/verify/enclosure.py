"""Where the suite runs: processes in namespaces of their own, PIDs included, that cannot outlive the command.

The command stays outside. It makes a PID namespace with one process, which takes the other namespaces, starts the suite
and reaps what loses its parent. When the suite has ended, or the command is gone for whatever reason, the kernel ends
all that is left in there: sandboxes, a Docker daemon and what that started. Cgroups alone outlive their processes; the
command removes those.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from crucible_executor.verify import namespaces
from crucible_executor.verify.namespaces import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC

STOPPED = 130
"""The exit code after a signal."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANING_SECONDS = 60
_CGROUP_SECONDS = 5.0
_FIRST_PID = 20_000
"""Far from what is numbered in a sandbox: a process id of this "host" must not be one of the program's own."""


def run(action: Callable[[], int], name: str) -> int:
    """Runs `action` in namespaces of its own and returns its exit code; afterwards no process of it is left.

    SIGINT, SIGTERM and SIGHUP reach it as `KeyboardInterrupt`; it has a minute to clean up, then it is ended.

    Args:
        action: what to do inside; it must not have been called from a process with threads.
        name: what the names of all cgroups that are made inside begin with; these are removed.

    Raises:
        OSError: the kernel refused a PID namespace.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    namespaces.unshare(namespaces.NEWPID)
    alive, held = os.pipe()  # `held` is closed when this process has gone
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    first = os.fork()
    if first == 0:
        os.close(held)
        _be_first(action, alive)
    try:
        return _until_ended(first)
    finally:
        os.close(held)
        os.close(alive)
        if (left := remove_cgroups(name)) is not None:
            print(f"crucible verify: {left} is left: something is still in it", file=sys.stderr)  # noqa: T201


def _until_ended(first: int) -> int:
    def pass_on(number: int, _frame: object) -> None:
        os.kill(first, number)
        signal.alarm(_CLEANING_SECONDS)

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(first, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    signal.alarm(0)
    if code >= 0:
        return code
    print("crucible verify: the suite was killed, or did not clean up in time after a signal", file=sys.stderr)  # noqa: T201
    return STOPPED


def _be_first(action: Callable[[], int], alive: int) -> NoReturn:
    """What the first process of the PID namespace does."""
    try:
        namespaces.end_with_parent()
        if select.select([alive], [], [], 0)[0]:
            os._exit(STOPPED)  # the command had gone before that was armed
        os.setsid()  # a terminal's Ctrl-C comes once, from the command
        _take_namespaces()
        suite = os.fork()
        if suite == 0:
            _be_suite(action)
        for number in _SIGNALS:
            signal.signal(number, lambda number, _frame: os.kill(suite, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        while True:
            ended, status = os.wait()
            if ended == suite:
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else STOPPED)
    except OSError as error:
        print(f"crucible verify: no namespaces for the suite: {error}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(3)


def _take_namespaces() -> None:
    namespaces.unshare(namespaces.NEWNS | namespaces.NEWUTS | namespaces.NEWIPC | namespaces.NEWNET)
    namespaces.mount("none", "/", None, MS_REC | MS_PRIVATE)
    namespaces.mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with contextlib.suppress(OSError):  # a kernel without it numbers from 2
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(_FIRST_PID))


def _be_suite(action: Callable[[], int]) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)
    code = STOPPED
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        code = action()
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def remove_cgroups(name: str) -> Path | None:
    """Removes every cgroup below one whose name begins with `name`, in every hierarchy, once nothing is in them.

    Returns:
        One that is left after five seconds, because something is still in it; None when all are gone.
    """
    deadline = time.monotonic() + _CGROUP_SECONDS
    while left := [folder for top in _tops(name) for folder in _below(top) if not _removed(folder)]:
        if time.monotonic() > deadline:
            return left[0]
        time.sleep(0.01)
    return None


def _tops(name: str) -> list[Path]:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        if tail.startswith(("cgroup ", "cgroup2 ")):
            found += [one for one in Path(fields.split(" ")[4]).glob(f"{name}*") if one.is_dir()]
    return found


def _below(top: Path) -> list[Path]:
    """The folder and all in it, innermost first."""
    return [*(Path(at) for at, _, _ in os.walk(top, topdown=False))]


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # its last process, or a folder in it, is still on its way out
        return False
    return True
