"""`crucible selftest`: each component's own checks, made by the running services."""

from datetime import timedelta

import click

from crucible_client import inspections
from crucible_client.cli.failures import failures
from crucible_client.cli.output import print_json, print_rows, printable
from crucible_client.sync_client import Client


@click.command()
@click.argument("service", default="", metavar="[SERVICE]")
@click.option("--engine", default="", help="Only this engine beside the executor's other parts. Default: all.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def selftest(*, service: str, engine: str, as_json: bool) -> int:
    """Has a running executor check each of its own parts, and prints what was measured.

    SERVICE is `executor`, the only one with self-tests so far. Running programs are not touched. Exit code 1 when a
    check fails.
    """
    checks: list[inspections.CheckResult] = []
    summary: inspections.SelfTestSummary | None = None
    with failures(), Client.from_settings(retry_for=timedelta(0)) as client:
        for result in client.self_test(engine=engine, service=service):
            if isinstance(result, inspections.SelfTestSummary):
                summary = result
                continue
            checks.append(result)
            click.echo(printable(f"[{len(checks)}] {result.component}: {result.name}: {result.status}"), err=True)
    if as_json:
        print_json({"checks": checks, "summary": summary})
    else:
        print_rows(("STATUS", "COMPONENT", "CHECK", "SECONDS", "EVIDENCE"), [_row(one) for one in checks])
        click.echo(_said(summary))
    return 0 if summary is not None and summary.good else 1


def _row(check: inspections.CheckResult) -> tuple[str, ...]:
    seconds = f"{check.duration.total_seconds():.2f}"
    return (check.status.value, check.component, check.name, seconds, check.evidence)


def _said(summary: inspections.SelfTestSummary | None) -> str:
    if summary is None:
        return "no summary came"
    counts = f"{summary.passed} passed, {summary.failed} failed, {summary.not_run} not run"
    return f"executor {summary.executor}: {counts}; {summary.duration.total_seconds():.1f} s"
