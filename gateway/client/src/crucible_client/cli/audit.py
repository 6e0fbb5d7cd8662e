"""`crucible audit`: look at the audit log and check it; administrators only."""

from datetime import timedelta
from itertools import islice
from pathlib import Path

import click

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_client import audit as log
from crucible_client.cli import files
from crucible_client.cli.failures import Failure, failures
from crucible_client.cli.key_options import default_folder, in_folder, keys_option
from crucible_client.cli.output import print_json, print_rows, printable
from crucible_client.public_keys import PublicKeys
from crucible_client.sync_client import Client
from crucible_rpc.signing import Verifier

_FILE = click.Path(dir_okay=False, path_type=Path)
_AT_ONCE = timedelta(0)


@click.group()
def audit() -> None:
    """The log of every change; for administrators."""


@audit.command("list")
@click.option("--subject", default="", help="Only records of this one, as evaluations/UUID or keys/ID.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Prints one JSON object per line.")
def list_(*, subject: str, limit: int, as_json: bool) -> None:
    """Lists records, newest first."""
    with failures(), Client.from_settings() as client:
        records = list(islice(client.audit_records(subject=subject, page_size=min(limit, 1000)), limit))
    if as_json:
        for one in records:
            print_json(one, indent=None)
        return
    print_rows(("NO", "TIME", "TENANT", "ACTOR", "ACTION", "SUBJECT", "DETAILS"), map(_row, records))


def _row(one: log.AuditRecord) -> tuple[str, ...]:
    details = " ".join(f"{name}={value}" for name, value in one.details.items())
    time = one.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return (str(one.position), time, one.tenant, one.actor, one.action, one.subject, details)


@audit.command()
@click.option("--since", type=_FILE, help="An earlier head, as --save wrote it: the log must begin with it.")
@click.option("--save", type=_FILE, help="Writes the head that was checked; only when nothing is wrong.")
@keys_option
def verify(*, since: Path | None, save: Path | None, keys: Path | None) -> None:
    """Checks the whole log; exit code 1 when something is wrong.

    Keep what --save writes on another machine: with --since it shows later that nothing was cut off or written anew.
    """
    with failures(), Client.from_settings(retry_for=_AT_ONCE) as client:
        heads = _keys(client, keys).heads
        earlier = None if since is None else _earlier(since, heads)
        summary, found = _check(client, earlier, heads)
        head = None if summary.head is None else _head(summary.head, heads, "the log's head")
    if found:
        told = "" if summary.findings <= found else f", the first {found} of them told"
        raise Failure(f"the audit log does not hold: {max(found, summary.findings)} findings{told}")
    if save is not None and head is not None:
        files.write(save, log.encode_head(head.signed))
    begins = "" if earlier is None else f"; it begins with the {earlier.size} of {since}"
    key = "" if head is None else f", signed by {head.key_id}"
    click.echo(f"the audit log holds: {summary.records} records under {summary.heads} heads{key}{begins}")


def _check(client: Client, earlier: log.Head | None, heads: Verifier) -> tuple[log.AuditSummary, int]:
    """Prints what is wrong; answers the summary and how many lines that were."""
    found: list[log.AuditFinding] = []
    for one in client.verify_audit(since=None if earlier is None else earlier.signed):
        if isinstance(one, log.AuditFinding):
            found.append(one)
            _print(one)
            continue
        lie = None if earlier is None or found else _history(earlier, one, heads)
        if lie is not None:
            found.append(lie)
            _print(lie)
        return one, len(found)
    raise log.without_summary()


def _history(earlier: log.Head, summary: log.AuditSummary, heads: Verifier) -> log.AuditFinding | None:
    try:
        return log.check_history(earlier, summary, heads)
    except log.BadHeadError as error:
        raise Failure(f"the log's head does not hold: {error}") from None


def _print(finding: log.AuditFinding) -> None:
    click.echo(f"{finding.fault}\t{finding.position}\t{printable(finding.message)}")


def _earlier(file: Path, heads: Verifier) -> log.Head:
    try:
        return _head(log.decode_head(files.read(file)), heads, str(file))
    except log.BadHeadError as error:
        raise Failure(f"{file} is no head of an audit log: {error}") from None


def _head(signed: SignedBytes, heads: Verifier, what: str) -> log.Head:
    try:
        return log.verified_head(signed, heads)
    except log.BadHeadError as error:
        raise Failure(f"{what} does not hold: {error}") from None


def _keys(client: Client, folder: Path | None) -> PublicKeys:
    """The keys here, or those that the server itself names."""
    if folder is not None or default_folder().is_dir():
        return in_folder(folder)
    click.echo(
        "no public keys here: those that the server names are taken (crucible receipt keys keeps them)", err=True
    )
    return PublicKeys.of(client.public_keys())
