"""Builds a tree below one open folder and nowhere else, whatever an archive says.

Every step goes from an open folder to a name in it, and never through a symbolic link (`O_NOFOLLOW` for each part: what
`openat2` calls RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS). What exists is never written to: it is removed, and made anew
exclusively. Folders stay writable until the end, when each gets the mode it should have.
"""

import os
import stat
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from crucible_deploy.unpack.errors import ArchiveError, shown
from crucible_deploy.unpack.tar import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_TARGET_BYTES = 4095


@dataclass(frozen=True)
class TreeBounds:
    """How much may be written in all: bytes of files, and entries. What is removed again counts as well."""

    content_bytes: int
    entries: int


class TreeWriter:
    """Makes files, folders and links below a folder.

    Args:
        root: the open folder, which stays the caller's.
        bounds: see there.

    Attributes:
        content_bytes: written so far.
        entries: made so far.
    """

    def __init__(self, root: int, bounds: TreeBounds) -> None:
        self._bounds = bounds
        self._modes: dict[int, int] = {}
        # The folder that was worked in last and those above it, open: most entries follow one of the same folder.
        self._open: list[int] = [root]
        self._open_path: list[bytes] = []
        self.content_bytes = self.entries = 0

    def folder(self, path: Path, mode: int) -> None:
        """Makes a folder, or gives one that is there its mode; the root keeps its own."""
        if not path:
            return
        self._count()
        parent = self._parent(path)
        found = _look(parent, path[-1])
        if found is not None and not stat.S_ISDIR(found.st_mode):
            os.unlink(path[-1], dir_fd=parent)
            found = None
        if found is None:
            os.mkdir(path[-1], 0o700, dir_fd=parent)
            found = os.stat(path[-1], dir_fd=parent, follow_symlinks=False)
        self._modes[found.st_ino] = mode & 0o1777

    def file(self, path: Path, mode: int, content: Iterable[bytes]) -> None:
        """Makes a file; no set-id and no sticky bit.

        Raises:
            ArchiveError: more bytes than are allowed.
        """
        parent = self._place(path)
        descriptor = os.open(path[-1], _NEW_FILE, 0o600, dir_fd=parent)
        try:
            for piece in content:
                self.content_bytes += len(piece)
                if self.content_bytes > self._bounds.content_bytes:
                    raise ArchiveError(f"it holds more than the {self._bounds.content_bytes} bytes that are allowed")
                _write(descriptor, piece)
            os.fchmod(descriptor, mode & 0o777)
        finally:
            os.close(descriptor)

    def symlink(self, path: Path, target: bytes) -> None:
        """Makes a symbolic link. Wherever it leads, it is never followed here."""
        if not target or len(target) > _MOST_TARGET_BYTES or b"\0" in target:
            raise ArchiveError(f"the symbolic link {_path(path)} leads to {shown(target)}, which is no path")
        parent = self._place(path)
        os.symlink(target, path[-1], dir_fd=parent)

    def hardlink(self, path: Path, target: Path) -> None:
        """Makes another name of a file, or of a symbolic link, that is there.

        Raises:
            ArchiveError: nothing is there that can have one.
        """
        if not target or path == target:
            raise ArchiveError(f"the hard link {_path(path)} leads to itself or to no file")
        source = self._existing_parent(target)
        found = None if source is None else _look(source, target[-1])
        if source is None or found is None or not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise ArchiveError(f"the hard link {_path(path)} leads to {_path(target)}, where there is no file")
        source = os.dup(source)  # placing the link may close it
        try:
            parent = self._place(path)
            os.link(target[-1], path[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(f"the hard link {_path(path)} takes the place of what it leads to") from None
        finally:
            os.close(source)

    def remove(self, path: Path) -> None:
        """Removes what is there, with all below it, if anything is."""
        parent = self._existing_parent(path)
        if parent is not None:
            self._clear(parent, path[-1])

    def remove_lower(self, path: Path, kept: AbstractSet[Path]) -> None:
        """Removes `path` with all below it, but for what is in `kept`, which holds the folders of its paths too."""
        parent = self._existing_parent(path)
        if parent is not None:
            _prune(parent, path[-1], path, kept)
            self._close_below(0)  # some of what is open may be gone

    def empty_lower(self, path: Path, kept: AbstractSet[Path]) -> None:
        """The same, of all that is in the folder `path`."""
        # As if for something in it: what is open last then is the folder itself.
        folder = self._existing_parent((*path, b""))
        if folder is not None:
            _prune_below(folder, path, kept)
            self._close_below(len(path))

    def finish(self) -> None:
        """Gives every folder its mode; nothing can be made after it."""
        self._close_below(0)
        self._set_modes(self._open[0])

    def _set_modes(self, folder: int) -> None:
        for name in _folders(folder):
            below = os.open(name, _FOLDER, dir_fd=folder)
            try:
                self._set_modes(below)
                os.fchmod(below, self._modes.get(os.fstat(below).st_ino, 0o755))
            finally:
                os.close(below)

    def _place(self, path: Path) -> int:
        """The open folder in which `path` is to be made; what has its name there goes."""
        if not path:
            raise ArchiveError("an entry takes the place of the root itself")
        self._count()
        parent = self._parent(path)
        self._clear(parent, path[-1])
        # Had it been a folder, the folders below it that were open are closed now; its own is still open.
        return parent

    def _clear(self, parent: int, name: bytes) -> None:
        found = _look(parent, name)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            _remove_folder(parent, name)
            if parent in self._open:
                self._close_below(self._open.index(parent))
        else:
            os.unlink(name, dir_fd=parent)

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._bounds.entries:
            raise ArchiveError(f"it holds more than the {self._bounds.entries} entries that are allowed")

    def _parent(self, path: Path) -> int:
        """The open folder that holds `path`, made when missing."""
        parent = self._walk(path, make=True)
        if parent is None:
            raise AssertionError("folders on the way are made")
        return parent

    def _existing_parent(self, path: Path) -> int | None:
        return self._walk(path, make=False)

    def _walk(self, path: Path, *, make: bool) -> int | None:
        above = path[:-1]
        same = 0
        while same < min(len(above), len(self._open_path)) and above[same] == self._open_path[same]:
            same += 1
        self._close_below(same)
        for name in above[same:]:
            try:
                below = os.open(name, _FOLDER, dir_fd=self._open[-1])
            except FileNotFoundError:
                if not make:
                    return None
                self._count()
                os.mkdir(name, 0o700, dir_fd=self._open[-1])
                below = os.open(name, _FOLDER, dir_fd=self._open[-1])
                self._modes[os.fstat(below).st_ino] = 0o755
            except OSError:
                at = (*self._open_path, name)
                raise ArchiveError(f"{_path(path)} lies below {_path(at)}, which is a link or a file") from None
            self._open.append(below)
            self._open_path.append(name)
        return self._open[-1]

    def _close_below(self, depth: int) -> None:
        while len(self._open_path) > depth:
            os.close(self._open.pop())
            self._open_path.pop()


def _path(path: Path) -> str:
    return shown(b"/".join(path))


def _look(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _names(folder: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(folder)]


def _folders(folder: int) -> list[bytes]:
    with os.scandir(folder) as found:
        return [os.fsencode(one.name) for one in found if one.is_dir(follow_symlinks=False)]


def _remove_folder(parent: int, name: bytes) -> None:
    folder = os.open(name, _FOLDER, dir_fd=parent)
    try:
        for below in _names(folder):
            _remove(folder, below)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=parent)


def _remove(parent: int, name: bytes) -> None:
    found = _look(parent, name)
    if found is not None and stat.S_ISDIR(found.st_mode):
        _remove_folder(parent, name)
    elif found is not None:
        os.unlink(name, dir_fd=parent)


def _prune(parent: int, name: bytes, path: Path, kept: AbstractSet[Path]) -> None:
    if path not in kept:
        _remove(parent, name)
        return
    found = _look(parent, name)
    if found is not None and stat.S_ISDIR(found.st_mode):
        folder = os.open(name, _FOLDER, dir_fd=parent)
        try:
            _prune_below(folder, path, kept)
        finally:
            os.close(folder)


def _prune_below(folder: int, path: Path, kept: AbstractSet[Path]) -> None:
    for name in _names(folder):
        _prune(folder, name, (*path, name), kept)
