"""`python -m crucible_storage.audit_bench [--full] [--json]`: what an audit log costs, on SQLite in a temporary folder.

Notes 20,000 changes (a million with `--full`) as evaluations do, seals them, checks the whole log, and prints time and
size per record. It uses no state of an installation and no key but one that it makes.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from crucible.audit.v1.audit_pb2 import AuditSummary
from crucible_rpc import signing
from crucible_storage import audit
from crucible_storage.audit_log import AuditLog
from crucible_storage.clock import SystemClock
from crucible_storage.cursors import Cursors
from crucible_storage.database import Database
from crucible_storage.names import evaluation_name, new_id
from crucible_storage.sealer import Sealer
from crucible_storage.state import FILE, open_state
from crucible_storage.transaction import WriteTransaction

SHORT, FULL = 20_000, 1_000_000
_STEP = 5000


async def measure(folder: Path, count: int) -> dict[str, float]:
    """Makes, seals and checks a log of `count` records; answers seconds and bytes by name."""
    clock, signer = SystemClock(), signing.Signer(signing.generate().private_pem)
    state = open_state(folder, lambda _: None)
    database = state.database
    database.start()
    try:
        empty = (folder / FILE).stat().st_size
        sealer = Sealer(database, signer, clock)
        noting = sealing = 0.0
        for first in range(0, count, _STEP):
            begun = time.process_time()
            await database.write(lambda transaction: _note(transaction, min(_STEP, count - first)))  # noqa: B023
            noted = time.process_time()
            await sealer.seal()
            noting, sealing = noting + noted - begun, sealing + time.process_time() - noted
        begun, begun_cpu = time.perf_counter(), time.process_time()
        summary = await _check(database, sealer, signer)
        checking, checking_cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    finally:
        await state.close()
    if summary.records != count or summary.findings:
        raise RuntimeError(f"{summary.records} records were checked, with {summary.findings} findings")
    return {
        "records": count,
        "heads": summary.checkpoints,
        "note_cpu_us_per_record": noting / count * 1e6,
        "seal_cpu_us_per_record": sealing / count * 1e6,
        "verify_seconds": checking,
        "verify_cpu_seconds": checking_cpu,
        "bytes_per_record": ((folder / FILE).stat().st_size - empty) / count,
    }


def _note(transaction: WriteTransaction, count: int) -> None:
    """Creations and ends in turn, as large as real ones."""
    now = time.time_ns() // 1000
    for number in range(count):
        more = {"state": "SUCCEEDED", "attempt": 1, "termination": "exited 0", "final_record_sha256": "0" * 64}
        audit.record(
            transaction,
            time=now + number,
            tenant="default",
            actor="key/key-0123456789abcdef" if number % 2 else "executor/executor-0123456789",
            action=audit.EVALUATION_CREATE if number % 2 else audit.EVALUATION_FINISH,
            subject=evaluation_name(new_id()),
            run_spec_sha256="0" * 64,
            **({} if number % 2 else more),
        )


async def _check(database: Database, sealer: Sealer, signer: signing.Signer) -> AuditSummary:
    log = AuditLog(database, sealer, signer.verifier(), Cursors(bytes(32)))
    async for one in log.verify(None):
        if isinstance(one, AuditSummary):
            return one
    raise RuntimeError("the check ended without a summary")


def main() -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m crucible_storage.audit_bench", description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help=f"{FULL:,} records instead of {SHORT:,}")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="where the temporary folder is made")  # noqa: S108
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="crucible-audit-bench-") as made:
        found = asyncio.run(measure(Path(made), FULL if options.full else SHORT))
    if options.json:
        text = json.dumps(found)
    else:
        text = (
            f"{found['records']:,} records under {found['heads']:,} heads: checked in {found['verify_seconds']:.1f} s "
            f"({found['verify_cpu_seconds']:.1f} s of CPU), {found['bytes_per_record']:.0f} bytes per record; "
            f"CPU of each: {found['note_cpu_us_per_record']:.0f} µs to note, "
            f"{found['seal_cpu_us_per_record']:.0f} µs to seal"
        )
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
