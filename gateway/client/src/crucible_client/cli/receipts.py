"""`crucible receipt`: fetch the proof of how an evaluation ended, and check it without a network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from crucible_client import public_keys, receipts
from crucible_client.cli import files
from crucible_client.cli.failures import failures
from crucible_client.cli.key_options import in_folder, keys_option
from crucible_client.cli.output import print_json, print_pairs, show_time
from crucible_client.sync_client import Client

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def receipt() -> None:
    """Proofs of how evaluations ended."""


@receipt.command()
@click.argument("name")
@click.option("--out", type=_FILE, required=True, help="The file that it is written to.")
def get(*, name: str, out: Path) -> None:
    """Fetches the receipt of a finished evaluation."""
    with failures(), Client.from_settings() as client:
        data = client.receipt(name)
    files.write(out, data)
    click.echo(f"wrote {out}; check it with: crucible receipt verify {out}", err=True)


@receipt.command()
@click.argument("file", type=_FILE)
@keys_option
@click.option("--head-key", "heads", multiple=True, type=_FILE, help="A public key of heads, instead of --keys.")
@click.option("--record-key", "records", multiple=True, type=_FILE, help="A public key of records, instead of --keys.")
@click.option("--json", "as_json", is_flag=True, help="Prints what it says as JSON.")
def verify(*, file: Path, keys: Path | None, heads: Sequence[Path], records: Sequence[Path], as_json: bool) -> None:
    """Checks a receipt, with the public keys alone; exit code 1 when it does not hold."""
    if keys is not None and (heads or records):
        raise click.UsageError("give either --keys or --head-key and --record-key")
    with failures():
        known = public_keys.PublicKeys.of_files(heads, records) if heads or records else in_folder(keys)
        proven = receipts.verify(files.read(file), known)
    if as_json:
        print_json(proven)
        return
    print_pairs(_lines(proven))
    click.echo(f"{file} holds", err=True)


@receipt.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The folder to write to.")
def keys(*, out: Path) -> None:
    """Fetches the public keys that receipts are checked with.

    Do this once, where you trust the server, and keep them: keys that come together with a receipt prove little.
    """
    with failures(), Client.from_settings() as client:
        made = public_keys.write(out, client.public_keys())
    for file in made:
        click.echo(str(file))


def _lines(proven: receipts.ProvenReceipt) -> list[tuple[str, str]]:
    said_by = "storage alone: no executor signed this end" if proven.record_key is None else "executor and storage"
    lines = [
        ("evaluation", proven.evaluation),
        ("tenant", proven.tenant),
        ("state", proven.state),
        ("termination", " ".join(one for one in (proven.termination, proven.reason) if one)),
        ("attempt", str(proven.attempt)),
        ("signed by", said_by),
        ("finished", f"{show_time(proven.finish_time)} by {proven.actor}"),
        ("in the log", f"record {proven.position} of {proven.log_size}, head of {show_time(proven.head_time)}"),
        ("head key", proven.head_key),
    ]
    if proven.record_key is None or proven.final_record is None:
        return lines
    lines.append(("record key", proven.record_key))
    lines += [(name.replace("_", " "), _text(value)) for name, value in proven.final_record.items() if value]
    return lines


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
