"""`crucible key`: make, list and revoke API keys; administrators only."""

import json
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import click

from crucible_client import results, settings
from crucible_client.cli.failures import Failure, failures
from crucible_client.cli.output import print_json, print_rows, show_time
from crucible_client.sync_client import Client

_AT_ONCE = timedelta(0)


@click.group()
def key() -> None:
    """API keys; for administrators."""


@key.command()
@click.option("--tenant", required=True, help="Whose evaluations it sees and makes.")
@click.option("--admin", is_flag=True, help="May also make and revoke keys.")
@click.option("--description", default="", help="For people.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Writes a new client.toml, mode 0600.")
def create(*, tenant: str, admin: bool, description: str, out: Path | None) -> None:
    """Makes a key.

    Without --out the key alone is printed, this once. With --out FILE it goes into a file of client settings, which
    another user can use as $CRUCIBLE_HOME/client.toml.
    """
    role = results.Role.ADMIN if admin else results.Role.USER
    with failures():
        config = settings.load()
        if out is None:
            with Client(config, retry_for=_AT_ONCE) as client:
                made = client.create_api_key(tenant, role=role, description=description)
            click.echo(made.secret)
        else:
            made = _create_into(out, config, tenant, role, description)
    click.echo(f"made key {made.api_key.id} of tenant {made.api_key.tenant} ({made.api_key.role})", err=True)


def _create_into(
    out: Path, config: settings.ClientSettings, tenant: str, role: results.Role, description: str
) -> results.NewApiKey:
    """The file is made first: a key that cannot be written down would be lost."""
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failure(f"{out} exists; name a new file, so that no key is overwritten") from None
    except OSError as error:
        raise Failure(f"cannot write {out}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            with Client(config, retry_for=_AT_ONCE) as client:
                made = client.create_api_key(tenant, role=role, description=description)
            file.write(_toml(config, made.secret))
    except BaseException:
        with suppress(OSError):
            out.unlink()
        raise
    return made


def _toml(config: settings.ClientSettings, secret: str) -> str:
    lines = {"address": config.address, "api_key": secret}
    if config.ca_file is not None:
        lines["ca_file"] = str(config.ca_file.absolute())
    # A TOML basic string has JSON's escapes.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())


@key.command("list")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")
def list_(*, as_json: bool) -> None:
    """Lists keys, without their secrets, oldest first."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        keys = client.list_api_keys()
    if as_json:
        for one in keys:
            print_json(one, indent=None)
        return
    headers = ("ID", "TENANT", "ROLE", "CREATED", "REVOKED", "DESCRIPTION")
    print_rows(headers, [_row(one) for one in keys])


def _row(one: results.ApiKey) -> tuple[str, ...]:
    times = (show_time(one.create_time), show_time(one.revoke_time))
    return (one.id, one.tenant, one.role.value, *times, one.description)


@key.command()
@click.argument("key_id", metavar="ID")
def revoke(*, key_id: str) -> None:
    """Refuses a key from now on; ID is the key's id, not its secret."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        revoked = client.revoke_api_key(key_id)
    click.echo(f"revoked {revoked.id} of tenant {revoked.tenant}")
