"""`crucible down`: stops what `crucible up` started, and waits until it is gone."""

import os
import signal

import click

from crucible_deploy import record
from crucible_deploy.layout import Layout, LayoutError

STOP_SECONDS = 90.0


@click.command()
def down() -> None:
    """Stop all of Crucible on this machine, as root. Nothing that was accepted is lost."""
    try:
        layout = Layout.of(os.environ)
    except LayoutError as error:
        raise click.ClickException(str(error)) from None
    if os.geteuid() != 0:
        raise click.ClickException("`crucible down` must be started as root, as `crucible up` was")
    click.echo(stop(layout))


def stop(layout: Layout) -> str:
    """Stops the supervisor of this home and everything it runs; says what it found.

    Raises:
        ClickException: it does not end.
    """
    running = record.read(layout) if layout.run.is_dir() else None
    if running is None:
        return f"Crucible is not running in {layout.home}."
    running.supervisor.signal(signal.SIGTERM)
    if not running.supervisor.wait_gone(STOP_SECONDS):
        raise click.ClickException(f"the supervisor, process {running.supervisor.pid}, does not end; see {layout.log}")
    for name, process in running.processes.items():
        process.signal(signal.SIGTERM)  # left only when the supervisor itself was killed
        if not process.wait_gone(STOP_SECONDS):
            raise click.ClickException(f"process {process.pid}, {name}, does not end; end it by hand")
    record.remove(layout)
    return "Crucible is down."
