"""What storage's own process holds in memory while one large artifact goes in and out, over TLS.

    .venv/bin/python -m tests.storage.artifact_memory --mib 1024 [--s3]

The memory is the kernel's own peak (VmHWM), and so of the whole process; grpc and obstore are in it.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from crucible.storage.v1 import artifact_store_service_pb2 as store
from crucible.storage.v1 import evaluation_store_service_pb2 as evaluations
from crucible.storage.v1 import work_service_pb2 as work
from crucible.storage.v1.artifact_store_service_pb2_grpc import ArtifactStoreServiceStub
from crucible.storage.v1.evaluation_store_service_pb2_grpc import EvaluationStoreServiceStub
from crucible.storage.v1.work_service_pb2_grpc import WorkServiceStub
from crucible_rpc import pki
from crucible_rpc.channel import connect
from crucible_rpc.tls import ClientTls
from tests.storage import artifact_world as a
from tests.storage import s3_server
from tests.storage import world as w

MIB = 1 << 20
PATTERN = os.urandom(MIB)  # each piece begins with its number: an order that is wrong is seen
_HEAD = 8


def piece(number):
    return number.to_bytes(_HEAD, "big") + PATTERN[_HEAD:]


class Installation:
    """The files that storage and its callers need."""

    def __init__(self, folder):
        self.folder = folder
        authority = pki.make_ca()
        (folder / "ca.crt").write_bytes(authority.cert_pem)
        for process in ("storage", "gateway", "worker"):
            made = pki.issue(authority, process)
            (folder / f"{process}.crt").write_bytes(made.cert_pem)
            (folder / f"{process}.key").write_bytes(made.key_pem)
        for name, data in (("tickets.key", w.TICKETS.private_pem), ("heads.key", w.HEADS.private_pem)):
            (folder / name).write_bytes(data)
        (folder / "records.pub").write_bytes(w.RECORDS.public_pem)
        for use in ("heads", "records"):
            (folder / "public" / use).mkdir(parents=True)

    def environment(self, port, bucket):
        files = {"TLS_CERT": "storage.crt", "TLS_KEY": "storage.key", "TLS_CA": "ca.crt", "TICKETS_KEY": "tickets.key"}
        files |= {"HEADS_KEY": "heads.key", "PUBLIC_KEYS": "public", "RECORDS_PUB": "records.pub", "STATE": "state"}
        made = {name: str(self.folder / file) for name, file in files.items()}
        made |= {"LISTEN": f"127.0.0.1:{port}", "ADMIN": "127.0.0.1:0", "MAX_ARTIFACT_BYTES": str(1 << 40)}
        if bucket is not None:
            made |= {"S3_BUCKET": bucket.name, "S3_ENDPOINT": bucket.endpoint, "S3_ACCESS_KEY_ID": bucket.access_key_id}
            made |= {"S3_SECRET_ACCESS_KEY": bucket.secret_access_key}
        return {f"CRUCIBLE_STORAGE_{name}": value for name, value in made.items()}

    def client(self, process):
        return ClientTls(self.folder / f"{process}.crt", self.folder / f"{process}.key", self.folder / "ca.crt")


@asynccontextmanager
async def storage(installation, port, bucket):
    """Storage's process, serving."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "crucible_storage",
        env=installation.environment(port, bucket),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            while b'"serving"' not in (line := await child.stderr.readline()):
                if not line:
                    raise RuntimeError("storage did not start")
        reading = asyncio.create_task(child.stderr.read())
        yield child.pid
        reading.cancel()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def peak(pid):
    """The most memory that a process ever held, in bytes."""
    [line] = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM")]
    return int(line.split()[1]) << 10


async def measure(folder, pieces, bucket=None):
    """Peaks before, after what went in, and after what went out; and the seconds of both."""
    installation, port = Installation(folder), s3_server.free_port()
    digest = hashlib.sha256()
    for number in range(pieces):
        digest.update(piece(number))
    async with storage(installation, port, bucket) as pid:
        address = f"127.0.0.1:{port}"
        async with (
            connect(address, installation.client("worker"), "storage") as worker,
            connect(address, installation.client("gateway"), "storage") as gateway,
        ):
            name, run = await _leased(worker, gateway)
            renewing = asyncio.create_task(_renew(worker, run))
            before, begun = peak(pid), time.monotonic()
            stored = await ArtifactStoreServiceStub(worker).UploadArtifact(_messages(run, pieces, digest.digest()))
            assert (stored.bytes_kept, stored.sha256) == (pieces * MIB, digest.digest())
            middle, between = peak(pid), time.monotonic()
            renewing.cancel()
            await _end(worker, run, pieces, digest.digest())
            request = store.ReadArtifactRequest(tenant="t", evaluation=name, path="big")
            number = 0
            async for part in ArtifactStoreServiceStub(gateway).ReadArtifact(request):
                assert part.data == piece(number)
                number += 1
            assert number == pieces
            return before, middle, peak(pid), between - begun, time.monotonic() - between


async def _leased(worker, gateway):
    await WorkServiceStub(worker).RegisterExecutor(work.RegisterExecutorRequest(executor=w.executor()))
    created = evaluations.CreateEvaluationRequest(tenant="t", creator="key-1", spec=w.spec())
    name = (await EvaluationStoreServiceStub(gateway).CreateEvaluation(created)).evaluation.name
    leased = work.LeaseWorkRequest(executor_id="ex-1", since=w.told(), max_runs=1)
    return name, (await WorkServiceStub(worker).LeaseWork(leased)).assignments[0]


async def _renew(worker, run):
    while True:
        lease = work.LeaseRef(run_id=run.run_id, epoch=run.epoch)
        await WorkServiceStub(worker).RenewLeases(work.RenewLeasesRequest(executor_id="ex-1", leases=[lease]))
        await asyncio.sleep(3)


async def _messages(run, pieces, digest):
    lease = work.LeaseRef(run_id=run.run_id, epoch=run.epoch)
    header = store.ArtifactHeader(executor_id="ex-1", lease=lease, path="big", size=pieces * MIB, sha256=digest)
    yield store.UploadArtifactRequest(header=header)
    for number in range(pieces):
        yield store.UploadArtifactRequest(data=piece(number))


async def _end(worker, run, pieces, digest):
    listed = a.listing("big", b"", total=pieces * MIB)
    listed.bytes_kept, listed.sha256 = pieces * MIB, digest
    reports = work.ReportRunsRequest(executor_id="ex-1", reports=[a.end(run, [listed])])
    answer = await WorkServiceStub(worker).ReportRuns(reports)
    assert not answer.rejected, answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--s3", action="store_true", help="into moto's server in place of a folder")
    wanted = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bucket = stack.enter_context(s3_server.running()).bucket() if wanted.s3 else None
        before, middle, after, up, down = asyncio.run(measure(folder, wanted.mib, bucket))
    print(
        f"{wanted.mib} MiB {'into a bucket' if wanted.s3 else 'into a folder'}: peak of storage's memory "
        f"{before >> 20} MiB before, {middle >> 20} MiB after it went in ({up:.1f} s), "
        f"{after >> 20} MiB after it went out ({down:.1f} s)"
    )


if __name__ == "__main__":
    main()
