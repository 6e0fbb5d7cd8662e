"""`crucible submit`: one program, without waiting for it."""

from datetime import timedelta
from typing import Any

import click

from crucible_client.cli.failures import USAGE, failures
from crucible_client.cli.output import print_json
from crucible_client.cli.spec_options import spec_of, spec_options
from crucible_client.sync_client import Client


@click.command()
@spec_options
@click.option("--request-id", help="Makes the command repeatable: the same id returns the first evaluation.")
@click.option("--json", "as_json", is_flag=True, help="Prints the record instead of the name.")
def submit(*, request_id: str | None, as_json: bool, **options: Any) -> None:
    """Queues one program and prints the evaluation's name."""
    with failures(invalid=USAGE), Client.from_settings(retry_for=timedelta(0)) as client:
        evaluation = client.submit(spec_of(**options), request_id=request_id)
        if as_json:
            print_json(evaluation)
        else:
            click.echo(evaluation.name)
