"""Looks at what an unprivileged user left in a folder, before root takes it over.

The user's processes are gone by then, and nobody else can enter the folder: what is looked at stays as it is.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from crucible_deploy.failures import BuildError
from crucible_deploy.users import Account


def check(root: Path, account: Account, *, entries: int, content_bytes: int) -> None:
    """Refuses a tree that holds more than that user could have made in it by fair means.

    A file that belongs to somebody else is another name of a file outside: to change its owner would change that one.

    Raises:
        BuildError: it holds something of another user, a device, a pipe or a socket, or more than is allowed.
        OSError: it cannot be read.
    """
    size = 0
    for count, path in enumerate(everything(root), start=1):
        info = path.lstat()
        if (info.st_uid, info.st_gid) != (account.uid, account.gid):
            raise BuildError(f"{path} belongs to user {info.st_uid}, who did not unpack it")
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode) or stat.S_ISLNK(info.st_mode)):
            raise BuildError(f"{path} is neither a file, a folder nor a symbolic link")
        size += info.st_size if stat.S_ISREG(info.st_mode) else 0
        if count > entries or size > content_bytes:
            raise BuildError(f"{root} holds more than {entries} entries or {content_bytes} bytes")


def everything(root: Path) -> Iterator[Path]:
    """The folder itself and all below it; links are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    yield root
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in (*folders, *files):
            yield Path(folder, name)


def size_of(root: Path) -> int:
    """Bytes of all files below a folder, each inode once.

    Raises:
        OSError: it cannot be read.
    """
    sizes = {(info.st_dev, info.st_ino): info.st_size for path in everything(root) if _is_file(info := path.lstat())}
    return sum(sizes.values())


def _is_file(info: os.stat_result) -> bool:
    return stat.S_ISREG(info.st_mode)


def _raise(error: OSError) -> None:
    raise error
