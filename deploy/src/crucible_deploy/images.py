"""The store of root file systems, each in a folder named by the digest of its content.

`images/python.json` is the manifest: it names the tree that `python` is. The tree itself is
`images/sha256-<digest>/rootfs/`, owned by root and never changed again. `images/.building-*` is what is being built, or
what a killed build left: never used, and removed by the next one.

A running executor holds a shared lock (`flock`) of the folder of each tree that it uses; the kernel drops it however
the executor ends. A tree is removed only under the exclusive lock, and only when no manifest names it.

`python -m crucible_deploy.images ensure` builds what set-up needs; for people there is `crucible images`
(`images_command.py`).
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import click

from crucible_deploy import adoption, mounts
from crucible_deploy.failures import BuildError
from crucible_deploy.paths import Paths
from crucible_deploy.rootfs import PYTHON, Recipe, build
from crucible_deploy.tree_digest import UnfitTreeError, tree_digest

_BUILDING = ".building-"
_NAME = re.compile(r"(?!sha256-)[a-z0-9][a-z0-9._-]{0,62}")
_TREE = re.compile(r"sha256-[0-9a-f]{64}")
_ROOTFS = re.compile(r"sha256-[0-9a-f]{64}/rootfs")
DEFAULT_MIRROR = "http://deb.debian.org/debian"


class ImageInUseError(Exception):
    """An image or its tree is needed by somebody; the text says by whom."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a root file system; as JSON, `images/<name>.json`.

    `digest` is `sha256:<hex>` (see `tree_digest`), `rootfs` the tree's path below the store, `recipe` the digest of the
    recipe that made it or empty, `python` the version of its interpreter if it has one, `packages` Debian packages and
    `wheels` Python's with their versions, `source` where an imported one came from, `created` the time in ISO 8601,
    `bytes` the size of its files.
    """

    name: str
    digest: str
    rootfs: str
    recipe: str = ""
    python: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    wheels: dict[str, str] = field(default_factory=dict)
    source: str = ""
    created: str = ""
    bytes: int = 0


Maker = Callable[[Path], dict[str, object]]
"""Fills the folder `<its argument>/rootfs` with a tree of root's, and returns facts for the manifest."""


def is_name(name: str) -> bool:
    """Whether an image can be called so."""
    return _NAME.fullmatch(name) is not None


class ImageStore:
    """The root file systems below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """The names that there are, also those whose manifest cannot be used."""
        return sorted(path.stem for path in self._folder.glob("*.json") if is_name(path.stem))

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of an image that is there to be used; None when it is missing or unreadable."""
        manifest = self._read(name)
        return manifest if manifest is not None and self.rootfs(manifest).is_dir() else None

    def complete(self, manifest: Manifest) -> Manifest:
        """The manifest with its time and size, which those of earlier versions do not hold.

        Raises:
            OSError: the tree cannot be read.
        """
        if manifest.created and manifest.bytes:
            return manifest
        written = (self._folder / f"{manifest.name}.json").stat().st_mtime
        created = datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds")
        return replace(manifest, created=created, bytes=adoption.size_of(self.rootfs(manifest)))

    def _read(self, name: str) -> Manifest | None:
        try:
            read = json.loads((self._folder / f"{name}.json").read_text())
            manifest = Manifest(**read)
        except (OSError, ValueError, TypeError):
            return None
        fit = manifest.name == name and isinstance(manifest.rootfs, str) and _ROOTFS.fullmatch(manifest.rootfs)
        return manifest if fit else None

    def rootfs(self, manifest: Manifest) -> Path:
        """The folder of an image's tree."""
        return self._folder / manifest.rootfs

    def verify(self, manifest: Manifest) -> None:
        """Reads the whole tree and compares it with its digest; takes a second or two.

        Raises:
            UnfitTreeError: the tree is not what its manifest says.
        """
        found = tree_digest(self.rootfs(manifest))
        if found != manifest.digest:
            raise UnfitTreeError(f"{self.rootfs(manifest)} has the digest {found}, its manifest says {manifest.digest}")

    def verify_packed(self, manifest: Manifest) -> None:
        """Unpacks the EROFS file that sandboxes read, where there is one, and compares that with the digest.

        The caller holds the lock of set-up. Without `fsck.erofs` nothing is looked at.

        Raises:
            UnfitTreeError: the file is damaged, or holds another tree.
        """
        rootfs = self.rootfs(manifest)
        packed = rootfs.with_name(f"{rootfs.name}.erofs")
        if not packed.is_file() or shutil.which("fsck.erofs") is None:
            return
        self.remove_leftovers()
        work = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._folder))
        try:
            command = ["fsck.erofs", f"--extract={work / 'rootfs'}", "--preserve", str(packed)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise UnfitTreeError(f"{packed} is damaged: {done.stderr.strip()[-200:]}")
            found = tree_digest(work / "rootfs")
        finally:
            self.remove_leftovers()
        if found != manifest.digest:
            raise UnfitTreeError(f"{packed} holds a tree with the digest {found}, its manifest says {manifest.digest}")

    def ensure(self, recipe: Recipe, builder: Callable[[Recipe, Path, Path], dict[str, object]]) -> Manifest:
        """The image of a recipe, built by `builder(recipe, root, log)` only when there is none of this very recipe.

        The caller holds the lock of set-up: one build at a time.

        Raises:
            BuildError: it could not be built; nothing has changed then.
        """
        self.remove_leftovers()
        current = self.manifest(recipe.name)
        if current is not None and current.recipe == recipe.digest:
            return current
        log = self._folder / f"{recipe.name}.log"
        log.unlink(missing_ok=True)

        def make(work: Path) -> dict[str, object]:
            return {"recipe": recipe.digest} | builder(recipe, work / "rootfs", log)

        manifest = self.add(recipe.name, make)
        log.unlink(missing_ok=True)
        return manifest

    def add(self, name: str, make: Maker) -> Manifest:
        """Makes an image and gives it its name, which the one that had it loses; its tree stays.

        The caller holds the lock of set-up. Whatever happens, nothing half-made is left.

        Raises:
            BuildError and what else `make` raises; UnfitTreeError, OSError: nothing has changed then.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers()
        work = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._folder))
        try:
            return self._adopt(name, work, make(work))
        finally:
            self.remove_leftovers()

    def _adopt(self, name: str, work: Path, facts: dict[str, object]) -> Manifest:
        rootfs = work / "rootfs"
        digest = tree_digest(rootfs)
        tree = digest.replace(":", "-")
        facts |= {"created": datetime.now(UTC).isoformat(timespec="seconds"), "bytes": adoption.size_of(rootfs)}
        manifest = Manifest(name=name, digest=digest, rootfs=f"{tree}/rootfs", **facts)  # type: ignore[arg-type]
        work.chmod(0o755)
        if not (self._folder / tree).exists():
            # On disk before it has a name: a power cut must not leave a named tree with empty files.
            subprocess.run(["sync", "--file-system", str(work)], check=True)
            work.rename(self._folder / tree)
        self._write(manifest)
        return manifest

    def _write(self, manifest: Manifest) -> None:
        handle, temporary = tempfile.mkstemp(prefix=_BUILDING, dir=self._folder)
        with os.fdopen(handle, "w") as stream:
            json.dump(asdict(manifest), stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).rename(self._folder / f"{manifest.name}.json")

    def remove(self, name: str) -> None:
        """Takes a name away. Its tree goes with `remove_unused`.

        Raises:
            ImageInUseError: a running executor uses the tree, and no other name is left for it.
            OSError: it cannot be removed.
        """
        manifest = self._read(name)
        if manifest is not None and self._users(manifest.rootfs) == [name]:
            with self._alone(self._folder / manifest.rootfs.partition("/")[0]):
                (self._folder / f"{name}.json").unlink()
            return
        (self._folder / f"{name}.json").unlink()

    def remove_unused(self) -> list[Path]:
        """Removes the trees that no name refers to; those that a running executor uses stay for the next time.

        Returns what was removed. The caller holds the lock of set-up.

        Raises:
            OSError: one cannot be removed.
        """
        self.remove_leftovers()
        removed = []
        for tree in self.unused():
            with suppress(ImageInUseError), self._alone(tree):
                # Out of the way first: a removal that is interrupted must not leave half a tree with a good name.
                doomed = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._folder))
                tree.rename(doomed / "tree")
                removed.append(tree)
        self.remove_leftovers()
        return removed

    def unused(self) -> list[Path]:
        """The trees that no name refers to."""
        trees = sorted(path for path in self._folder.glob("sha256-*") if _TREE.fullmatch(path.name) and path.is_dir())
        return [tree for tree in trees if not self._users(f"{tree.name}/rootfs")]

    def _users(self, rootfs: str) -> list[str]:
        """The names of a tree; one whose manifest cannot be read may be of any, and counts for all."""
        read = {name: self._read(name) for name in self.names()}
        return [name for name, manifest in read.items() if manifest is None or manifest.rootfs == rootfs]

    @contextmanager
    def _alone(self, tree: Path) -> Iterator[None]:
        """Inside the block no executor uses the tree, nor begins to."""
        try:
            folder = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ImageInUseError(
                    f"a running executor uses {tree.name[:19]}…; stop it with `crucible down`"
                ) from None
            yield
        finally:
            os.close(folder)

    def remove_leftovers(self) -> list[Path]:
        """Removes what a killed build left, its mounts first; returns what was removed."""
        leftovers = sorted(self._folder.glob(f"{_BUILDING}*"))
        for leftover in leftovers:
            mounts.remove_tree(leftover)
        return leftovers


def build_with_debootstrap(recipe: Recipe, root: Path, log: Path) -> dict[str, object]:
    """Builds a tree from the Debian mirror that `CRUCIBLE_DEBIAN_MIRROR` names, or Debian's own."""
    mirror = os.environ.get("CRUCIBLE_DEBIAN_MIRROR") or DEFAULT_MIRROR
    return build(recipe, root, mirror=mirror, log=log, paths=Paths.of(os.environ))


@click.group(help="What set-up needs of the store of root file systems; for people there is `crucible images`.")
def main() -> None:
    """The commands of this module. Set-up holds its lock while it calls them."""
    os.umask(0o022)  # whatever the caller's is: the sandbox's user reads these files


@main.command()
def status() -> None:
    """Exit with 0 when the root file system is there and made by the current recipe; otherwise say what is not."""
    manifest = ImageStore(Paths.of(os.environ).images).manifest(PYTHON.name)
    if manifest is None or manifest.recipe != PYTHON.digest:
        click.echo(f"{PYTHON.name}: {'not built' if manifest is None else 'made by an older recipe'}")
        sys.exit(1)


@main.command()
def ensure() -> None:
    """Build the root file system of set-up when it is missing or out of date, and print its name."""
    store = ImageStore(Paths.of(os.environ).images)
    with suppress(KeyboardInterrupt):
        try:
            manifest = store.ensure(PYTHON, build_with_debootstrap)
        except (BuildError, UnfitTreeError, OSError) as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{manifest.name}: Python {manifest.python}, {manifest.digest}, in {store.rootfs(manifest)}")
        return
    sys.exit(130)


if __name__ == "__main__":
    main()
