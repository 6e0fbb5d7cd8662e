"""What storage alone does, without calls and other processes, with every answer after its commit to the disk.

And what its process holds in memory while a large artifact goes in and out.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible_deploy import environments
from crucible_deploy.bench import commands
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import Stand
from crucible_deploy.postgresql_server import PostgreSqlServer, PostgreSqlServerError

_MOST_S = 3600.0
_FLAT = 1.5
_NOT_LOWER = 0.9
_GROWTH_MIB = 128
_PARTS = ("rates", "costs", "workers")
_CALLS = {"get": "get one", "page": "list 50", "lease": "lease one", "create": "create one"}


async def measure(stand: Stand) -> Measured:
    """Both databases, SQLite and a PostgreSQL server of the bench's own, and the memory that an artifact takes."""
    stand.say("storage alone: artifact")
    artifact = artifact_rows((await _found(stand, "artifact"))["artifact"])
    found = rows("SQLite", await _of_database(stand, "SQLite", ""))
    try:
        server = PostgreSqlServer(durable=True, folder=stand.stack.layout.home.parent)
        try:
            await commands.to_the_end(server.start)
            found += rows("PostgreSQL", await _of_database(stand, "PostgreSQL", server.url("{}")))
        finally:
            await asyncio.to_thread(server.remove)
    except PostgreSqlServerError as error:
        found.append(Row.left_out("storage alone on PostgreSQL", str(error)))
    return Measured((*artifact, *found))


async def _of_database(stand: Stand, database: str, url: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for part in _PARTS:
        stand.say(f"storage alone on {database}: {part}")
        found |= await _found(stand, part, url)
    return found


async def _found(stand: Stand, part: str, url: str = "") -> Mapping[str, Any]:
    """Runs a part of storage's own benchmark by its interpreter, in a folder beside its state."""
    sizes = stand.sizes
    python = environments.interpreter(stand.stack.layout, "storage")
    folder = Path(tempfile.mkdtemp(prefix="storage-alone-", dir=stand.stack.layout.home))
    argv = [str(python), "-I", "-m", "crucible_storage.benchmark", "--folder", str(folder), "--part", part]
    numbers = {
        "count": sizes.lived,
        "small": sizes.stored_few,
        "large": sizes.stored,
        "samples": sizes.stored_samples,
        "queue": sizes.queue,
        "artifact-mib": sizes.artifact_mib,
    }
    for name, number in numbers.items():
        argv += [f"--{name}", str(number)]
    try:
        finished = await commands.run([*argv, "--url", url], timeout_s=_MOST_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if finished.returncode != 0:
        raise BenchError(f"storage's benchmark failed: {finished.stderr.decode(errors='replace').strip()[-500:]}")
    found: Mapping[str, Any] = json.loads(finished.stdout)
    return found


def artifact_rows(found: Mapping[str, Any]) -> list[Row]:
    """The memory of storage's process while an artifact goes in and out."""
    mib, before = found["mib"], found["before_mib"]
    growth = found["read_mib"] - before
    stored = f"{found['stored_mib'] - before:.1f} MiB when it was in"
    return [
        Row(
            f"storage: growth of its memory, {mib} MiB artifact in and out", growth, "MiB",
            target=f"<= {_GROWTH_MIB} MiB", met=growth <= _GROWTH_MIB,
            note=f"of its process's peak, which was {before:.1f} MiB before; {stored}; in a folder, over TLS",
        ),
        Row(f"storage: a {mib} MiB artifact in", mib / found["in_s"], "MiB/s", note=f"{found['in_s']:.1f} s"),
        Row(f"storage: a {mib} MiB artifact out", mib / found["out_s"], "MiB/s", note=f"{found['out_s']:.1f} s"),
    ]  # fmt: skip


def rows(database: str, found: Mapping[str, Any]) -> list[Row]:
    """The figures of storage's benchmark on a database."""
    name, costs = f"storage alone on {database}", found["costs"]
    return [
        *_rates(name, found["rates"]),
        *_costs(name, costs),
        *_audit(name, costs["audit"]),
        *_workers(name, found["workers"]),
    ]


def _rates(name: str, found: Mapping[str, Any]) -> list[Row]:
    batched, lived = found["batched_per_s"], found["lived_per_s"]
    return [
        Row(f"{name}: created in batches", batched, "per s", target=">= 2000", met=batched >= 2000),
        Row(f"{name}: created by a call each", found["created_per_s"], "per s"),
        Row(f"{name}: create, lease, start, finish", lived, "per s", target=">= 500", met=lived >= 500),
        Row(f"{name}: CPU of such an evaluation", found["lived_cpu_ms"], "ms", note="with the executor's signature"),
    ]


def _costs(name: str, found: Mapping[str, Any]) -> list[Row]:
    small, large, samples, lease = found["small"], found["large"], found["samples"], found["lease_p99_ms"]
    made = [
        Row(
            f"{name}: p99 of a lease, {large} queued", lease, "ms", target="<= 20 ms", met=lease <= 20,
            note=f"{samples} leases" + ("" if samples >= 100 else ": too few for a p99"),
        ),
        Row(f"{name}: created in batches, up to {large} stored", found["filled_per_s"], "per s"),
    ]  # fmt: skip
    for call, words in _CALLS.items():
        cost = found["costs"][call]
        few, many = cost["small_ms"], cost["large_ms"]
        made.append(
            Row(
                f"{name}: {words}, {large} stored", many, "ms", few, f"{small} stored", f"<= {_FLAT} x",
                met=many <= _FLAT * few, note="medians, taken in turn",
            )
        )  # fmt: skip
    return made


def _audit(name: str, found: Mapping[str, Any]) -> list[Row]:
    records, cpu = found["records"], found["verify_cpu_s"]
    return [
        Row(
            f"{name}: audit log of {records} records verified", found["verify_s"], "s",
            note=f"{cpu:.1f} s of CPU; under {found['heads']} signed heads",
        ),
        Row(f"{name}: size per audit record", found["bytes_per_record"], "bytes", note="on the disk, with its indexes"),
    ]  # fmt: skip


def _workers(name: str, found: Mapping[str, Any]) -> list[Row]:
    queued, wrong = found["queued"], found["lost"] + found["run_twice"]
    once = f"{name}: of {queued} queued, lost or run twice by 8 workers"
    made = [Row(once, wrong, "", target="0", met=wrong == 0)]
    rates = {int(number): rate for number, rate in found["per_s"].items()}
    fewer: float | None = None
    for number, rate in sorted(rates.items()):
        made.append(
            Row(
                f"{name}: ended by {number} workers", rate, "per s",
                fewer, "fewer workers" if fewer else "", f">= {_NOT_LOWER} x" if fewer else "",
                met=None if fewer is None else rate >= _NOT_LOWER * fewer, note="medians, taken in turn",
            )
        )  # fmt: skip
        fewer = rate
    return made
