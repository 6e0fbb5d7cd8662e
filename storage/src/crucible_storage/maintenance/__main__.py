"""`python -m crucible_storage.maintenance`: what `crucible storage` runs, as storage's own user and with its settings.

Archives come in on standard input and go out on standard output; the caller opens the files. Progress goes to standard
error, results to standard output. Exit codes: 0; 1 when something is wrong or cannot be done; 2 usage.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from crucible_rpc import process, settings
from crucible_rpc.errors import CallError, StartError
from crucible_rpc.tls import ClientTls
from crucible_storage import artifacts, keys
from crucible_storage.clock import SystemClock
from crucible_storage.databases import choose
from crucible_storage.integrity.check import Verdict
from crucible_storage.integrity.findings import MAX_SHOWN, Progress
from crucible_storage.maintenance import tables
from crucible_storage.maintenance.archive import Manifest
from crucible_storage.maintenance.commands import Commands
from crucible_storage.maintenance.peer import Peer
from crucible_storage.settings import PREFIX, Settings

_SECONDS_BETWEEN_LINES = 2.0


class ProgressLine:
    """Says on standard error how far a check has come, at most once in two seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + _SECONDS_BETWEEN_LINES

    def __call__(self, progress: Progress) -> None:
        """Takes the latest figures."""
        if self._clock() >= self._next:
            self._next = self._clock() + _SECONDS_BETWEEN_LINES
            _say(f"checked {progress.evaluations} of {progress.of} evaluations, {progress.events} events")


async def migrate(commands: Commands, _: argparse.Namespace) -> int:
    """`migrate`."""
    before, after = commands.migrate()
    _print(f"the schema is current: {after}" if before == after else f"migrated the schema from {before} to {after}")
    return 0


async def check(commands: Commands, wanted: argparse.Namespace) -> int:
    """`check`; with `--backup` of an archive on standard input."""
    if wanted.backup:
        manifest, verdict = commands.check_backup(sys.stdin.buffer, wanted.faults, ProgressLine())
        _say(_described(manifest))
    else:
        verdict = await commands.check(wanted.faults, ProgressLine(), digests=wanted.digests)
    if wanted.json:
        _print(json.dumps(asdict(verdict) | {"whole": verdict.whole}))
    else:
        _tell(verdict)
    return 0 if verdict.whole else 1


async def backup(commands: Commands, _: argparse.Namespace) -> int:
    """`backup`, to standard output."""
    if sys.stdout.isatty():
        raise StartError("a backup is not text; send it into a file")
    _say("backed up " + _described(await commands.backup(sys.stdout.buffer)))
    return 0


async def restore(commands: Commands, _: argparse.Namespace) -> int:
    """`restore`, from standard input."""
    manifest, verdict = commands.restore(sys.stdin.buffer, ProgressLine())
    _tell(verdict)
    if not verdict.whole:
        raise StartError("the backup's database is not whole; nothing was restored")
    _print("restored " + _described(manifest))
    return 0


async def usage(commands: Commands, wanted: argparse.Namespace) -> int:
    """`usage`."""
    used = await commands.usage()
    _print(json.dumps(asdict(used)) if wanted.json else tables.of(used))
    return 0


_COMMANDS: dict[str, Callable[[Commands, argparse.Namespace], Awaitable[int]]] = {
    "migrate": migrate,
    "check": check,
    "backup": backup,
    "restore": restore,
    "usage": usage,
}


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m crucible_storage.maintenance", description=__doc__)
    parser.add_argument("command", choices=_COMMANDS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--backup", action="store_true", help="check an archive on standard input instead")
    parser.add_argument("--digests", action="store_true", help="read and digest all artifacts, too")
    parser.add_argument("--faults", type=int, default=MAX_SHOWN, help="how many to show")
    return parser.parse_args()


async def main() -> int:
    """Runs one command to its end; returns the exit code."""
    wanted = _parsed()
    logging.getLogger("alembic").setLevel(logging.WARNING)  # its notes on each schema are nothing for people
    config = settings.load(Settings, PREFIX)
    verifier = keys.record_verifier(Path(file) for file in config.records_pub)
    peer = Peer(config.listen, ClientTls(config.tls_cert, config.tls_key, config.tls_ca))
    shared = choose(config.database_url, config.state, config.database_password_file) if config.database_url else None
    blobs = artifacts.choose(config.bucket, config.artifacts, config.state) if wanted.command == "check" else None
    commands = Commands(config.state, verifier, peer, SystemClock(), shared, blobs)
    try:
        code = await _COMMANDS[wanted.command](commands, wanted)
    except CallError as error:
        raise StartError(error.message) from None
    finally:
        if shared is not None:
            shared.dispose()
    return code


def _tell(verdict: Verdict) -> None:
    for fault in verdict.findings.shown:
        _print(fault)
    more = verdict.findings.total - len(verdict.findings.shown)
    if more:
        _print(f"and {more} more")
    seen = verdict.progress
    _print(
        f"{'whole' if verdict.whole else f'{verdict.findings.total} faults'}: {seen.evaluations} evaluations "
        f"({seen.deleted} deleted), {seen.events} events, {seen.output_bytes} bytes of output, "
        f"{seen.records} signed records, {seen.artifacts} objects of artifacts, {verdict.seconds:.1f} s"
    )


def _described(manifest: Manifest) -> str:
    return (
        f"a database of {manifest.size} bytes, schema {manifest.revision}, "
        f"log up to position {manifest.last_position}, SHA-256 {manifest.sha256}"
    )


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    process.run(main, "storage")
