"""Homes of private stacks: each belongs to the process that made it, and what that process leaves is found and removed.

Standard library only: `make uninstall` runs without the environment.
"""

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from crucible_deploy import host, record, users
from crucible_deploy.atomic import read_file, write_file
from crucible_deploy.identity import ProcessIdentity
from crucible_deploy.layout import Layout
from crucible_deploy.paths import Paths, is_marked, mark

PARENT = Path("/var/tmp")  # noqa: S108  # the folders' names are random and made by mkdtemp
PREFIX = "crucible-private-"

_MAKER = "maker.json"
_STOP_SECONDS = 20.0


@dataclass(frozen=True)
class PrivateHome:
    """A private stack's home as it is found.

    Attributes:
        layout: its folders.
        maker: the process that made it, which may be gone; None: it does not say.
        running: its supervisor, when that runs.
    """

    layout: Layout
    maker: ProcessIdentity | None
    running: ProcessIdentity | None

    @property
    def in_use(self) -> bool:
        """Whether somebody may still want it: its maker lives, or its supervisor."""
        return self.running is not None or (self.maker is not None and self.maker.alive)

    def __str__(self) -> str:
        home = self.layout.home
        stack = "" if self.running is None else f", whose stack runs (supervisor {self.running.pid})"
        if self.maker is not None and self.maker.alive:
            return f"the private home {home}{stack}; it goes with process {self.maker.pid}, which made it"
        return f"the home {home}{stack}; CRUCIBLE_HOME={home} make uninstall removes it"


def make(cache: Path, prefix: str = PREFIX, parent: Path = PARENT) -> Paths:
    """Makes an empty home that belongs to this process: the stack in it ends when this process does."""
    home = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    own = ProcessIdentity.of(os.getpid())
    if own is None:
        raise RuntimeError("/proc does not know this process")
    write_file(home / _MAKER, json.dumps(asdict(own)).encode(), mode=0o644)
    mark(home)
    return Paths(home=home, cache=cache)


def maker_of(home: Path) -> ProcessIdentity | None:
    """The process that a private home belongs to, which may be gone; None for any other home."""
    content = read_file(home / _MAKER)
    try:
        return None if content is None else ProcessIdentity(**json.loads(content))
    except (ValueError, TypeError):
        return None


@contextmanager
def cancelled_at_end_of(maker: ProcessIdentity | None) -> Iterator[None]:
    """Inside the block the end of that process, however it ends, cancels the current task; None: nothing does."""
    if maker is None:
        yield
        return
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a coroutine is always run by a task")
    descriptor = maker.open()
    if descriptor is None:
        task.cancel()
        yield
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(descriptor)
        task.cancel()

    loop.add_reader(descriptor, ended)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def found(parent: Path = PARENT) -> list[PrivateHome]:
    """Every private home of root's on this machine."""
    homes = []
    for home in sorted(parent.glob("crucible-*")):
        if is_marked(home) and home.stat().st_uid == 0:
            layout = Layout(Paths(home=home))
            recorded = record.read(layout) if layout.run.is_dir() else None
            running = recorded.supervisor if recorded is not None and recorded.supervisor.alive else None
            homes.append(PrivateHome(layout, maker_of(home), running))
    return homes


def remove_stale(common: Layout, parent: Path = PARENT) -> list[Path]:
    """Removes what a private stack left whose command was killed; returns the homes that are gone.

    Raises:
        OSError: something could not be removed.
        UsersError: likewise.
    """
    removed = []
    for one in found(parent):
        owned = one.maker is not None or one.layout.home.name.startswith(PREFIX)
        if not one.in_use and owned and _remove_unlocked(one.layout, common, parent):
            removed.append(one.layout.home)
    return removed


def _remove_unlocked(layout: Layout, common: Layout, parent: Path) -> bool:
    if not layout.run.is_dir():  # killed before it had one
        remove(layout, common, parent)
        return True
    lock = record.lock(layout)
    if lock is None:
        return False
    with open(lock, "rb", closefd=True):  # noqa: PTH123  # a descriptor, to be closed at the end
        left = record.read(layout)
        for process in left.processes.values() if left is not None else ():
            process.signal(signal.SIGTERM)
            process.wait_gone(_STOP_SECONDS)
        remove(layout, common, parent)
    return True


def remove(layout: Layout, common: Layout, parent: Path = PARENT) -> None:
    """Removes a private home whose stack is down, and the users that it made.

    Users stay when another stack was set up meanwhile and uses them too; they are its own then.
    """
    leave_users(layout, common, parent)
    for cgroup in (*host.trace_cgroup_folders(layout), *host.cgroup_folders(layout)):
        with suppress(OSError):  # not empty: something of a sandbox is left, which is told elsewhere
            cgroup.rmdir()
    for folder in (layout.runtime, layout.home):
        shutil.rmtree(folder, ignore_errors=True)


def leave_users(layout: Layout, common: Layout | None, parent: Path = PARENT) -> list[str]:
    """Removes the users that a home made, or gives them to another home that needs them; returns those removed.

    Args:
        layout: the home, whose stack is down.
        common: the machine's own; None when that is the one that goes.
        parent: where private homes are.
    """
    made = users.made_by(layout.home)
    heir = _heir(layout, common, parent) if made else None
    if heir is None:
        return users.remove_made(layout.home)
    users.adopt(heir, made)
    users.record_of(layout.home).unlink(missing_ok=True)
    return []


def _heir(layout: Layout, common: Layout | None, parent: Path) -> Path | None:
    """The home of another stack on this machine, the user's own first."""
    homes = [common.home] if common is not None else []
    homes += [one.layout.home for one in found(parent)]
    return next((one for one in homes if one != layout.home and is_marked(one) and one.stat().st_uid == 0), None)
