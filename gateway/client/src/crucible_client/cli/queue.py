"""`crucible queue`: look at the queue of all tenants, pause it, drain it, retry dead letters; administrators only."""

import time
from datetime import UTC, datetime, timedelta

import click

from crucible_client import tenants
from crucible_client.cli.failures import Failure, failures
from crucible_client.cli.output import print_json, print_rows, printable, show_time
from crucible_client.cli.sizes import DURATION
from crucible_client.sync_client import Client

_AT_ONCE = timedelta(0)
_LOOK_SECONDS = 0.5
_TENANT = click.option("--tenant", default="", help="Only this tenant's work; default: everybody's.")
_REASON = click.option("--reason", default="", help="For people; `queue status` shows it.")


@click.group()
def queue() -> None:
    """The queue of all tenants; for administrators."""


@queue.command()
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def status(*, as_json: bool) -> None:
    """Shows how much waits and runs, by tenant, and what is paused."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        now = client.queue()
    if as_json:
        print_json(now)
        return
    paused = {pause.tenant for pause in now.pauses}
    print_rows(
        ("TENANT", "WEIGHT", "QUEUED", "RUNNING", "OLDEST WAITS", "PAUSED"), [_row(one, paused) for one in now.tenants]
    )
    click.echo(f"queue: {now.queued} of at most {now.max_queued} queued, {now.running} running")
    for pause in now.pauses:
        click.echo(_paused(pause))
    if now.dead_letters:
        click.echo(f"{now.dead_letters} dead letters; see `crucible queue dead`")


def _row(one: tenants.TenantQueue, paused: set[str]) -> tuple[str, ...]:
    running = f"{one.running}/{one.max_running}" if one.max_running else str(one.running)
    waits = "-"
    if one.oldest_create_time is not None:
        waits = str(timedelta(seconds=max(0, int((datetime.now(UTC) - one.oldest_create_time).total_seconds()))))
    return (one.tenant, str(one.weight), str(one.queued), running, waits, "yes" if paused & {"", one.tenant} else "-")


def _paused(pause: tenants.QueuePause) -> str:
    why = f": {pause.reason}" if pause.reason else ""
    return printable(f"paused for {pause.tenant or 'everybody'} since {show_time(pause.time)} by {pause.by}{why}")


@queue.command()
@_TENANT
@_REASON
def pause(*, tenant: str, reason: str) -> None:
    """Gives no more work to executors until `queue resume`. What runs goes on, and new work is accepted."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        click.echo(_paused(client.pause_queue(tenant=tenant, reason=reason)))


@queue.command()
@_TENANT
def resume(*, tenant: str) -> None:
    """Ends a pause."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        ended = client.resume_queue(tenant=tenant)
    click.echo(f"resumed for {tenant or 'everybody'}" if ended else f"{tenant or 'everybody'}: nothing was paused")


@queue.command()
@_TENANT
@_REASON
@click.option("--within", type=DURATION, help="Waits so long at most, as 10m.")
def drain(*, tenant: str, reason: str, within: timedelta | None) -> None:
    """Pauses, and waits until nothing runs any more.

    The queue stays paused: end that with `queue resume`, also after Ctrl-C. Exit code 1 when something still runs.
    """
    end = None if within is None else time.monotonic() + within.total_seconds()
    with failures(), Client.from_settings(retry_for=timedelta(seconds=30)) as client:
        click.echo(_paused(client.pause_queue(tenant=tenant, reason=reason)), err=True)
        told = -1
        while left := _running(client.queue(), tenant):
            if left != told:
                click.echo(f"{left} still running", err=True)
                told = left
            if end is not None and time.monotonic() >= end:
                raise Failure(f"{left} evaluations still run; the queue stays paused")
            time.sleep(_LOOK_SECONDS)
    click.echo("drained: nothing runs; `crucible queue resume` ends the pause")


def _running(now: tenants.Queue, tenant: str) -> int:
    if not tenant:
        return now.running
    return sum(one.running for one in now.tenants if one.tenant == tenant)


@queue.command()
@_TENANT
@click.option("--retried", is_flag=True, help="Those that were retried as well.")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line, with the failed attempts.")
def dead(*, tenant: str, retried: bool, as_json: bool) -> None:
    """Lists the evaluations that ended as infrastructure failures, the newest end first."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        letters = list(client.dead_letters(tenant=tenant, retried=retried))
    if as_json:
        for letter in letters:
            print_json(letter, indent=None)
        return
    headers = ("NAME", "TENANT", "ENDED", "ATTEMPTS", "REASON", "RETRIED AS")
    print_rows(headers, [_dead_row(letter) for letter in letters])


def _dead_row(letter: tenants.DeadLetter) -> tuple[str, ...]:
    ended = show_time(letter.end_time)
    return (
        letter.evaluation,
        letter.tenant,
        ended,
        str(letter.attempts),
        letter.reason,
        letter.retried_as or "-",
    )


@queue.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead letters that were not retried.")
@_TENANT
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")
def retry(*, names: tuple[str, ...], everything: bool, tenant: str, as_json: bool) -> None:
    """Makes a new evaluation of each dead letter NAME, or of --all, and prints its name.

    Each is made once: repeated, the same new evaluation is named. Ends at the first that is refused.
    """
    if bool(names) == everything:
        raise click.UsageError("give the names of dead letters, or --all")
    if names and tenant:
        raise click.UsageError("--tenant goes with --all")
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        chosen = [one.evaluation for one in client.dead_letters(tenant=tenant)] if everything else list(names)
        for name in reversed(chosen) if everything else chosen:
            made = client.retry_dead_letter(name)
            if as_json:
                print_json({"evaluation": name, "retried_as": made.evaluation, "repeated": made.repeated}, indent=None)
            else:
                click.echo(made.evaluation)
