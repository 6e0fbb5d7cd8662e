"""An executor that is killed leaves sandboxes: its next start removes all of them and reports their runs as lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from crucible.evaluation.v1.evaluation_pb2 import START_KIND_WARM, File, Limits, Program
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from crucible_executor.engines.registry import Host
from crucible_rpc.channel import connect
from tests.conformance.conftest import remove
from tests.conformance.harness import eventually, processes_named
from tests.conformance.promises import GUISES, NEED_DOCKER
from tests.executor.support import Collected, Keys, collect, limits, ticket, told_time

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LONG = "import os, time\nos.fork()\nif os.fork() == 0: os.setsid()\nprint('up', flush=True)\ntime.sleep(60)"


class Executor:
    """A served executor in a process of its own, and its worker's stub."""

    def __init__(self, process: asyncio.subprocess.Process, who: list[str], stub: Any, engine: str, keys: Keys) -> None:
        self.process = process
        self.stub = stub
        self._executor_id, self._boot_id = who
        self._engine = engine
        self._keys = keys

    async def request(self, code: str) -> ex.ExecuteRequest:
        program = Program(runtime="python", files=[File(path="main.py", content=code.encode())])
        spec = ex.RunSpec(program=program, engine=self._engine).SerializeToString()
        asked = limits()
        if self._engine == "subprocess":  # what it enforces
            asked = Limits(open_files=64, output_bytes=1 << 20)
            asked.wall_time.seconds = 30
        names = {"executor_id": self._executor_id, "boot_id": self._boot_id, "since": await told_time(self.stub)}
        signed = ticket(self._keys.tickets, spec, asked=asked, **names)
        made = ex.ExecuteRequest(ticket=signed, run_spec=spec)
        made.permit.seconds = 15
        return made

    async def run(self, code: str) -> Collected:
        return await collect(self.stub.Execute(await self.request(code)), self._keys)

    async def record(self, run_id: str) -> ex.FinalRecord:
        return (await collect(self.stub.Attach(ex.AttachRequest(run_id=run_id)), self._keys)).record


@contextlib.asynccontextmanager
async def started(host: Host, engine: str, pool: int, keys: Keys, state: Path) -> AsyncIterator[Executor]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.killed_executor", str(keys.folder), str(state), str(pool),
        str(host.runsc), str(host.init_dir), str(host.images), str(host.run_dir), host.cgroup, host.docker_host,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port, *who = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().split()
        async with connect(f"127.0.0.1:{port}", keys.tls("worker"), "executor") as channel:
            yield Executor(process, who, ExecutorServiceStub(channel), engine, keys)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)


def sandboxes(host: Host, engine: str) -> list[str]:
    """The folders or containers of sandboxes that the host knows, by name."""
    if engine in NEED_DOCKER:
        with contextlib.closing(APIClient(base_url=host.docker_host)) as client:
            found = client.containers(all=True, filters={"label": f"crucible={host.cgroup}"})
            return [str(one["Id"]) for one in found]
    folder = host.run_dir / engine
    return [entry.name for entry in os.scandir(folder) if entry.name != "empty"] if folder.exists() else []


def alive(host: Host, engine: str) -> list[str]:
    """Those that have processes; of another the executor may just be removing what lies about."""
    return [name for name in sandboxes(host, engine) if processes_named(name)]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("pki"))


async def test_its_next_start_removes_every_sandbox_and_reports_the_runs_as_lost(
    engine_name: str, host: Host, keys: Keys, tmp_path: Path
):
    engine, warm = GUISES.get(engine_name, engine_name), engine_name in GUISES
    arguments = (host, engine, 2 if warm else 0, keys, tmp_path / "state")
    async with started(*arguments) as first:
        if warm:
            for _ in range(2):
                assert (await first.run("pass")).record.termination.exited.code == 0
            await eventually(lambda: len(alive(host, engine)) == 2, 20)
        request = await first.request(LONG)
        async for message in first.stub.Execute(request):
            if any(event.HasField("output") for event in message.events):
                break
        # While the machine is busy the pool gives up what waits, and refills when it is not.
        await eventually(lambda: len(alive(host, engine)) >= 1 + warm, 20)
        names = alive(host, engine)
        first.process.kill()
        await first.process.wait()
    run_id = ex.Ticket.FromString(request.ticket.payload).run_id
    async with started(*arguments) as second:
        assert sandboxes(host, engine) == []
        assert [process for name in names for process in processes_named(name)] == []
        record = await second.record(run_id)
        assert record.termination.WhichOneof("kind") == "lost"
        if warm:
            fresh = (await second.run("print('fresh')")).record
            assert fresh.termination.exited.code == 0
            assert fresh.start_kind != START_KIND_WARM  # nothing of the earlier pool was taken over
    assert sandboxes(host, engine) == []
    remove_all(host)


def remove_all(host: Host) -> None:
    """The executor offers every engine, whichever is tested."""
    for engine in ("gvisor", "subprocess"):
        own = host.run_dir / engine
        for folder in (own / "empty", own):
            if folder.exists():
                folder.rmdir()
    remove(host, "gvisor")
