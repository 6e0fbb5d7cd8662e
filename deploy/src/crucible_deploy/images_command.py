"""`crucible images`: the root file systems of this machine's sandboxes, for the people who keep them. Root, local."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from crucible_client.cli.output import print_json, print_rows, show_time
from crucible_client.cli.sizes import SIZE, show_size
from crucible_deploy import environments, unpacking
from crucible_deploy.failures import BuildError
from crucible_deploy.images import ImageInUseError, ImageStore, Manifest, build_with_debootstrap, is_name
from crucible_deploy.interrupt import raised_by_signals
from crucible_deploy.layout import Layout, LayoutError
from crucible_deploy.paths import mark
from crucible_deploy.rootfs import RECIPES
from crucible_deploy.spec import module_command
from crucible_deploy.tree_digest import UnfitTreeError
from crucible_deploy.users import UsersError

_EXPECTED = (BuildError, ImageInUseError, UnfitTreeError, UsersError, environments.EnvironmentsError, OSError)
_NEXT_START = "An executor that runs now sees it after its next start (crucible down, crucible up)."
_BOUNDS = unpacking.UnpackBounds()
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def images() -> None:
    """Keep the root file systems that programs run in. On the executor's machine, as root."""


@images.command()
@click.argument("names", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Every image that there is a recipe for.")
@_JSON
def build(*, names: tuple[str, ...], all_: bool, as_json: bool) -> None:
    """Build images from their recipes; one that is up to date is left as it is.

    A recipe is a Debian suite, packages, and a lock file of Python wheels where it has one. Needs the network.
    """
    if bool(names) == all_:
        raise click.UsageError(f"say which, or --all; there are recipes for: {', '.join(RECIPES)}")
    if unknown := [name for name in names if name not in RECIPES]:
        raise click.UsageError(f"there is no recipe {unknown[0]!r}, only: {', '.join(RECIPES)}")
    with _changing() as store:
        made = []
        for name in names or RECIPES:
            before = store.manifest(name)
            if before is None or before.recipe != RECIPES[name].digest:
                click.echo(f"building {name} (one to three minutes)", err=True)
            made.append(store.complete(store.ensure(RECIPES[name], build_with_debootstrap)))
    _show_made(made, as_json=as_json)


@images.command(name="import")
@click.argument("name")
@click.argument("source", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.option("--format", "format_", type=click.Choice(("auto", "rootfs", "docker", "oci")), default="auto")
@click.option("--tag", help="Which image, when the archive holds several.")
@click.option("--max-size", type=SIZE, default="4GiB", show_default=True, help="Of all files together, unpacked.")
@click.option("--max-entries", type=click.IntRange(1, 10_000_000), default=_BOUNDS.entries, show_default=True)
@click.option("--max-seconds", type=click.IntRange(1, 86_400), default=_BOUNDS.seconds, show_default=True)
@click.option("--replace", is_flag=True, help="Take the name from the image that has it.")
@_JSON
def import_(
    *,
    name: str,
    source: Path,
    format_: str,
    tag: str | None,
    max_size: int,
    max_entries: int,
    max_seconds: int,
    replace: bool,
    as_json: bool,
) -> None:
    """Import an image from SOURCE under NAME.

    SOURCE is a tar archive (also gzipped) of a root file system, of `docker save` or of an OCI image layout; the folder
    of an OCI image layout; or - for standard input. It is unpacked by a process without any privilege. Devices, pipes,
    set-id bits, owners and extended attributes are left out.
    """
    if not is_name(name):
        raise click.UsageError(f"{name[:80]!r} is no name for an image: a-z, 0-9, '.', '_' and '-', at most 63")
    bounds = unpacking.UnpackBounds(max_size, max_entries, max_seconds)
    unpacked: list[unpacking.Unpacked] = []

    def make(work: Path) -> dict[str, object]:
        one = unpacking.unpack(source, work, format_=format_, tag=tag, bounds=bounds)
        unpacked.append(one)
        return {"source": f"{one.format} {one.config}".strip()}

    with _changing() as store:
        if name in store.names() and not replace:
            raise click.ClickException(f"there is an image {name} already; --replace takes its name away")
        made = store.add(name, make)
    left_out = unpacked[0].left_out
    _show_made([made], as_json=as_json, note=f"{left_out} devices and pipes were left out." if left_out else "")


@images.command(name="list")
@_JSON
def list_(*, as_json: bool) -> None:
    """List the images: digest, size, when and from what they were made, and which runtimes use them."""
    layout = _layout()
    store = ImageStore(layout.paths.images)
    used = runtimes_by_image(layout)
    rows = [_described(store, name, used.get(name, [])) for name in sorted({*store.names(), *RECIPES})]
    if as_json:
        print_json({"images": rows, "unused": [str(path) for path in store.unused()]})
        return
    print_rows(("NAME", "DIGEST", "SIZE", "MADE", "FROM", "RUNTIMES"), (_cells(row) for row in rows))
    if unused := store.unused():
        click.echo(
            f"{len(unused)} trees have no name any more; remove them with `crucible images rm --unused`", err=True
        )


@images.command()
@click.argument("names", nargs=-1)
@_JSON
def check(*, names: tuple[str, ...], as_json: bool) -> None:
    """Compare images with their digests, byte by byte; all of them when none is named."""
    with _changing() as store:
        faults = {name: _fault(store, name) for name in names or store.names()}
    if as_json:
        print_json({"images": [{"name": name, "ok": not fault, "fault": fault} for name, fault in faults.items()]})
    else:
        print_rows(("NAME", "FOUND"), ((name, fault or "verified") for name, fault in faults.items()))
    if any(faults.values()):
        sys.exit(1)


@images.command()
@click.argument("names", nargs=-1)
@click.option("--unused", is_flag=True, help="Remove only the trees that have lost their names.")
@click.option("--force", is_flag=True, help="Also an image that a runtime needs, which cannot be used then.")
@_JSON
def rm(*, names: tuple[str, ...], unused: bool, force: bool, as_json: bool) -> None:
    """Remove images, and every tree that no name refers to then.

    An image that a runtime needs is kept, unless --force is given; one that a running executor uses is always kept.
    """
    if bool(names) == unused:
        raise click.UsageError("say which, or --unused")
    needed = {} if force or not names else runtimes_by_image(_layout())
    with _changing() as store:
        for name in names:
            if name not in store.names():
                raise click.ClickException(f"there is no image {name[:80]!r}; `crucible images list` lists them")
            if runtimes := needed.get(name):
                raise click.ClickException(
                    f"the image {name} is needed by the runtime {', '.join(runtimes)}; --force removes it all the same"
                )
        for name in names:
            try:
                store.remove(name)
            except ImageInUseError as error:
                raise click.ClickException(f"the image {name} is not removed: {error}") from None
        trees = store.remove_unused()
    if as_json:
        print_json({"removed": list(names), "trees": [tree.name for tree in trees]})
        return
    for what in (*(f"image {name}" for name in names), *(f"tree {tree.name}" for tree in trees)):
        click.echo(f"removed {what}")


def runtimes_by_image(layout: Layout) -> dict[str, list[str]]:
    """The names of the runtimes that need each image, as the executor itself says.

    Raises:
        click.ClickException: no executor is installed that says it.
    """
    for python in (environments.interpreter(layout, "executor"), Path(sys.executable)):
        if not python.is_file():
            continue
        command = module_command(python, "crucible_executor.runtimes")
        done = subprocess.run(command, env={}, cwd="/", capture_output=True, timeout=60, check=False)
        try:
            found: dict[str, list[str]] = {}
            for one in json.loads(done.stdout) if done.returncode == 0 else ():
                found.setdefault(one["image"], []).append(one["name"])
        except (ValueError, KeyError, TypeError):
            continue
        if found:
            return found
    raise click.ClickException("no executor is installed that could say which images its runtimes need: make setup")


def _described(store: ImageStore, name: str, runtimes: list[str]) -> dict[str, Any]:
    manifest = store.manifest(name)
    if manifest is None:
        known = name in RECIPES and name not in store.names()
        fault = f"not built: crucible images build {name}" if known else "its manifest or tree cannot be used"
        return {"name": name, "runtimes": runtimes, "fault": fault}
    recipe = RECIPES.get(name)
    outdated = recipe is not None and bool(manifest.recipe) and manifest.recipe != recipe.digest
    return {**asdict(store.complete(manifest)), "runtimes": runtimes, "fault": "older recipe" if outdated else ""}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    runtimes = ", ".join(row["runtimes"]) or "-"
    if "digest" not in row:
        return row["name"], "-", "-", "-", row["fault"], runtimes
    made = show_time(datetime.fromisoformat(row["created"]))
    origin = row["source"].replace("sha256:", "")[:24] or row["fault"] or "recipe"
    return row["name"], row["digest"][:19] + "…", show_size(row["bytes"]), made, origin, runtimes


def _fault(store: ImageStore, name: str) -> str:
    manifest = store.manifest(name)
    if manifest is None:
        return "there is no such image" if name not in store.names() else "its manifest or tree cannot be used"
    try:
        store.verify(manifest)
        store.verify_packed(manifest)
    except (UnfitTreeError, OSError) as error:
        return f"{error}; remove it with `crucible images rm --force {name}` and make it again"
    return ""


def _show_made(made: list[Manifest], *, as_json: bool, note: str = "") -> None:
    if as_json:
        print_json({"images": [asdict(one) for one in made]})
        return
    for one in made:
        click.echo(f"{one.name}: {one.digest}, {show_size(one.bytes)}")
    click.echo("\n".join(line for line in (note, _NEXT_START) if line), err=True)


def _layout() -> Layout:
    try:
        return Layout.of(os.environ)
    except LayoutError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def _changing() -> Iterator[ImageStore]:
    """The store, for this command alone; what goes wrong is one line, and an end by a signal is one with clean-up."""
    layout = _layout()
    if os.geteuid() != 0:
        raise click.ClickException("`crucible images` must be started as root: the store belongs to root")
    os.umask(0o022)
    try:
        with raised_by_signals(), _lock(layout.paths.cache):
            yield ImageStore(layout.paths.images)
    except _EXPECTED as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _lock(cache: Path) -> Iterator[None]:
    """The lock that set-up takes too: one of us at a time."""
    if not cache.is_dir():
        cache.mkdir(parents=True)
        mark(cache)
    descriptor = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            click.echo("waiting for set-up or another command for images to end", err=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
