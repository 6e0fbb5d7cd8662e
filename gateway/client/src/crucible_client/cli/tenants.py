"""`crucible tenant`: make tenants, see what they use, change their quotas; administrators only."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from crucible_client.cli.failures import Failure, failures
from crucible_client.cli.output import print_json, print_pairs, print_rows
from crucible_client.cli.sizes import SIZE_OR_0, show_size
from crucible_client.sync_client import Client
from crucible_client.tenants import Quota, Tenant

_AT_ONCE = timedelta(0)
_COUNT = click.IntRange(0, 1 << 50)


@click.group()
def tenant() -> None:
    """Tenants and their quotas; for administrators."""


def _quotas(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option("--weight", type=click.IntRange(1, 1000), help="Part in the fair share of slots."),
        click.option("--max-priority", type=click.IntRange(-100, 100), help="That evaluations may ask for."),
        click.option("--max-running", type=_COUNT, help="Runs under way; the rest waits. 0: no bound, as below."),
        click.option("--max-queued", type=_COUNT, help="Evaluations that wait."),
        click.option("--evaluations-per-day", type=_COUNT, help="Created since midnight UTC."),
        click.option("--cpu-seconds-per-day", type=click.IntRange(0, 1 << 40), help="Used since midnight UTC."),
        click.option("--max-stored-bytes", type=SIZE_OR_0, help="Programs and output, as 10GiB."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@tenant.command()
@click.argument("name")
@_quotas
def create(*, name: str, **quotas: int | None) -> None:
    """Makes the tenant NAME with quotas. A tenant without quotas is made by its first key."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        made = client.create_tenant(name, Quota(**quotas))
    click.echo(f"made tenant {made.name}")


@tenant.command("list")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")
def list_(*, as_json: bool) -> None:
    """Lists tenants with what they use; after a / what they may use, where there is a quota."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        tenants = client.list_tenants()
    if as_json:
        for one in tenants:
            print_json(one, indent=None)
        return
    headers = ("TENANT", "WEIGHT", "PRIORITY", "RUNNING", "QUEUED", "TODAY", "CPU TODAY", "STORED")
    print_rows(headers, [_row(one) for one in tenants])


@tenant.command()
@click.argument("name")
@_quotas
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def quota(*, name: str, as_json: bool, **quotas: int | None) -> None:
    """Changes the quotas of the tenant NAME that are given, and shows all of them with what is used."""
    wanted = Quota(**quotas)
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        if wanted != Quota():
            one = client.set_quota(name, wanted)
        else:
            found = [one for one in client.list_tenants() if one.name == name]
            if not found:
                raise Failure(f"there is no tenant {name}")
            one = found[0]
    if as_json:
        print_json(one)
    else:
        titles = ("tenant", "weight", "highest priority", "running", "queued", "created today", "CPU today", "stored")
        print_pairs(zip(titles, _row(one), strict=True))


def _row(one: Tenant) -> tuple[str, ...]:
    quota, use = one.quota, one.use
    return (
        one.name,
        str(quota.weight),
        str(quota.max_priority),
        _part(use.running, quota.max_running),
        _part(use.queued, quota.max_queued),
        _part(use.evaluations_today, quota.evaluations_per_day),
        _part(use.cpu_seconds_today, quota.cpu_seconds_per_day, lambda seconds: f"{seconds:.0f} s"),
        _part(use.stored_bytes, quota.max_stored_bytes, lambda size: show_size(int(size))),
    )


def _part(use: float, quota: int | None, show: Callable[[float], str] = str) -> str:
    return f"{show(use)}/{show(quota)}" if quota else show(use)
