"""Remembers that a cgroup ran into its memory limit, also when somebody else removes it with its last process.

A removed cgroup has no counters any more, and a container's goes with it: what is to be known of it then must have been
asked for before. Each watch belongs to the event loop that it was made on.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import select
from collections.abc import Sequence
from pathlib import Path

from crucible_executor.cgroups.files import of_lines

_LAST_WORD_S = 5.0
_NEVER = 1 << 62
_MAX_EVENTS_BYTES = 4096


class OomWatch(abc.ABC):
    """A watch over one cgroup, from its making to `close`."""

    @abc.abstractmethod
    async def struck(self) -> bool:
        """Whether the kernel looked for something to kill here because the memory limit was reached.

        Of a cgroup that was just removed the kernel's last word is waited for, at most some seconds.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Stops watching. Idempotent."""


class EventfdWatch(OomWatch):
    """cgroup v1: an eventfd that the kernel counts up before each kill, and once more when the cgroup is removed.

    So of a removed cgroup one of its counts is no kill, and whether that one has come is told by a second eventfd: it
    asks for an amount of memory that nothing reaches, and all that it ever hears is the removal. The kernel tells of
    that in the opposite order of the requests, and of the second only after an RCU grace period (measured: some 30 ms
    after the removal).

    Raises:
        OSError: the kernel refused.
    """

    def __init__(self, memory: Path) -> None:
        """`memory`: the cgroup's folder in the hierarchy of the memory controller."""
        self._folder = memory
        self._loop = asyncio.get_running_loop()
        self._counted = 0
        self._removed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._ooms = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            _register(memory, self._removed, "memory.usage_in_bytes", _NEVER)
            _register(memory, self._ooms, "memory.oom_control")
        except OSError:
            self.close()
            raise

    async def struck(self) -> bool:
        """See `OomWatch.struck`. Certain either way, but where the kernel's last word does not come: then False."""
        self._count()
        if self._folder.exists():  # and so it did when that was counted
            return self._counted > 0
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await self._readable(self._removed)
                await self._readable(self._ooms)
        except TimeoutError:
            pass
        self._count()
        return self._counted > 1

    def close(self) -> None:
        """See `OomWatch.close`."""
        for fd in (self._removed, self._ooms):
            if fd >= 0:
                self._loop.remove_reader(fd)
                os.close(fd)
        self._removed = self._ooms = -1

    def _count(self) -> None:
        if self._ooms >= 0:
            with contextlib.suppress(BlockingIOError):
                self._counted += os.eventfd_read(self._ooms)

    async def _readable(self, fd: int) -> None:
        if fd < 0 or (fd == self._ooms and self._counted):
            return
        ready = asyncio.Event()
        self._loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(fd)


class EventsWatch(OomWatch):
    """cgroup v2: `memory.events`, read whenever the kernel says that it changed.

    The kernel says so before it kills, but no more often than every 10 ms. What is killed and removed together within
    that time is missed.

    Raises:
        OSError: the file cannot be watched.
    """

    def __init__(self, events: Path, keys: Sequence[str] = ("oom", "oom_kill")) -> None:
        """`keys`: the lines of the file of which one that is not 0 is the event."""
        self._keys = keys
        self._struck = False
        self._loop = asyncio.get_running_loop()
        self._fd = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
        # The event loop waits for what can be read, and this file always can: so for another, which waits for changes.
        self._changes = select.epoll()
        self._changes.register(self._fd, select.EPOLLPRI)
        self._look()
        if self._fd >= 0:
            self._loop.add_reader(self._changes.fileno(), self._look)

    async def struck(self) -> bool:
        """See `OomWatch.struck`."""
        if self._fd >= 0:
            self._look()
        return self._struck

    def close(self) -> None:
        """See `OomWatch.close`."""
        if self._fd >= 0:
            self._loop.remove_reader(self._changes.fileno())
            self._changes.close()
            os.close(self._fd)
            self._fd = -1

    def _look(self) -> None:
        try:
            text = os.pread(self._fd, _MAX_EVENTS_BYTES, 0).decode()
        except OSError:  # ENODEV: removed
            self.close()
            return
        self._struck = self._struck or any(of_lines(text, key) for key in self._keys)


def _register(folder: Path, eventfd: int, file: str, argument: int | str = "") -> None:
    with contextlib.ExitStack() as opened:
        fds = []
        for name, flags in ((file, os.O_RDONLY), ("cgroup.event_control", os.O_WRONLY)):
            fds.append(os.open(folder / name, flags | os.O_CLOEXEC))
            opened.callback(os.close, fds[-1])
        os.write(fds[1], f"{eventfd} {fds[0]} {argument}".encode())
