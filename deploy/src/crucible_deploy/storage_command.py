"""`crucible storage`: the database of this machine's stack, for its operator. Root, local.

The work is done by storage's own code, in its environment, as its own user, in a child process; nothing here knows it.
Files of backups are opened here: that user could neither read nor write where an operator keeps them.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import click

from crucible_deploy import environments, stack, users
from crucible_deploy.interrupt import raised_by_signals
from crucible_deploy.layout import Layout, LayoutError
from crucible_deploy.spec import BASE_ENVIRONMENT, module_command
from crucible_deploy.users import Account, UsersError

_MODULE = "crucible_storage.maintenance"
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_FAULTS = click.option(
    "--faults", type=click.IntRange(1, 100_000), default=20, show_default=True, help="How many to show."
)


@click.group()
def storage() -> None:
    """Look after the database: migrate, check, back up, restore. On storage's machine, as root."""


@storage.command()
def migrate() -> int:
    """Bring the database of a stopped storage to the installed version's schema. Starting storage does the same."""
    return _run("migrate")


@storage.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--digests", is_flag=True, help="Read all artifacts, and compare their digests too.")
@_FAULTS
@_JSON
def check(*, file: Path | None, digests: bool, faults: int, as_json: bool) -> int:
    """Prove that the database is whole, or that the backup in FILE is.

    The artifact store must have what the database refers to; that of a backup is not looked at. Every evaluation is
    made again from its events and compared; output, signatures, counts and references are verified. Of a storage that
    runs a copy is checked, which needs free disk of twice the database's size; a backup needs once its own. The exit
    code is 0 only when nothing was wrong.
    """
    arguments = ["check", "--faults", str(faults), *(["--json"] if as_json else [])]
    if file is None:
        return _run(*arguments, *(["--digests"] if digests else []))
    if digests:
        raise click.UsageError("a backup has no artifacts; check it without --digests")
    with _opened(file) as source:
        return _run(*arguments, "--backup", stdin=source)


@storage.command()
@click.argument("file", type=click.Path(path_type=Path))
def backup(*, file: Path) -> int:
    """Write a backup to FILE, which must not exist. Storage may run; what is committed when it begins is in it.

    A backup holds the programs, their environment variables and output, and the digests of the API keys: it is readable
    by root alone. The keys that storage and executors sign with are not in it.
    """
    partial = file.with_name(f"{file.name}.partial")
    if file.exists():
        raise click.ClickException(f"{file} exists; name a new file, so that no backup is overwritten")
    try:
        with raised_by_signals(), _made(partial) as out:
            code = _run("backup", stdout=out)
            if code == 0:
                os.fsync(out.fileno())
                os.link(partial, file)  # fails where somebody else made it meanwhile
        return code
    except OSError as error:
        where = error.filename2 or error.filename or file
        raise click.ClickException(f"{where} cannot be written: {error.strerror}") from None


@storage.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def restore(*, file: Path) -> int:
    """Make the backup in FILE the database of a stopped storage that has none.

    It is checked as a whole first, and put in place only when nothing is wrong.
    """
    with _opened(file) as source:
        return _run("restore", stdin=source)


@storage.command()
@_JSON
def usage(*, as_json: bool) -> int:
    """Show where the bytes are: by table, by tenant, the largest evaluations, and what is free."""
    return _run("usage", *(["--json"] if as_json else []))


def _run(*arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None) -> int:
    """Runs storage's command to its end; Ctrl-C reaches it too, and it is given the time to clean up."""
    if os.geteuid() != 0:
        raise click.ClickException("`crucible storage` must be started as root: it acts as storage's own user")
    layout, account = _installed()
    environment = BASE_ENVIRONMENT | stack.storage_environment(layout)
    command = [*users.without_privilege(account), *module_command(environments.interpreter(layout, "storage"), _MODULE)]
    with (
        raised_by_signals(),
        subprocess.Popen(
            [*command, *arguments],
            env=environment,
            cwd="/",
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout,
            umask=0o077,
        ) as child,
    ):
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)


def _installed() -> tuple[Layout, Account]:
    try:
        layout = Layout.of(os.environ)
        account = users.existing("storage")
    except LayoutError as error:
        raise click.UsageError(str(error)) from error
    except UsersError as error:
        raise click.ClickException(str(error)) from error
    if not environments.interpreter(layout, "storage").is_file():
        raise click.ClickException(f"storage is not installed under {layout.home}; `crucible up` installs it")
    return layout, account


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from None


@contextmanager
def _made(file: Path) -> Iterator[IO[bytes]]:
    """A new file that root alone can read; its name is gone at the end."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
    finally:
        with suppress(FileNotFoundError):
            file.unlink()
