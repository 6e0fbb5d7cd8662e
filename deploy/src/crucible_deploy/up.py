"""`crucible up`: every process of this machine, each as its own user."""

import asyncio
import os
import signal
import subprocess
import sys

import click

from crucible_deploy import daemon, prepare, stack
from crucible_deploy.layout import Layout
from crucible_rpc import logs


class StartFailedError(click.ClickException):
    """One clear error on stderr, exit code 1."""

    def show(self, file: object = None) -> None:
        """Prints it."""
        del file
        click.echo(f"crucible up: {self.message}", err=True)


@click.command()
@click.option("--detach", is_flag=True, help="Return when all processes are ready; `crucible down` stops them.")
@click.option("--unsafe", is_flag=True, help="Also offer the engine `subprocess`, which isolates nothing.")
@click.option("--slots", type=click.IntRange(1, 1024), help="Programs that run at once. Default: one per CPU.")
@click.option("--pool", type=click.IntRange(0, 1000), help="Sandboxes booted ahead; 0: none. Default: 4.")
@click.option(
    "--keep", metavar="DURATION", help="Delete evaluations this long after their end, as 720h. Default: never."
)
def up(detach: bool, unsafe: bool, slots: int | None, pool: int | None, keep: str | None) -> None:
    """Start all of Crucible on this machine, as root.

    Makes users, keys and environments at the first start. The address and the admin key are in client.toml in
    $CRUCIBLE_HOME (default /var/lib/crucible), where the other commands find them.
    """
    options = stack.Options(unsafe=unsafe, slots=slots, pool=pool, keep=keep)
    try:
        layout = Layout.of(os.environ)
        lock = prepare.take_lock(layout)
        specs = prepare.prepare(layout, options, say=_say)
        if detach:
            start_detached(layout, options, lock)
            _tell_how_to_call(layout)
        else:
            asyncio.run(daemon.serve(layout, specs, say=_say_line, ready=lambda: _tell_how_to_call(layout)))
    except prepare.EXPECTED_ERRORS as error:
        raise StartFailedError(str(error)) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StartFailedError(f"{where}{error.strerror or error}") from None


def start_detached(layout: Layout, options: stack.Options, lock: int) -> None:
    """Starts a supervisor that outlives this process and returns when all its processes are ready.

    Raises:
        PrepareError: it failed; nothing is left running.
    """
    reading, writing = os.pipe()
    with (layout.log / "supervisor.log").open("ab") as log, os.fdopen(reading) as answer:
        process = subprocess.Popen(
            daemon.arguments(layout, options, lock=lock, ready=writing),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            pass_fds=(lock, writing),
            start_new_session=True,
        )
        os.close(writing)
        try:
            text = answer.read()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    if text != daemon.READY:
        process.wait()
        raise prepare.PrepareError(text or f"the supervisor ended with no word; see {log.name}")


def _tell_how_to_call(layout: Layout) -> None:
    click.echo(f"Crucible is up at {layout.address('gateway')} (TLS).")
    click.echo(f"Address, admin key and authority: {layout.client_file}. Try: crucible run FILE, crucible status.")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _say_line(name: str, line: str) -> None:
    sys.stderr.write(f"{name:>10} | {logs.escaped(line)}\n")
