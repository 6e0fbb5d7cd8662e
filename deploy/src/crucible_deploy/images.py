"""The store of root file systems, each in a folder named by the digest of its content.

`images/python.json` is the manifest: it names the tree that `python` is. The tree itself is
`images/sha256-<digest>/rootfs/`, owned by root and never changed again. `images/.building-*` is what is being built, or
what a killed build left: never used, and removed by the next one.

`python -m crucible_deploy.images ensure` builds what is missing or out of date, `verify` checks every byte.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from crucible_deploy import mounts
from crucible_deploy.paths import Paths
from crucible_deploy.rootfs import PYTHON, BuildError, Recipe, build
from crucible_deploy.tree_digest import UnfitTreeError, tree_digest

_BUILDING = ".building-"
DEFAULT_MIRROR = "http://deb.debian.org/debian"


@dataclass(frozen=True)
class Manifest:
    """What is known of a root file system; as JSON, `images/<name>.json`.

    `digest` is `sha256:<hex>` (see `tree_digest`), `rootfs` the tree's path below the store, `recipe` the digest of the
    recipe that made it, `python` the version of its interpreter, `packages` Debian packages with their versions.
    """

    name: str
    digest: str
    rootfs: str
    recipe: str
    python: str
    packages: dict[str, str] = field(default_factory=dict)


class ImageStore:
    """The root file systems below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of an image that is there to be used; None when it is missing or unreadable."""
        try:
            read = json.loads((self._folder / f"{name}.json").read_text())
            manifest = Manifest(**read)
        except (OSError, ValueError, TypeError):
            return None
        return manifest if self.rootfs(manifest).is_dir() else None

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
        self._folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=self._folder))
        log = self._folder / f"{recipe.name}.log"
        log.unlink(missing_ok=True)
        try:
            facts = builder(recipe, work / "rootfs", log)
            manifest = self._adopt(recipe, work, facts)
        finally:
            self.remove_leftovers()
        log.unlink(missing_ok=True)
        return manifest

    def _adopt(self, recipe: Recipe, work: Path, facts: dict[str, object]) -> Manifest:
        digest = tree_digest(work / "rootfs")
        name = digest.replace(":", "-")
        manifest = Manifest(name=recipe.name, digest=digest, rootfs=f"{name}/rootfs", recipe=recipe.digest, **facts)  # type: ignore[arg-type]
        work.chmod(0o755)
        if not (self._folder / name).exists():
            # On disk before it has a name: a power cut must not leave a named tree with empty files.
            subprocess.run(["sync", "--file-system", str(work)], check=True)
            work.rename(self._folder / name)
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

    def remove_leftovers(self) -> list[Path]:
        """Removes what a killed build left, its mounts first; returns what was removed."""
        leftovers = sorted(self._folder.glob(f"{_BUILDING}*"))
        for leftover in leftovers:
            mounts.remove_tree(leftover)
        return leftovers


def build_with_debootstrap(recipe: Recipe, root: Path, log: Path) -> dict[str, object]:
    """Builds a tree from the Debian mirror that `CRUCIBLE_DEBIAN_MIRROR` names, or Debian's own."""
    return build(recipe, root, mirror=os.environ.get("CRUCIBLE_DEBIAN_MIRROR") or DEFAULT_MIRROR, log=log)


@click.group(help="Build and check the root file systems of sandboxes.")
def main() -> None:
    """The commands of this module, for set-up and `make images`."""
    os.umask(0o022)  # whatever the caller's is: the sandbox's user reads these files


@main.command()
def status() -> None:
    """Exit with 0 when every root file system is there and made by the current recipe; otherwise say what is not."""
    manifest = ImageStore(Paths.of(os.environ).images).manifest(PYTHON.name)
    if manifest is None or manifest.recipe != PYTHON.digest:
        click.echo(f"{PYTHON.name}: {'not built' if manifest is None else 'made by an older recipe'}")
        sys.exit(1)


@main.command()
def ensure() -> None:
    """Build the root file systems that are missing or out of date, and print their names."""
    store = ImageStore(Paths.of(os.environ).images)
    with suppress(KeyboardInterrupt):
        try:
            manifest = store.ensure(PYTHON, build_with_debootstrap)
        except (BuildError, UnfitTreeError, OSError) as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{manifest.name}: Python {manifest.python}, {manifest.digest}, in {store.rootfs(manifest)}")
        return
    sys.exit(130)


@main.command()
def verify() -> None:
    """Check every byte of the root file systems against their digests."""
    store = ImageStore(Paths.of(os.environ).images)
    manifest = store.manifest(PYTHON.name)
    if manifest is None:
        raise click.ClickException("there is no python image: make setup")
    try:
        store.verify(manifest)
    except (UnfitTreeError, OSError) as error:
        raise click.ClickException(f"{error}; remove {store.rootfs(manifest).parent} and run make setup") from error
    click.echo(f"{manifest.name}: {manifest.digest} verified")


if __name__ == "__main__":
    main()
