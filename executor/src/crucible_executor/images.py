"""The store of root file systems that sandboxes run on, as set-up left it below one folder.

    <name>.json                     the manifest: `{"name", "digest": "sha256:<hex>", "rootfs": "<path in it>", …}`
    sha256-<hex>/rootfs/            the tree
    sha256-<hex>/rootfs.erofs       the same tree as one read-only EROFS file, made here once from the tree

With the EROFS file a sandbox needs no process that serves files and opens no path of the host: a run costs about a
third less CPU time (measured: 62 ms against 95 ms of a bare `runsc run`). Without `mkfs.erofs` the tree itself is used.

The store is kept by `crucible images`, which may run meanwhile. An image that was looked up is locked (`flock`, shared,
of its folder) until this process ends, and is not removed before.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crucible_executor.runtimes import IMAGES

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MANIFEST_BYTES = 1 << 20
_MOUNT_POINTS = ("workspace", "tmp", "proc", "dev")
_PACK = (
    "mkfs.erofs",
    "--quiet",
    "--all-root",
    "-x-1",
    "-Enoinline_data",
    "-T0",
    "-U00000000-0000-0000-0000-000000000000",
)
"""Without inline data, because gVisor maps file contents in whole pages; fixed time and id, for equal bytes."""


class ImageNotFoundError(Exception):
    """There is no such image here; the message says how to get it."""


@dataclass(frozen=True)
class Image:
    """A root file system. `erofs` is the same content as one file, or None while nobody has packed it."""

    name: str
    digest: str
    rootfs: Path
    erofs: Path | None


class ImageStore:
    """Finds images by name or digest. Cheap: every answer is kept for the life of the process.

    Args:
        folder: the store.
        allowed: the names of the only images that are used; what else is in the store does not exist here.
    """

    def __init__(self, folder: Path, allowed: Iterable[str] = IMAGES) -> None:
        self._folder = folder
        self._allowed = tuple(allowed)
        self._known: dict[str, Image] = {}
        self._locked: set[str] = set()

    def names(self) -> list[str]:
        """The names of the allowed images that are there and can be used, in the order in which they are allowed."""
        return [name for name in self._allowed if self._is_usable(name)]

    def _is_usable(self, name: str) -> bool:
        try:
            self.resolve(name)
        except ImageNotFoundError:
            return False
        return True

    def resolve(self, name: str) -> Image:
        """The image of a name, or of a digest.

        Raises:
            ImageNotFoundError: none, or its manifest or tree is not usable.
        """
        known = self._known.get(name)
        if known is not None:
            return known
        if _DIGEST.fullmatch(name):
            return self._by_digest(name)
        if not _NAME.fullmatch(name):
            raise ImageNotFoundError(f"{name!r} is neither the name nor the digest of an image.")
        if name not in self._allowed:
            raise ImageNotFoundError(f"No runtime of this executor uses the image {name!r}.")
        return self._remember(self._load(name))

    def _by_digest(self, digest: str) -> Image:
        for name in self.names():
            image = self.resolve(name)
            if image.digest == digest:
                return image
        raise ImageNotFoundError(f"No image here has the digest {digest}: run `make images` on this machine.")

    def _remember(self, image: Image) -> Image:
        self._known[image.name] = self._known[image.digest] = image
        return image

    def _load(self, name: str) -> Image:
        file = self._folder / f"{name}.json"
        try:
            with file.open("rb") as stream:
                manifest = json.loads(stream.read(_MANIFEST_BYTES))
            digest, rootfs = manifest["digest"], self._folder / manifest["rootfs"]
        except FileNotFoundError as error:
            raise ImageNotFoundError(
                f"There is no image {name!r} in {self._folder}: run `crucible images build {name}` or import one."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageNotFoundError(
                f"The manifest {file} cannot be read: {error!r}. Remove it, run `make images`."
            ) from error
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ImageNotFoundError(f"The manifest {file} has no digest of the form sha256:<hex>: run `make images`.")
        self._lock(name, rootfs.parent)
        missing = [point for point in _MOUNT_POINTS if not (rootfs / point).is_dir()]
        if missing:
            raise ImageNotFoundError(f"{rootfs} lacks the folder {missing[0]!r}: remove {file}, run `make images`.")
        packed = rootfs.with_name(f"{rootfs.name}.erofs")
        return Image(name=name, digest=digest, rootfs=rootfs, erofs=packed if packed.is_file() else None)

    def _lock(self, name: str, tree: Path) -> None:
        """Keeps the tree from being removed while this store is used; at the latest the process' end gives it free."""
        if str(tree) in self._locked:
            return
        try:
            folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageNotFoundError(f"The tree of the image {name!r} is not there: run `make images`.") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(folder), tree.stat()):
                raise FileNotFoundError(tree)
        except OSError as error:
            os.close(folder)
            raise ImageNotFoundError(f"The image {name!r} is just being removed: run `make images`.") from error
        weakref.finalize(self, os.close, folder)
        self._locked.add(str(tree))

    async def pack(self, name: str) -> Image:
        """Makes the EROFS file of an image when it is missing and `mkfs.erofs` is there; takes a few seconds, once.

        Raises:
            ImageNotFoundError: no such image.
            OSError: the file could not be made (say, no space); the tree is used then.
        """
        image = self.resolve(name)
        if image.erofs is not None or shutil.which(_PACK[0]) is None:
            return image
        target = image.rootfs.with_name(f"{image.rootfs.name}.erofs")
        handle, temporary = tempfile.mkstemp(prefix=".packing-", dir=target.parent)
        os.close(handle)
        made = Path(temporary)
        try:
            await _run(*_PACK, str(made), str(image.rootfs))
            _publish(made, target)
        finally:
            _discard(made)
        return self._remember(Image(name=image.name, digest=image.digest, rootfs=image.rootfs, erofs=target))


def _publish(made: Path, target: Path) -> None:
    made.chmod(0o644)
    made.rename(target)


def _discard(made: Path) -> None:
    made.unlink(missing_ok=True)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise OSError(f"{command[0]} failed with {process.returncode}: {errors[-500:].decode(errors='replace')}")
