"""`crucible status`: how this Crucible is."""

from datetime import timedelta

import click

from crucible_client import results
from crucible_client.cli.failures import failures
from crucible_client.cli.output import print_json, print_rows, show_time
from crucible_client.sync_client import Client


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def status(*, as_json: bool) -> int:
    """Shows whether each process answers, and how much work there is. Exit code 1 when one does not."""
    with failures(), Client.from_settings(retry_for=timedelta(0)) as client:
        answer = client.status()
    if as_json:
        print_json(answer)
    else:
        print_rows(("PROCESS", "STATE", "SLOTS", "LAST SEEN", "DETAIL"), [_row(one) for one in answer.processes])
        click.echo(_queue(answer.queue))
    return 0 if answer.queue is not None and all(one.serving for one in answer.processes) else 1


def _row(process: results.ProcessStatus) -> tuple[str, ...]:
    state = "serving" if process.serving else "NOT SERVING"
    slots = str(process.slots) if process.slots else "-"
    return (process.process, state, slots, show_time(process.last_seen_time), process.detail or "-")


def _queue(queue: results.QueueStatus | None) -> str:
    if queue is None:
        return "queue: unknown, storage does not answer"
    return f"queue: {queue.queued} queued, {queue.running} running, {queue.finished} finished"
