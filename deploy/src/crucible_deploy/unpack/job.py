"""One job of the unpacking process: an archive, a folder, bounds."""

import errno
import os
import stat
from dataclasses import dataclass
from typing import Any

from crucible_deploy.unpack import formats
from crucible_deploy.unpack.errors import ArchiveError, shown
from crucible_deploy.unpack.layers import Unpacker
from crucible_deploy.unpack.members import FolderMembers, Members, TarMembers, Window
from crucible_deploy.unpack.streams import PIECE_BYTES, Counted, Hashed, Read, decompressed
from crucible_deploy.unpack.tar import PathBounds, TarReader
from crucible_deploy.unpack.tree import TreeBounds, TreeWriter

_HEADERS_PER_ENTRY = 4096
"""Bytes of the archive beside the content of files, for each entry that is allowed."""


@dataclass(frozen=True)
class Job:
    """What to unpack, as `crucible_deploy.unpacking` says it.

    Attributes:
        archive: descriptor of the archive; None for a folder.
        members: of a folder, the descriptors of its files by name.
        root: descriptor of the folder to fill.
        spool: descriptor of an empty file, for an archive that cannot be sought in.
        format: `auto`, `rootfs`, `docker` or `oci`.
        architecture: of this machine, in Docker's words.
        tag: which image of the archive; None for the only one.
        content_bytes: of all files together at most.
        entries: at most.
    """

    archive: int | None
    members: dict[str, int]
    root: int
    spool: int
    format: str
    architecture: str
    tag: str | None
    content_bytes: int
    entries: int

    @property
    def stream_bytes(self) -> int:
        """The most bytes that one archive may have when it is not compressed."""
        return self.content_bytes + self.entries * _HEADERS_PER_ENTRY


def run(job: Job) -> dict[str, Any]:
    """Does it; returns what is to be told: `{"format", "config", "layers", "entries", "bytes", "left_out"}`.

    Raises:
        ArchiveError: in one sentence, why not.
    """
    tree = TreeWriter(job.root, TreeBounds(job.content_bytes, job.entries))
    unpacker = Unpacker(tree, PathBounds())
    try:
        kind, description = _unpack(job, unpacker)
        unpacker.prepare()
        tree.finish()
    except OSError as error:
        raise _as_archive_error(error) from error
    return {
        "format": kind,
        "config": description.config if description else "",
        "layers": len(description.layers) if description else 1,
        "entries": tree.entries,
        "bytes": tree.content_bytes,
        "left_out": unpacker.left_out,
    }


def _unpack(job: Job, unpacker: Unpacker) -> tuple[str, formats.Description | None]:
    wanted = formats.Wanted(job.architecture, job.tag)
    members: Members
    if job.archive is None:
        members = FolderMembers({name.encode(): descriptor for name, descriptor in job.members.items()})
        kind = "oci"
    else:
        archive = _seekable(job, job.archive)
        members = TarMembers(archive, PathBounds(), job.entries)
        kind = _kind(members) if job.format == "auto" else job.format
        if kind == "rootfs":
            if job.tag is not None:
                raise ArchiveError("it is a plain root file system, which has no tags")
            unpacker.put(TarReader(Window(archive, 0, os.fstat(archive).st_size).read, PathBounds()))
            return kind, None
    description = formats.docker(members, wanted) if kind == "docker" else formats.oci(members, wanted)
    for layer in description.layers:
        _put_layer(job, members, layer, unpacker)
    return kind, description


def _kind(members: TarMembers) -> str:
    """What an archive is, by the names in it; a root file system may have a file of any name."""
    if members.top().isdisjoint((b"bin", b"etc", b"usr")):
        if b"manifest.json" in members:
            return "docker"
        if b"oci-layout" in members and b"index.json" in members:
            return "oci"
    return "rootfs"


def _put_layer(job: Job, members: Members, layer: formats.Layer, unpacker: Unpacker) -> None:
    read, size = members.open(layer.member)
    if layer.size is not None and layer.size != size:
        raise ArchiveError(f"the layer {shown(layer.member)} has {size} bytes, its descriptor says {layer.size}")
    stored = Hashed(read)
    plain = Hashed(_counted(job, decompressed(stored.read), "a layer"))
    try:
        unpacker.put_layer(TarReader(plain.read, PathBounds()))
        _compare("the layer", layer.member, plain.drain(), layer.diff_id)
        if layer.digest is not None:
            _compare("the file of the layer", layer.member, stored.drain(), layer.digest)
    except ArchiveError as error:
        raise ArchiveError(f"{error} (in {shown(layer.member)})") from None


def _compare(what: str, member: bytes, found: str, said: str) -> None:
    if found != said:
        raise ArchiveError(f"{what} {shown(member)} has the digest {found}, its description says {said}: it is damaged")


def _seekable(job: Job, archive: int) -> int:
    """The archive as a plain file that can be sought in, written once more where it is none."""
    if stat.S_ISREG(os.fstat(archive).st_mode) and _is_tar(os.pread(archive, 512, 0)):
        return archive
    read = _counted(job, decompressed(lambda size: os.read(archive, size)), "the archive")
    while piece := read(PIECE_BYTES):
        view = memoryview(piece)
        while view:
            view = view[os.write(job.spool, view) :]
    return job.spool


def _is_tar(head: bytes) -> bool:
    """Not whether it is a good one: that its reader says."""
    return head[257:262] == b"ustar"


def _counted(job: Job, read: Read, what: str) -> Read:
    return Counted(read, job.stream_bytes, what).read


def _as_archive_error(error: OSError) -> ArchiveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArchiveError("there is no space left on the disk; make room and try again")
    if error.errno == errno.EMLINK:
        return ArchiveError("a file has more hard links than this file system allows")
    return ArchiveError(f"it could not be unpacked: {error.strerror or error}")
