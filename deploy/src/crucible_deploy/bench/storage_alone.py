"""What storage alone does, without calls and other processes, with every answer after its commit to the disk."""

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
_CALLS = {"get": "get one", "page": "list 50", "lease": "lease one", "create": "create one"}


async def measure(stand: Stand) -> Measured:
    """Both databases, SQLite and a PostgreSQL server of the bench's own."""
    found = rows("SQLite", await _found(stand, ""))
    try:
        server = PostgreSqlServer(durable=True)
    except PostgreSqlServerError as error:
        return Measured((*found, Row.left_out("storage alone on PostgreSQL", str(error))))
    try:
        await asyncio.to_thread(server.start)
        found += rows("PostgreSQL", await _found(stand, server.url("{}")))
    finally:
        await asyncio.to_thread(server.remove)
    return Measured(tuple(found))


async def _found(stand: Stand, url: str) -> Mapping[str, Any]:
    """Runs storage's own benchmark by its interpreter, in a folder beside its state."""
    sizes = stand.sizes
    python = environments.interpreter(stand.stack.layout, "storage")
    folder = Path(tempfile.mkdtemp(prefix="storage-alone-", dir=stand.stack.layout.home))
    argv = [str(python), "-I", "-m", "crucible_storage.benchmark", "--folder", str(folder), "--url", url]
    numbers = {"count": sizes.lived, "small": sizes.stored_few, "large": sizes.stored, "samples": sizes.stored_samples}
    for name, number in numbers.items():
        argv += [f"--{name}", str(number)]
    try:
        finished = await commands.run(argv, timeout_s=_MOST_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if finished.returncode != 0:
        raise BenchError(f"storage's benchmark failed: {finished.stderr.decode(errors='replace').strip()[-500:]}")
    found: Mapping[str, Any] = json.loads(finished.stdout)
    return found


def rows(database: str, found: Mapping[str, Any]) -> list[Row]:
    """The figures of storage's benchmark on a database."""
    created, lived, lease = found["created_per_s"], found["lived_per_s"], found["lease_p99_ms"]
    small, large = found["small"], found["large"]
    name = f"storage alone on {database}"
    made = [
        Row(f"{name}: evaluations created", created, "per s", target=">= 2000", met=created >= 2000),
        Row(f"{name}: create, lease, start, finish", lived, "per s", target=">= 500", met=lived >= 500),
        Row(f"{name}: CPU of such an evaluation", found["lived_cpu_ms"], "ms", note="with the executor's signature"),
        Row(
            f"{name}: p99 of a lease, {large} queued", lease, "ms", target="<= 20 ms", met=lease <= 20,
            note=f"{found['lease_samples']} leases" + ("" if found["lease_samples"] >= 100 else ": too few for a p99"),
        ),
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
