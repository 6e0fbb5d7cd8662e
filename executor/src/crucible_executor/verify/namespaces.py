"""Namespaces of the suite's own: what it does to "the host" it does to these, and nothing can leave the machine."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

NEWNS = 0x00020000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

METADATA = ("169.254.169.254", "100.100.100.200")
HOST_ADDRESSES = ("198.51.100.7",)
RESOLVER = "198.51.100.53"
"""Addresses that exist on the loopback of the suite's own network alone (198.51.100.0/24: RFC 5737)."""

_PDEATHSIG = 1
_SIOCSIFADDR = 0x8916
_SIOCSIFFLAGS = 0x8914
_UP_AND_LOOPBACK = 0x49

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Gives the calling thread new namespaces.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mounts, as the system call of that name does.

    Raises:
        OSError: the kernel refused.
    """
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _checked(_libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def unmount(target: str) -> None:
    """Detaches a mount; nothing when there is none."""
    _libc.umount2(target.encode(), MNT_DETACH)


def pivot_root(new: str, put_old: str) -> None:
    """Makes `new` the root, as the system call does.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_libc.syscall(155, new.encode(), put_old.encode()), "pivot_root")


def end_with_parent() -> None:
    """From now on SIGKILL ends the calling process when its parent ends, also where the parent is in another namespace.

    Raises:
        OSError: the kernel refused.
    """
    _checked(_libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def set_host_name(name: str) -> None:
    """Names the host of the calling thread's UTS namespace."""
    socket.sethostname(name)


def bring_up_loopback() -> None:
    """Brings `lo` of the calling thread's network up, with the suite's addresses; there are no routes beyond it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("<16sH14x", b"lo", _UP_AND_LOOPBACK))
        for index, address in enumerate((*METADATA, *HOST_ADDRESSES, RESOLVER)):
            name = f"lo:{index + 1}".encode()
            request = struct.pack("<16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(s, _SIOCSIFADDR, request)


class Place:
    """Where an attempt's "host" is: the namespaces in which the suite listens and looks.

    Args:
        pid: of a process in them. Their descriptors are held until `close`.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptors = {
            kind: os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "uts", "ipc")
        }

    def inside(self, kind: str, action: Callable[[], T]) -> T:
        """Runs `action` in a thread that has entered one of them: `net`, `uts` or `ipc`.

        Raises:
            OSError: it could not be entered, or what `action` raised.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                _checked(_libc.setns(self._descriptors[kind], 0), "setns")
                results.append(action())
            except BaseException as error:  # raised again in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def mounts(self) -> str:
        """The mount table, as the kernel shows it; empty when its process has gone."""
        try:
            return Path(f"/proc/{self.pid}/mountinfo").read_text(errors="replace")
        except OSError:
            return ""

    def close(self) -> None:
        """Lets the namespaces go. Idempotent."""
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.popitem()[1])
