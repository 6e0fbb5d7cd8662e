"""`crucible verify --stack`: has a running Crucible attack its own sandboxes, and shows the verdicts."""

from collections.abc import Sequence
from datetime import timedelta

import click

from crucible_client import AttemptResult, Client, Verdict, VerificationSummary
from crucible_client.cli.failures import failures
from crucible_client.cli.output import print_json, printable


def run(engine: str, only: Sequence[str], *, as_json: bool) -> int:
    """Prints what came of it, as the offline command does; returns the exit code."""
    attempts: list[AttemptResult] = []
    summary: VerificationSummary | None = None
    with failures(), Client.from_settings(retry_for=timedelta(0)) as client:
        for result in client.verify_isolation(engine=engine, attempts=only):
            if isinstance(result, VerificationSummary):
                summary = result
                continue
            attempts.append(result)
            click.echo(printable(f"[{len(attempts)}] {result.name}: {result.verdict}"), err=True)
    if as_json:
        print_json({"attempts": attempts, "summary": summary, "good": summary is not None and summary.good})
    else:
        for line in _table(attempts):
            click.echo(line)
        click.echo(_said(summary))
    return 0 if summary is not None and summary.good else 1


def _table(attempts: Sequence[AttemptResult]) -> list[str]:
    lines = []
    for family in dict.fromkeys(one.family for one in attempts):
        lines.append(printable(family))
        lines += [_line(one) for one in attempts if one.family == family]
    return lines


def _line(one: AttemptResult) -> str:
    held = one.verdict is Verdict.CONTAINED
    seen = f"not: {one.breach}" if held else one.evidence
    return printable(f"{'!' if one.short_of_promise else ' '} {one.verdict:10} {one.name:26} {seen}")


def _said(summary: VerificationSummary | None) -> str:
    if summary is None:
        return "no summary came"
    made = summary.contained + summary.vulnerable + summary.not_run
    return printable(
        f"{summary.engine} {summary.engine_version} on executor {summary.executor}: {made} of "
        f"{summary.attempts_known} attempts, {summary.contained} CONTAINED, {summary.vulnerable} VULNERABLE, "
        f"{summary.not_run} NOT_RUN; {summary.short_of_promise} short of what the engine promises; "
        f"{summary.duration.total_seconds():.0f} s"
    )
