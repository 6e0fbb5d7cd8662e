"""`crucible artifacts`: the files that programs left in `/workspace/out`.

A program chose their names. On a terminal they are shown escaped, and in a folder only such are written that stay
inside.
"""

import os
from contextlib import suppress
from pathlib import Path

import click

from crucible_client.cli.failures import Failure, failures
from crucible_client.cli.output import print_json, print_rows, printable
from crucible_client.results import Artifact
from crucible_client.sync_client import Client


@click.group()
def artifacts() -> None:
    """The files that programs left in /workspace/out."""


@artifacts.command(name="list")
@click.argument("evaluation")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def list_(*, evaluation: str, as_json: bool) -> None:
    """Lists the files of a finished evaluation."""
    with failures(), Client.from_settings() as client:
        listed = client.list_artifacts(evaluation)
    if as_json:
        print_json(listed)
        return
    print_rows(
        ("PATH", "BYTES", "KEPT", "SHA-256"),
        ((one.path, str(one.bytes_total), _kept(one), one.sha256.hex()) for one in listed.files),
    )
    if listed.omitted:
        click.echo(f"{listed.omitted} more were there and were not kept (links, too many, or no plain files)", err=True)
    if listed.not_collected:
        click.echo(f"not all was collected: {printable(listed.not_collected)}", err=True)


@artifacts.command()
@click.argument("evaluation")
@click.argument("path", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="With PATH the file to write, otherwise the folder; default: its last part, or the folder that one is in.",
)
def get(*, evaluation: str, path: str | None, out: Path | None) -> None:
    """Fetches one file, or all of them into a folder; each is checked against its SHA-256."""
    with failures(), Client.from_settings() as client:
        if path is not None:
            target = out if out is not None else _inside(Path(), path.rpartition("/")[2])
            _show(_fetched(client, evaluation, path, target), target)
            return
        folder = Path() if out is None else out
        for one in client.list_artifacts(evaluation).files:
            target = _inside(folder, one.path)
            _make_folders(folder, one.path)
            _show(_fetched(client, evaluation, one.path, target), target)


def _fetched(client: Client, evaluation: str, path: str, target: Path) -> Artifact:
    try:
        return client.download_artifact(evaluation, path, target)
    except OSError as error:
        raise Failure(f"cannot write {printable(str(target))}: {error.strerror}") from None


def _inside(folder: Path, path: str) -> Path:
    """Where a file goes below a folder; a path that could lead out of it is refused, and so is one through a link."""
    parts = path.split("/")
    if not path or {"", ".", ".."}.intersection(parts) or "\0" in path:
        raise Failure(
            f"the artifact {printable(path)!r} has a path that could lead out of the folder; name it with --out"
        )
    target = folder
    for part in parts:
        target /= part
        if target.is_symlink():
            raise Failure(f"{printable(str(target))} is a link; remove it or choose another folder")
    if target.is_dir():
        raise Failure(f"{printable(str(target))} is a folder; remove it or choose another one")
    return target


def _make_folders(folder: Path, path: str) -> None:
    """Makes the folders of a path one by one, and goes through none that is a link."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in path.split("/")[:-1]:
                descriptor = _entered(descriptor, part)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Failure(f"cannot make the folders of {printable(path)}: {error.strerror}") from None


def _entered(descriptor: int, part: str) -> int:
    with suppress(FileExistsError):
        os.mkdir(part, dir_fd=descriptor)
    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    os.close(descriptor)
    return inner


def _kept(one: Artifact) -> str:
    return f"{one.bytes_kept} (cut)" if one.truncated else str(one.bytes_kept)


def _show(one: Artifact, target: Path) -> None:
    cut = f", cut: the program left {one.bytes_total}" if one.truncated else ""
    click.echo(f"{printable(str(target))}: {one.bytes_kept} bytes{cut}")
