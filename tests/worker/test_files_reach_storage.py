"""A real program's files, by the real executor and worker, into the real storage, and read back from it."""

import asyncio
import hashlib
import subprocess
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1.executor_service_pb2 import FinalRecord
from crucible_executor.engines.subprocess import SubprocessEngine
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ServerTls
from crucible_storage.clock import SystemClock
from crucible_storage.evaluations import Wanted
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.serving import add_services
from tests.executor.support import Keys, running
from tests.storage import world as w
from tests.storage.artifact_world import read
from tests.worker.support import working

ROOT = Path(__file__).resolve().parents[2]
CODE = b"""
import os
os.makedirs("out/deep")
open("out/result.json", "w").write('{"score": 1}')
open("out/deep/data", "wb").write(bytes(range(256)) * 6000)
open("out/deep/again", "wb").write(bytes(range(256)) * 6000)
open("out/odd\\n\\x1b[31m", "w").write("odd")
os.truncate(os.open("out/a sparse one", os.O_CREAT | os.O_RDWR), 1 << 40)
os.truncate(os.open("out/another", os.O_CREAT | os.O_RDWR), 1 << 40)
os.symlink("/etc/passwd", "out/link")
"""
BOUND = 4 << 20


async def served(keys: Keys, world: w.World) -> Server:
    own = keys.folder / "storage"
    tls = ServerTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    server = Server(
        "storage", "127.0.0.1:0", tls, authentication=PeerPermissions(PERMISSIONS), registry=CollectorRegistry()
    )
    add_services(server, world.service)
    await server.start()
    return server


def spec() -> pb.EvaluationSpec:
    limits = pb.Limits(output_bytes=1 << 20)
    limits.wall_time.FromTimedelta(timedelta(seconds=30))
    program = pb.Program(runtime="python", files=[pb.File(path="main.py", content=CODE)])
    return pb.EvaluationSpec(program=program, limits=limits, engine="subprocess")


async def ended(world: w.World, evaluation: pb.Evaluation) -> pb.Evaluation:
    async with asyncio.timeout(30):
        while (found := await world.get(evaluation)).state < pb.EVALUATION_STATE_SUCCEEDED:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def test_files_of_a_program_reach_storage_as_the_signed_record_lists_them(tmp_path):
    keys = Keys.make(tmp_path / "keys")
    (keys.folder / "tickets.pub").write_bytes(w.TICKETS.public_pem)
    (keys.folder / "records.key").write_bytes(w.RECORDS.private_pem)
    built = subprocess.run(  # noqa: ASYNC221  # some hundred milliseconds, once
        [ROOT / "executor/init/build.sh", tmp_path / "init"], check=True, capture_output=True, text=True
    )
    engine = SubprocessEngine(Path(built.stdout.strip()) / "crucible-tend", tmp_path / "run")
    async with (
        w.storage(tmp_path / "storage", w.Policy(max_artifact_bytes=BOUND), clock=SystemClock()) as world,
        running(keys, tmp_path / "state", engine, default_engine="subprocess") as executor,
    ):
        server = await served(keys, world)
        try:
            async with working(keys, server.port, executor.service.port):
                made = await world.service.evaluations.create(Wanted.of("t", "key-1", "", spec()))
                done = await ended(world, made)
        finally:
            await server.drain(timedelta(0))
        assert done.state == pb.EVALUATION_STATE_SUCCEEDED, done
        record = FinalRecord.FromString(done.provenance.record.payload)
        assert record.artifacts_omitted == 1
        listed = {file.path: file for file in record.artifacts}
        assert list(listed) == ["a sparse one", "another", "deep/again", "deep/data", "odd\n\x1b[31m", "result.json"]
        assert sum(file.bytes_kept for file in listed.values()) <= BOUND
        assert listed["another"].bytes_total == 1 << 40
        for path, file in listed.items():
            content = await read(world, record, path)
            assert (len(content), hashlib.sha256(content).digest()) == (file.bytes_kept, file.sha256)
        assert done.artifacts.files == 6
        assert done.artifacts.truncated
