"""Evaluations per second through storage alone, with fsync on: create, lease, report twice; and CPU per evaluation.

python tests/storage/bench.py [evaluations] [concurrency] [folder] [sqlite|postgresql]
"""

import asyncio
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from crucible_deploy import postgresql_server
from crucible_storage.clock import SystemClock
from tests.storage import world as w
from tests.storage.databases import PostgreSqlDatabases, TestServer


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def one(world):
    """The whole life of an evaluation; whatever is leased is finished, so that nobody waits for a certain one."""
    await world.create()
    [assignment] = await world.lease(wait=10.0)
    assert not await world.report(w.report(assignment, w.started()))
    assert not await world.report(w.report(assignment, w.output(b"1\n"), w.finished(assignment, stdout=b"1\n")))


async def main(count, concurrency, folder):
    async with w.storage(folder, clock=SystemClock()) as world:
        await world.register()
        await asyncio.gather(*(one(world) for _ in range(50)))
        left = iter(range(count))

        async def work():
            for _ in left:
                await one(world)

        cpu_before, begun = cpu(), time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        seconds, used = time.perf_counter() - begun, cpu() - cpu_before
        signing = signing_cost()
        print(
            f"{count} evaluations, {concurrency} at once: {count / seconds:.0f} per second, "
            f"{used / count * 1000:.2f} ms CPU each (of which {signing:.2f} ms is the bench's own signing), "
            f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB"
        )


def signing_cost():
    """Milliseconds that the executor's part of this bench costs per evaluation."""
    ticket = w.ex.Ticket(run_id="r", attempt=1)
    assignment = w.work.Assignment(ticket=w.SignedBytes(payload=ticket.SerializeToString()), run_spec=b"x")
    before = cpu()
    for _ in range(500):
        w.finished(assignment, stdout=b"1\n")
        w.spec()
    return (cpu() - before) / 500 * 1000


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    concurrency = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    where = Path(sys.argv[3] if len(sys.argv) > 3 else "/var/tmp")
    with tempfile.TemporaryDirectory(dir=where) as folder, ExitStack() as stack:
        if "postgresql" in sys.argv[4:]:
            server = stack.enter_context(postgresql_server.running(durable=True, folder=where))
            w.DATABASES = PostgreSqlDatabases(TestServer(server))
        asyncio.run(main(count, concurrency, Path(folder) / "state"))
