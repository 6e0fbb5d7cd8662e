"""Puts the entries of a tar archive into a tree, on their own or as a layer over those before it."""

from crucible_deploy.unpack.errors import ArchiveError, shown
from crucible_deploy.unpack.tar import Entry, Kind, Path, PathBounds, TarReader, parts_of
from crucible_deploy.unpack.tree import TreeWriter

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_RESERVED = b".wh..wh."

EMPTIED = (b"dev", b"proc", b"sys", b"run")
"""What a sandbox mounts over, or what means nothing outside the machine that the archive was made on."""
_PREPARED = {b"dev": 0o755, b"proc": 0o555, b"sys": 0o555, b"run": 0o755, b"tmp": 0o1777, b"workspace": 0o755}


class Unpacker:
    """Puts archives into a tree.

    Args:
        tree: where to.
        bounds: of names.

    Attributes:
        left_out: devices and pipes that were left out.
    """

    def __init__(self, tree: TreeWriter, bounds: PathBounds) -> None:
        self._tree = tree
        self._bounds = bounds
        self.left_out = 0

    def put(self, archive: TarReader) -> None:
        """Puts all entries of an archive of a whole root file system into the tree.

        Raises:
            ArchiveError: the archive is damaged, hostile or too large.
        """
        for entry in archive:
            self._put(entry, archive)

    def put_layer(self, archive: TarReader) -> None:
        """The same, of a layer: its whiteouts remove what earlier layers brought, and nothing of its own.

        Raises:
            ArchiveError: see `put`.
        """
        own: set[Path] = set()
        for entry in archive:
            if entry.path and entry.path[-1].startswith(_WHITEOUT):
                self._white_out(entry.path, own)
                continue
            self._put(entry, archive)
            own.update(entry.path[:depth] for depth in range(1, len(entry.path) + 1))

    def prepare(self) -> None:
        """Makes the folders that a sandbox mounts over, empty; what else has their name goes."""
        for name in EMPTIED:
            self._tree.remove((name,))
        for name, mode in _PREPARED.items():
            self._tree.folder((name,), mode)

    def _white_out(self, path: Path, own: set[Path]) -> None:
        *above, name = path
        if name == _OPAQUE:
            self._tree.empty_lower(tuple(above), own)
            return
        if name.startswith(_RESERVED):
            return  # notes of a storage driver
        hidden = name[len(_WHITEOUT) :]
        if len(parts_of(hidden, self._bounds)) != 1:
            raise ArchiveError(f"the whiteout {shown(b'/'.join(path))} names nothing that could be removed")
        self._tree.remove_lower((*above, hidden), own)

    def _put(self, entry: Entry, archive: TarReader) -> None:
        match entry.kind:
            case Kind.FOLDER:
                self._tree.folder(entry.path, entry.mode)
            case Kind.FILE:
                self._tree.file(entry.path, entry.mode, archive.content())
            case Kind.SYMLINK:
                self._tree.symlink(entry.path, entry.target)
            case Kind.HARDLINK:
                self._tree.hardlink(entry.path, parts_of(entry.target, self._bounds))
            case Kind.SPECIAL:
                if entry.path:
                    self._tree.remove(entry.path)
                self.left_out += 1
