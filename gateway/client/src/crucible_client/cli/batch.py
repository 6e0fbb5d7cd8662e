"""`crucible batch`: many programs in one command."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import click

from crucible_client import results
from crucible_client.async_client import AsyncClient
from crucible_client.batches import Batch, BatchItem, BatchOrder, BatchResult, BatchState
from crucible_client.cli import exits, interruptible
from crucible_client.cli.batch_file import MAX_LINE_BYTES, items_of, read_items
from crucible_client.cli.failures import INTERRUPTED, USAGE, Failure, failures
from crucible_client.cli.output import print_json, print_pairs, print_rows, printable, show_time
from crucible_client.cli.sizes import PAIR
from crucible_client.sync_client import Client

_AT_ONCE = timedelta(0)
_json = click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
_lines = click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")


@click.group()
def batch() -> None:
    """Works with batches: many evaluations in one."""


@batch.command()
@click.argument("file", metavar="FILE|-")
@click.option("--request-id", help="Makes the command repeatable: it goes on with the batch of the same id.")
@click.option("--label", type=PAIR, multiple=True, metavar="KEY=VALUE", help="Of the batch.")
@click.option("--start-when-complete", is_flag=True, help="Nothing runs before all is stored.")
@click.option("--watch", "watching", is_flag=True, help="Waits until it has ended; exit code 1 unless all succeeded.")
@_json
def submit(
    *,
    file: str,
    request_id: str | None,
    label: tuple[tuple[str, str], ...],
    start_when_complete: bool,
    watching: bool,
    as_json: bool,
) -> int:
    """Stores a batch of programs, one JSON object per line of FILE, and prints its name.

    Each has `code`, `files` or `path`, and as needed `key`, `after`, `run_anyway`, `runtime`, `args`, `env`, `stdin`,
    `limits`, `engine`, `priority`, `labels`; docs/BATCHES.md shows them.
    """
    with failures(invalid=USAGE), Client.from_settings() as client:
        made = client.create_batch(
            _items(file), request_id=request_id, labels=dict(label), start_when_complete=start_when_complete
        )
    if not watching:
        print_json(made) if as_json else click.echo(made.name)
        return 0
    click.echo(made.name, err=True)
    return _report(_watched(made.name), as_json=as_json)


def _items(file: str) -> Iterator[BatchItem]:
    if file != "-":
        return read_items(Path(file))
    lines = iter(lambda: sys.stdin.buffer.readline(MAX_LINE_BYTES + 1), b"")
    return items_of(lines, "the standard input", Path())


@batch.command()
@click.argument("name")
@_json
def status(*, name: str, as_json: bool) -> None:
    """Shows how far a batch is."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        found = client.get_batch(name)
    _print(found, as_json=as_json)


@batch.command()
@click.argument("name")
@_json
def watch(*, name: str, as_json: bool) -> int:
    """Shows how far a batch is until it has ended; exit code 1 unless all succeeded."""
    return _report(_watched(name), as_json=as_json)


@batch.command("results")
@click.argument("name")
@click.option("--order", type=click.Choice(["end", "item"]), default="end", show_default=True, help="Of the results.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="The cursor of the last result that is known.")
@_lines
def results_(*, name: str, order: str, after: int, as_json: bool) -> None:
    """Prints results as they come, until the batch has ended."""
    with failures(), Client.from_settings() as client:
        try:
            for one in client.watch_batch(name, order=BatchOrder(order.upper()), after_cursor=after):
                if isinstance(one, BatchResult):
                    _print_result(one, as_json=as_json)
        except KeyboardInterrupt:
            raise Failure(f"stopped; {name} goes on", INTERRUPTED) from None


@batch.command()
@click.argument("name")
@click.option("--reason", default="", help="For the record.")
@click.option("--wait/--no-wait", default=True, help="Until all items have ended. Default: wait.")
@_json
def cancel(*, name: str, reason: str, wait: bool, as_json: bool) -> None:
    """Ends all items of a batch."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        found = client.cancel_batch(name, reason=reason)
    _print(_watched(name) if wait and found.state is not BatchState.ENDED else found, as_json=as_json)


@batch.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@_lines
def list_(*, limit: int, as_json: bool) -> None:
    """Lists batches, newest first."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        found = itertools.islice(client.list_batches(page_size=min(limit, 1000)), limit)
        if as_json:
            for one in found:
                print_json(one, indent=None)
            return
        print_rows(("NAME", "STATE", "ITEMS", "ENDED", "CREATED"), [_row(one) for one in found])


def _row(one: Batch) -> tuple[str, ...]:
    return (one.name, one.state.value, str(one.items), str(one.progress.ended), show_time(one.create_time))


def _watched(name: str) -> Batch:
    """The batch when it has ended; how far it is meanwhile is shown on standard error."""

    async def follow() -> Batch:
        async with AsyncClient.from_settings() as client:
            last = await client.get_batch(name)
            # Behind every result there can be: only how far it is, not what ended.
            with _Progress(last) as show:
                async with aclosing(client.watch_batch(name, after_cursor=_BEHIND_ALL)) as watching:
                    async for one in watching:
                        if isinstance(one, Batch):
                            last = one
                            show(one)
            return last

    with failures():
        try:
            return interruptible.run(follow())
        except KeyboardInterrupt:
            raise Failure(f"stopped; {name} goes on", INTERRUPTED) from None


_BEHIND_ALL = (1 << 62) - 1


def _report(found: Batch, *, as_json: bool) -> int:
    _print(found, as_json=as_json)
    return 0 if found.progress.succeeded == found.items else 1


def _print(found: Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    progress = found.progress
    counts = [(field, getattr(progress, field)) for field in progress.__dataclass_fields__]
    pairs = [
        ("name", found.name),
        ("state", found.state.value),
        ("items", str(found.items)),
        *[(field, str(count)) for field, count in counts if count],
        ("created", show_time(found.create_time)),
        ("complete", show_time(found.complete_time)),
        ("ended", show_time(found.end_time)),
    ]
    if found.cancel_time is not None:
        reason = f": {printable(found.cancel_reason)}" if found.cancel_reason else ""
        pairs.append(("cancelled", f"{show_time(found.cancel_time)} by {found.cancel_by}{reason}"))
    print_pairs(pairs)


def _print_result(one: BatchResult, *, as_json: bool) -> None:
    if as_json:
        print_json(one, indent=None)
        return
    evaluation: results.Evaluation = one.evaluation
    end = printable(exits.describe(evaluation.termination))
    click.echo(f"{one.index}\t{printable(one.key)}\t{evaluation.name}\t{evaluation.state}\t{end}")


class _Progress:
    """How far a batch is, on standard error: a bar on a terminal, otherwise a line at each tenth."""

    def __init__(self, begun: Batch) -> None:
        self._tenth = -1
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console  # loaded only where it is seen
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(begun.state.value, total=begun.items, completed=begun.progress.ended)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, now: Batch) -> None:
        done = now.progress.ended
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=now.items, description=now.state.value)
            return
        tenth = 10 * done // now.items if now.items else 10
        if tenth > self._tenth:
            self._tenth = tenth
            click.echo(f"{done} of {now.items} have ended", err=True)
