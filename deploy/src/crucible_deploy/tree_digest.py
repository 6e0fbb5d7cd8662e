"""The digest that names a root file system by its content.

The digest is the SHA-256 of a byte string. It starts with `crucible-tree-v1` and a NUL. Then, for each entry below the
root (the root itself too, as `.`), ordered by path as bytes, come four fields, each ended by a NUL:

    path      relative to the root, as bytes
    type      `d` folder, `f` file, `l` symbolic link
    mode      the twelve permission bits in octal, four digits; `0777` for a link
    content   of a file the hex SHA-256 of its bytes, of a link its target, of a folder nothing

Owner, times and hard links are not part of it: everything belongs to root, and times mean nothing in a root file system
that nobody can change. Devices, sockets, pipes, extended attributes (file capabilities) and foreign owners are refused,
so that a tree with a digest cannot hold any.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from crucible_deploy.paths import sha256

_HEADER = b"crucible-tree-v1\0"


class UnfitTreeError(Exception):
    """The tree holds what no root file system of a sandbox may hold; the text names it."""


def tree_digest(root: Path, *, owner: int = 0) -> str:
    """The digest of the tree at `root`, as `sha256:<hex>`.

    Args:
        root: the folder that becomes `/`.
        owner: the user and group that everything must belong to.

    Raises:
        UnfitTreeError: the tree holds a device, a socket, a pipe, an extended attribute or a foreign owner.
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256(_HEADER)
    for path in sorted(_walk(root), key=lambda path: os.fsencode(path.relative_to(root))):
        for field in _entry(path, root, owner):
            digest.update(field + b"\0")
    return f"sha256:{digest.hexdigest()}"


def _walk(root: Path) -> Iterator[Path]:
    yield root
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in (*folders, *files):
            yield Path(folder, name)


def _raise(error: OSError) -> None:
    raise error


def _entry(path: Path, root: Path, owner: int) -> tuple[bytes, bytes, bytes, bytes]:
    info = path.lstat()
    if (info.st_uid, info.st_gid) != (owner, owner):
        raise UnfitTreeError(f"{path} belongs to {info.st_uid}:{info.st_gid}, not to {owner}:{owner}")
    if attributes := _attributes(path):
        raise UnfitTreeError(f"{path} has the extended attributes {', '.join(attributes)}")
    kind, content = _content(path, info.st_mode)
    mode = 0o777 if kind == b"l" else stat.S_IMODE(info.st_mode)
    return os.fsencode(path.relative_to(root)), kind, f"{mode:04o}".encode(), content


def _attributes(path: Path) -> list[str]:
    # `security.selinux` is set by the host's policy on every file, whatever the tree holds.
    return [name for name in os.listxattr(path, follow_symlinks=False) if name != "security.selinux"]


def _content(path: Path, mode: int) -> tuple[bytes, bytes]:
    if stat.S_ISDIR(mode):
        return b"d", b""
    if stat.S_ISLNK(mode):
        return b"l", os.fsencode(path.readlink())
    if stat.S_ISREG(mode):
        return b"f", sha256(path).encode()
    raise UnfitTreeError(f"{path} is neither a file, a folder nor a symbolic link")
