"""`crucible doctor`: what this machine can run, and how to mend what it cannot."""

import os
import sys

import click
from rich.console import Console
from rich.table import Table

from crucible_deploy.checks import Check, as_json, is_fit, run_checks
from crucible_deploy.layout import Layout, LayoutError

_STYLES = {"ok": "green", "todo": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_record", is_flag=True, help="Print the checks as JSON.")
def doctor(*, as_record: bool) -> None:
    """Check what this machine needs to run Crucible, and say how to mend what is missing.

    Changes nothing. As root it starts one real sandbox. The exit code is 0 only when Crucible can run here.
    """
    try:
        layout = Layout.of(os.environ)
    except LayoutError as error:
        raise click.UsageError(str(error)) from error
    checks = list(run_checks(layout))
    if as_record:
        click.echo(as_json(checks))
    elif sys.stdout.isatty():
        Console().print(_table(checks))
    else:
        click.echo(_lines(checks))
    if not is_fit(checks):
        if not as_record:
            click.echo("This machine cannot run Crucible yet.", err=True)
        sys.exit(1)
    if not as_record:
        click.echo("This machine can run Crucible.")


def _table(checks: list[Check]) -> Table:
    table = Table("", "check", "found", "how to mend it", box=None)
    for check in checks:
        style = _STYLES[check.status]
        table.add_row(f"[{style}]{check.status}[/]", check.name, check.found, check.mend)
    return table


def _lines(checks: list[Check]) -> str:
    lines = []
    for check in checks:
        lines.append(f"{check.status:5} {check.name:10} {check.found}")
        if check.mend:
            lines.append(f"{'':17}to mend it: {check.mend}")
    return "\n".join(lines)
