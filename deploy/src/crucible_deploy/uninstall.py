"""Undoes what set-up and `crucible up` made on this machine. Standard library only: it removes the environment too.

Debian packages stay. A folder is removed only when it carries Crucible's marker, users only when Crucible made them.
"""

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy import mounts, private_homes, record, users
from crucible_deploy.layout import Layout, LayoutError
from crucible_deploy.paths import is_marked

_STOP_SECONDS = 60.0
_KILL_SECONDS = 10.0


class UninstallError(Exception):
    """It cannot be done safely; the text says what to do."""


@dataclass(frozen=True)
class Uninstall:
    """Removes one installation.

    Attributes:
        layout: its folders.
        checkout: the checkout whose `.venv` goes too; None for none.
        cgroup_root: where the cgroup file systems are.
        private_parent: where private stacks have their homes.
    """

    layout: Layout
    checkout: Path | None = None
    cgroup_root: Path = Path("/sys/fs/cgroup")
    private_parent: Path = private_homes.PARENT

    def run(self) -> Iterator[str]:
        """Does it, and says after each step what is gone.

        Raises:
            UninstallError: a folder is not Crucible's (nothing has changed then), or something does not end.
            OSError: something could not be removed.
        """
        folders = self.folders()
        with self._set_up_kept_out():
            yield from self._stop_stack()
            yield from self._remove_cgroups()
            for home in private_homes.remove_stale(self.layout, self.private_parent):
                yield f"private stack {home}"
            for name in private_homes.leave_users(self.layout, None, self.private_parent):
                yield f"user {name}"
            for folder in folders:
                mounts.remove_tree(folder)
                yield f"folder {folder}"

    def folders(self) -> list[Path]:
        """The folders that are there to be removed.

        Raises:
            UninstallError: one of them was not made by Crucible.
        """
        candidates = [self.layout.home, self.layout.runtime, self.layout.paths.cache]
        if self.checkout is not None and is_marked(self.checkout / ".venv"):
            candidates.append(self.checkout / ".venv")  # one without the marker is somebody's own
        found = [folder for folder in candidates if os.path.lexists(folder) and not _is_empty(folder)]
        for folder in found:
            self._check(folder)
        return found

    def _check(self, folder: Path) -> None:
        if not is_marked(folder):
            raise UninstallError(f"{folder} was not made by Crucible (it holds no file .crucible); nothing was removed")
        kept = [Path("/root"), Path("/home"), Path("/usr"), *([] if self.checkout is None else [self.checkout])]
        if len(folder.parts) < 3 or any(path == folder or folder in path.parents for path in kept):
            raise UninstallError(f"{folder} holds more than Crucible; nothing was removed")

    @contextmanager
    def _set_up_kept_out(self) -> Iterator[None]:
        lock = self.layout.paths.cache / ".lock"
        if not lock.is_file():
            yield
            return
        with lock.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UninstallError("a set-up is running; wait for it or stop it first") from None
            yield

    def _stop_stack(self) -> Iterator[str]:
        """Stops the supervisor, which stops the rest; then whatever it left."""
        running = record.read(self.layout)
        if running is None:
            return
        if running.supervisor.alive:
            running.supervisor.signal(signal.SIGTERM)
            if not running.supervisor.wait_gone(_STOP_SECONDS):
                running.supervisor.signal(signal.SIGKILL)
                running.supervisor.wait_gone(_KILL_SECONDS)
            yield f"the running stack (supervisor {running.supervisor.pid})"
        for name, process in running.processes.items():
            if not process.alive:
                continue
            process.signal(signal.SIGTERM)
            if not process.wait_gone(_KILL_SECONDS):
                process.signal(signal.SIGKILL)
            if not process.wait_gone(_KILL_SECONDS):
                raise UninstallError(f"the process {process.pid} ({name}) does not end; end it and try again")
            yield f"process {process.pid} ({name})"

    def _remove_cgroups(self) -> Iterator[str]:
        parents = (self.cgroup_root, *sorted(self.cgroup_root.glob("*")))
        for folder in (parent / name for name in (self.layout.cgroup, self.layout.trace_cgroup) for parent in parents):
            if folder.is_dir() and not folder.is_symlink():
                _remove_cgroup(folder)
                yield f"cgroup {folder}"


def _is_empty(folder: Path) -> bool:
    """An empty folder holds nothing of ours; whoever made it may want it."""
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _remove_cgroup(folder: Path) -> None:
    """Ends the processes of a cgroup and removes it with all below it."""
    below = [Path(parent) for parent, _, _ in os.walk(folder, topdown=False)]
    deadline = time.monotonic() + _KILL_SECONDS
    for cgroup in below:
        while pids := _members(cgroup):
            if time.monotonic() > deadline:
                raise UninstallError(f"processes of {cgroup} do not end: {pids}")
            for pid in pids:
                _kill(pid)
            time.sleep(0.02)
        while True:
            try:
                cgroup.rmdir()
                break
            except OSError as error:
                # The kernel takes a moment to forget the processes that have just ended.
                if time.monotonic() > deadline:
                    raise UninstallError(f"cannot remove {cgroup}: {error.strerror}") from error
                time.sleep(0.02)


def _members(cgroup: Path) -> list[int]:
    try:
        return [int(line) for line in (cgroup / "cgroup.procs").read_text().split()]
    except FileNotFoundError:
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """Removes the installation that the environment names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="uninstall", description="Undo what set-up and `crucible up` made.")
    parser.add_argument("--checkout", type=Path, help="the checkout whose .venv goes too")
    parser.add_argument("--private", type=Path, default=private_homes.PARENT, help="where private stacks have homes")
    given = parser.parse_args(arguments)
    checkout: Path | None = given.checkout
    private: Path = given.private
    if os.geteuid() != 0:
        return _refuse("it must run as root: sudo make uninstall")
    removed = 0
    try:
        for what in Uninstall(Layout.of(os.environ), checkout, private_parent=private).run():
            sys.stdout.write(f"removed {what}\n")
            sys.stdout.flush()
            removed += 1
    except (UninstallError, LayoutError, users.UsersError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    sys.stdout.write("Debian packages stay.\n" if removed else "There was nothing to remove.\n")
    for one in private_homes.found(private):
        sys.stdout.write(f"still there: {one}\n")
    return 0


def _refuse(reason: str) -> int:
    sys.stderr.write(f"uninstall: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
