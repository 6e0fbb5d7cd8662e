"""The files and folders of a cgroup hierarchy. What is gone reads as empty: its cgroup was removed meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

File = Path | str
"""Text where it is read for each run: putting paths together costs as much as reading such a file."""

_SURELY_ALL = 2048
_GONE = (errno.ENOENT, errno.ENODEV)
"""ENODEV: the cgroup was removed while its file was being opened or read."""


def children(parent: Path) -> list[str]:
    """The names of the cgroups in a folder, sorted."""
    try:
        return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def removed(folder: Path) -> bool:
    """Removes an empty cgroup; False while it is still in use."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # busy: its last process is still on its way out
        return False
    return True


def write(file: File, value: int | str) -> None:
    """Writes a value, in one call as the kernel wants it."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def read(file: File) -> str:
    """The whole text; empty when it is not there (any more)."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise
    try:
        whole = part = os.read(fd, 65536)
        while len(part) > _SURELY_ALL:  # the kernel gives a page at a time, as many whole lines as fit
            part = os.read(fd, 65536)
            whole += part
        return whole.decode()
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise
    finally:
        os.close(fd)


def field(file: File, key: str) -> int:
    """A number of a file of `key value` lines; 0 when it is not there."""
    return of_lines(read(file), key)


def of_lines(text: str, key: str) -> int:
    """A number of a text of `key value` lines; 0 when it is not there."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
