"""`crucible list`, `get`, `watch`, `logs`, `cancel`, `delete`: work with evaluations."""

import itertools
import os
from datetime import timedelta
from typing import Any

import click

from crucible_client import results
from crucible_client.async_client import AsyncClient
from crucible_client.cli import exits, interruptible, usage
from crucible_client.cli.failures import Failure, failures
from crucible_client.cli.output import (
    plain,
    print_json,
    print_pairs,
    print_rows,
    printable,
    show_seconds,
    show_time,
)
from crucible_client.cli.passthrough import STDOUT, Passthrough, follow
from crucible_client.cli.sizes import DURATION, PAIR, show_size
from crucible_client.sync_client import Client

_STATES = [state.value for state in results.State if state is not results.State.UNKNOWN]
_AT_ONCE = timedelta(0)
_json = click.option("--json", "as_json", is_flag=True, help="Prints JSON.")


@click.command("list")
@click.option("--state", type=click.Choice(_STATES, case_sensitive=False), multiple=True, help="Only these.")
@click.option("--label", type=PAIR, multiple=True, metavar="KEY=VALUE", help="Only those with all of these.")
@click.option("--batch", default="", metavar="NAME", help="Only the items of this batch.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")
def list_(*, state: tuple[str, ...], label: tuple[tuple[str, str], ...], batch: str, limit: int, as_json: bool) -> None:
    """Lists evaluations, newest first."""
    states = [results.State(one) for one in state]
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        listed = client.list(states=states, labels=dict(label), batch=batch, page_size=min(limit, 1000))
        found = itertools.islice(listed, limit)
        if as_json:
            for evaluation in found:
                print_json(evaluation, indent=None)
            return
        headers = ("NAME", "STATE", "RUNTIME", "CREATED", "ENDED HOW")
        print_rows(headers, [_row(evaluation) for evaluation in found])


def _row(evaluation: results.Evaluation) -> tuple[str, ...]:
    end = exits.describe(evaluation.termination) if evaluation.termination else "-"
    created = show_time(evaluation.create_time)
    return (evaluation.name, evaluation.state.value, evaluation.spec.program.runtime, created, end)


@click.command()
@click.argument("name")
@click.option("--usage", "over_time", is_flag=True, help="Shows CPU, memory and processes over time instead.")
@click.option("--attempt", type=click.IntRange(min=1), help="With --usage: of this attempt. Default: the latest.")
@_json
def get(*, name: str, over_time: bool, attempt: int | None, as_json: bool) -> None:
    """Shows one evaluation."""
    if attempt is not None and not over_time:
        raise click.UsageError("--attempt needs --usage")
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        if over_time:
            found = client.usage_samples(name, attempt=attempt or 0)
            if as_json:
                print_json(found)
            else:
                usage.show(found)
            return
        evaluation = client.get(name)
        if as_json:
            print_json(evaluation)
        else:
            print_pairs(_pairs(evaluation))


def _pairs(evaluation: results.Evaluation) -> list[tuple[str, str]]:
    pairs = [
        ("name", evaluation.name),
        ("state", evaluation.state.value),
        ("ended how", exits.describe(evaluation.termination)),
        *[("remark", remark) for remark in exits.remarks(evaluation)],
        *([("batch", evaluation.batch)] if evaluation.batch else []),
        ("attempt", str(evaluation.attempt)),
        *[("lost attempt", f"{one.attempt}: {one.reason}") for one in evaluation.failed_attempts],
        ("runtime", evaluation.spec.program.runtime),
        ("created", show_time(evaluation.create_time)),
        ("started", show_time(evaluation.start_time)),
        ("ended", show_time(evaluation.end_time)),
        ("stdout", show_size(evaluation.stdout.bytes_total)),
        ("stderr", show_size(evaluation.stderr.bytes_total)),
    ]
    if evaluation.termination is not None and evaluation.termination.evidence is not None:
        evidence = evaluation.termination.evidence
        pairs.insert(3, ("evidence", f"{evidence.source}: {evidence.detail}"))
    if evaluation.usage is not None:
        used = evaluation.usage
        peak = "-" if used.peak_memory_bytes is None else show_size(used.peak_memory_bytes)
        pairs += [
            ("wall time", show_seconds(used.wall_time)),
            ("CPU of the program", show_seconds(used.program_cpu_time)),
            ("CPU of the sandbox", show_seconds(used.sandbox_cpu_time)),
            ("peak memory", peak),
        ]
    if evaluation.unobserved_limits:
        pairs.append(("not observable", f"whether it hit {', '.join(evaluation.unobserved_limits)}"))
    if evaluation.behaviour is not None:
        pairs += exits.tried(evaluation.behaviour)
    if evaluation.provenance is not None:
        ran = evaluation.provenance
        pairs += [
            ("engine", f"{ran.engine} {ran.engine_version} (isolation {ran.isolation})"),
            ("image", ran.image_digest or "-"),
            ("executor", ran.executor),
            ("start", str(ran.start_kind)),
        ]
    return pairs + [("label", f"{key}={value}") for key, value in sorted(evaluation.labels.items())]


@click.command()
@click.argument("name")
@click.option(
    "--after", "after_position", type=click.IntRange(min=0), default=0, help="Only events above this position."
)
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")
def watch(*, name: str, after_position: int, as_json: bool) -> None:
    """Prints an evaluation's events until it is terminal."""
    with failures(), Client.from_settings() as client:
        for event in client.watch(name, after_position=after_position):
            if as_json:
                print_json({"kind": _kind(event), **plain(event)}, indent=None)
            else:
                for words in _lines(event):
                    cells = (str(event.position), show_time(event.time), str(event.attempt), _kind(event), words)
                    click.echo("\t".join(printable(cell) for cell in cells))


def _kind(event: results.Event) -> str:
    kinds: dict[type[results.Event], str] = {
        results.StateChanged: "STATE",
        results.OutputChunk: "OUTPUT",
        results.AttemptFailed: "ATTEMPT_FAILED",
        results.CancelRequested: "CANCEL_REQUESTED",
        results.LimitWasHit: "LIMIT_HIT",
        results.BehaviourSeen: "BEHAVIOUR",
    }
    return kinds.get(type(event), "UNKNOWN")


def _lines(event: results.Event) -> list[str]:
    """One for each event, but one for each action that a program tried."""
    if isinstance(event, results.BehaviourSeen):
        return [f"{title} {value}" for title, value in exits.told(event)]
    return [_words(event)]


def _words(event: results.Event) -> str:
    match event:
        case results.StateChanged():
            return event.state.value + (f": {exits.describe(event.termination)}" if event.termination else "")
        case results.OutputChunk():
            return f"{event.stream.name.lower()} {len(event.data)} bytes at {event.offset}"
        case results.AttemptFailed():
            return event.failure.reason
        case results.CancelRequested():
            return f"by {event.by}" + (f": {event.reason}" if event.reason else "")
        case results.LimitWasHit():
            return event.hit.limit.value + (f": {event.hit.evidence.detail}" if event.hit.evidence else "")
    return ""


@click.command()
@click.argument("name")
@click.option("--stderr", "stderr", is_flag=True, help="Standard error instead of standard output.")
@click.option("--follow", "-f", "following", is_flag=True, help="Goes on until the evaluation is terminal.")
@click.option("--attempt", type=click.IntRange(min=1), help="Of this attempt. Default: the latest.")
def logs(*, name: str, stderr: bool, following: bool, attempt: int | None) -> None:
    """Prints what an evaluation wrote, byte for byte."""
    stream = results.Stream.STDERR if stderr else results.Stream.STDOUT
    if following and attempt is not None:
        raise click.UsageError("--follow and --attempt exclude each other")
    with failures():
        if following:
            interruptible.run(_follow(name, stream))
            return
        with Client.from_settings(retry_for=_AT_ONCE) as client:
            for data in client.stream_output(name, stream, attempt=attempt or 0):
                _write(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(STDOUT, view) :]


async def _follow(name: str, stream: results.Stream) -> None:
    def notice(line: str) -> None:
        click.echo(f"crucible: {printable(line)}", err=True)

    async with AsyncClient.from_settings() as client:
        await follow(client, name, Passthrough({stream: STDOUT}, notice))


@click.command()
@click.argument("name")
@click.option("--reason", default="", help="For the record.")
@click.option("--wait/--no-wait", default=True, help="Until it is confirmed to be gone. Default: wait.")
@click.option("--within", type=DURATION, default="30s", show_default=True, help="How long to wait.")
@_json
def cancel(*, name: str, reason: str, wait: bool, within: Any, as_json: bool) -> None:
    """Ends an evaluation."""
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        evaluation = client.cancel(name, reason=reason)
        if wait and not evaluation.state.terminal:
            evaluation = client.wait(name, within=within)
        if as_json:
            print_json(evaluation)
        else:
            click.echo(f"{evaluation.name}\t{evaluation.state}\t{printable(exits.describe(evaluation.termination))}")
        if wait and not evaluation.state.terminal:
            raise Failure(f"{evaluation.name} is not terminal yet")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--reason", default="", help="For the record.")
@_json
def delete(*, names: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Deletes evaluations that have ended, for good; administrators only.

    Digests of the signed record and of the output stay, and who deleted it and when.
    """
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        for name in names:
            deleted = client.delete_evaluation(name, reason=reason)
            if as_json:
                print_json(deleted)
            else:
                click.echo(f"{deleted.name}\tdeleted\t{show_time(deleted.delete_time)}")
