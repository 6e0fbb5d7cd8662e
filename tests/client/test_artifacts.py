"""Artifacts over the wire: a worker stores them in storage, a client reads them through a gateway, each over TLS."""

import asyncio
import hashlib
import os
from contextlib import AsyncExitStack

import pytest

from crucible.storage.v1 import artifact_store_service_pb2 as store
from crucible.storage.v1 import work_service_pb2 as work
from crucible.storage.v1.artifact_store_service_pb2_grpc import ArtifactStoreServiceStub
from crucible_client import AsyncClient, Client, ClientSettings, File, Program, results
from crucible_client.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
)
from crucible_client.specs import EvaluationSpec
from crucible_rpc import errors
from crucible_rpc.channel import connect
from crucible_storage import artifact_store_servicer
from tests.client.conftest import CommandLine
from tests.gateway import real_storage
from tests.gateway.fake_servicer import Keys
from tests.storage import artifact_world as a

pytestmark = pytest.mark.slow

KEY, OTHER = "crucible_key-of-acme", "crucible_key-of-other"
MIB = 1 << 20
BIG = os.urandom(3 * MIB + 17)
ODD = "odd\n\x1b[31m"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("artifact-keys"))


class Stack:
    def __init__(self, world, storage, gateway, keys, stack):
        self.world, self.storage, self.gateway, self.keys, self._stack = world, storage, gateway, keys, stack

    def config(self, key=KEY):
        return ClientSettings(f"localhost:{self.gateway.port}", key, self.keys.ca)

    async def peer(self, process):
        channel = connect(f"127.0.0.1:{self.storage.port}", self.keys.client(process), "storage")
        return ArtifactStoreServiceStub(await self._stack.enter_async_context(channel))


@pytest.fixture
async def stack(tmp_path, keys):
    async with AsyncExitStack() as opened:
        tenants = {KEY: "acme", OTHER: "other"}
        world = await opened.enter_async_context(real_storage.storage_with(tmp_path / "state", tenants))
        storage = await opened.enter_async_context(real_storage.served(world, keys))
        gateway = await opened.enter_async_context(real_storage.gateway(storage, keys))
        yield Stack(world, storage, gateway, keys, opened)


@pytest.fixture
async def client(stack):
    async with AsyncClient(stack.config()) as client:
        yield client


@pytest.fixture
def crucible(stack, bare_env):
    own = {"CRUCIBLE_ADDRESS": stack.config().address, "CRUCIBLE_API_KEY": KEY, "CRUCIBLE_CA_FILE": str(stack.keys.ca)}
    return CommandLine(bare_env | own)


def messages(assignment, path, data, piece=MIB, **changes):
    lease = work.LeaseRef(run_id=assignment.run_id, epoch=assignment.epoch)
    facts = {"executor_id": "ex-1", "size": len(data), "sha256": hashlib.sha256(data).digest()} | changes
    yield store.UploadArtifactRequest(header=store.ArtifactHeader(lease=lease, path=path, **facts))
    for start in range(0, len(data), piece):
        yield store.UploadArtifactRequest(data=data[start : start + piece])


async def started(client, stack):
    name = (await client.submit(EvaluationSpec(Program("python", (File("main.py", b"print(1)"),))))).name
    return name, (await stack.world.lease(1, boot_id="b", wait=5))[0]


@pytest.fixture
async def ended(client, stack):
    """An evaluation that left three files, brought by a worker."""
    name, run = await started(client, stack)
    worker = await stack.peer("worker")
    files = {ODD: b"odd", "empty": b"", "z/big": BIG}
    for path, data in files.items():
        stored = await worker.UploadArtifact(messages(run, path, data))
        assert (stored.bytes_kept, stored.truncated) == (len(data), False)
    again = await worker.UploadArtifact(messages(run, "z/big", BIG))
    assert again.sha256 == hashlib.sha256(BIG).digest()
    listed = [a.listing(ODD, b"odd", total=5)]
    listed = sorted([*listed, a.listing("empty", b""), a.listing("z/big", BIG)], key=lambda one: one.path.encode())
    assert await stack.world.report(a.end(run, listed, omitted=2)) == []
    return name


async def test_files_are_listed_and_downloaded_by_both_clients(client, stack, ended, tmp_path):
    listed = await client.list_artifacts(ended)
    assert ([one.path for one in listed.files], listed.omitted) == (["empty", ODD, "z/big"], 2)
    assert [(one.bytes_total, one.bytes_kept, one.truncated) for one in listed.files[:2]] == [
        (0, 0, False),
        (5, 3, True),
    ]
    summary = (await client.get(ended)).artifacts
    assert (summary.files, summary.bytes_kept, summary.truncated, summary.omitted) == (3, len(BIG) + 3, True, 2)
    got = await client.download_artifact(ended, "z/big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert got.sha256 == hashlib.sha256(BIG).digest()
    assert [piece async for piece in client.stream_artifact(ended, "z/big", offset=MIB - 1, limit=3)] == [
        BIG[MIB - 1 : MIB + 2]
    ]

    def sync():
        with Client(stack.config()) as plain:
            assert plain.list_artifacts(ended) == listed
            plain.download_artifact(ended, "z/big", tmp_path / "big")
            assert b"".join(plain.stream_artifact(ended, "z/big", offset=5)) == BIG[5:]
            plain.download_artifact(ended, "empty", tmp_path / "empty")

    await asyncio.to_thread(sync)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["big", "empty"]


async def test_what_is_not_there_wrong_or_anothers_is_refused(client, stack, ended):
    async with AsyncClient(stack.config(OTHER)) as other:
        for call in (other.list_artifacts(ended), _read(other, ended, "z/big")):
            with pytest.raises(NotFoundError, match="EVALUATION_NOT_FOUND"):
                await call
    with pytest.raises(NotFoundError, match="ARTIFACT_NOT_FOUND"):
        await _read(client, ended, "nothing")
    with pytest.raises(OutOfRangeError, match="ARTIFACT_RANGE"):
        await _read(client, ended, "empty", offset=1)
    for path, offset, limit in (
        ("", 0, 0),
        ("x" * 256, 0, 0),
        ("z/big", -1, 0),
        ("z/big", 0, -1),
        ("z/big", 1 << 50, 0),
    ):
        with pytest.raises(InvalidArgumentError):
            await _read(client, ended, path, offset=offset, limit=limit)
    with pytest.raises(InvalidArgumentError):
        await _read(client, ended, "../x")


async def test_a_download_that_is_not_what_was_listed_leaves_no_file(client, ended, tmp_path, stack):
    [file] = [
        path for path in (tmp_path / "state" / "artifacts").rglob("*") if path.is_file() and path.stat().st_size > 9
    ]
    file.write_bytes(BIG[:-1] + b"?")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataLossError, match="ARTIFACT_DAMAGED"):
        await client.download_artifact(ended, "z/big", tmp_path / "out" / "big")
    assert list((tmp_path / "out").iterdir()) == []


async def test_only_the_worker_stores_and_only_the_gateway_reads(client, stack):
    _, run = await started(client, stack)
    for process in ("gateway", "monitor", "executor", "storage"):
        with pytest.raises(PermissionDeniedError, match="PEER_NOT_PERMITTED"):
            await (await stack.peer(process)).UploadArtifact(messages(run, "x", b"data"))
    for process in ("worker", "monitor", "executor", "storage"):
        peer = await stack.peer(process)
        with pytest.raises(PermissionDeniedError, match="PEER_NOT_PERMITTED"):
            await peer.ListArtifacts(store.ListArtifactsRequest(tenant="acme", evaluation=run.evaluation))
        with pytest.raises(PermissionDeniedError, match="PEER_NOT_PERMITTED"):
            async for _ in peer.ReadArtifact(store.ReadArtifactRequest(tenant="acme", evaluation=run.evaluation)):
                pass


async def test_an_upload_that_is_not_as_the_contract_says_is_refused(client, stack, monkeypatch, tmp_path):
    _, run = await started(client, stack)
    worker = await stack.peer("worker")
    data = store.UploadArtifactRequest(data=b"x")
    for wrong in (
        [],
        [data],
        [*messages(run, "x", b""), data],
        [*messages(run, "x", b"12"), store.UploadArtifactRequest()],
        [*messages(run, "x", b"12"), *messages(run, "x", b"12")],
        list(messages(run, "x", b"12"))[:-1],
        list(messages(run, "../x", b"")),
        list(messages(run, "x" * 300, b"")),
        list(messages(run, "x", b"", size=-1)),
        list(messages(run, "x", b"", sha256=b"short")),
        list(messages(run, "x", bytes(MIB + 1), piece=MIB + 1)),
    ):
        with pytest.raises(errors.InvalidArgumentError):
            await worker.UploadArtifact(iter(wrong))
    monkeypatch.setattr(artifact_store_servicer, "_PATIENCE_SECONDS", 0.2)
    forever = asyncio.Event()

    async def stalls():
        for message in list(messages(run, "x", b"12"))[:1]:
            yield message
        await forever.wait()

    with pytest.raises(errors.UnavailableError, match="STREAM_STALLED"):
        await worker.UploadArtifact(stalls())
    assert a.objects(tmp_path / "state") == []


async def test_the_command_lists_without_what_a_terminal_obeys_and_writes_files(crucible, ended, tmp_path):
    ran = await crucible("artifacts", "list", ended)
    assert ran.code == 0
    assert b"\x1b" not in ran.out
    assert [line.split("\t")[:3] for line in ran.lines] == [
        ["empty", "0", "0"],
        ["odd\\n\\x1b[31m", "5", "3 (cut)"],
        ["z/big", str(len(BIG)), str(len(BIG))],
    ]
    assert b"2 more were there" in ran.err
    ran = await crucible("artifacts", "get", ended, "z/big", "--out", str(tmp_path / "one"))
    assert (ran.code, (tmp_path / "one").read_bytes()) == (0, BIG)
    ran = await crucible("artifacts", "get", ended, "--out", str(tmp_path / "all"))
    assert ran.code == 0
    assert b"\x1b" not in ran.out
    assert (tmp_path / "all" / "z" / "big").read_bytes() == BIG
    assert (tmp_path / "all" / ODD).read_bytes() == b"odd"
    assert (await crucible("artifacts", "get", ended, "nothing")).code != 0


@pytest.mark.parametrize("what", ["a link as folder", "a link as file", "a folder as file"])
async def test_the_command_writes_through_no_link(crucible, ended, tmp_path, what):
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir()
    outside.mkdir()
    if what == "a link as folder":
        (out / "z").symlink_to(outside)
    elif what == "a link as file":
        (out / "z").mkdir()
        (out / "z" / "big").symlink_to(outside / "big")
    else:
        (out / "z" / "big").mkdir(parents=True)
    ran = await crucible("artifacts", "get", ended, "--out", str(out))
    assert ran.code != 0
    assert b"is a link" in ran.err or b"is a folder" in ran.err
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../b", "a//b", ".", ""])
async def test_a_path_that_leads_out_is_refused_whatever_a_server_says(crucible, monkeypatch, tmp_path, path):
    one = results.Artifact(path, 1, 1, False, hashlib.sha256(b"x").digest())
    monkeypatch.setattr(Client, "list_artifacts", lambda *_: results.Artifacts((one,), 0))
    monkeypatch.setattr(Client, "stream_artifact", lambda *_, **__: iter([b"x"]))
    ran = await crucible("artifacts", "get", "any", "--out", str(tmp_path / "out"))
    assert ran.code != 0
    assert b"could lead out" in ran.err
    assert not (tmp_path / "out").exists()


async def test_a_list_says_why_there_may_have_been_more(crucible, monkeypatch):
    monkeypatch.setattr(Client, "list_artifacts", lambda *_: results.Artifacts((), 0, "it was killed\x1b[8m"))
    ran = await crucible("artifacts", "list", "any")
    assert ran.code == 0
    assert b"not all was collected: it was killed" in ran.err
    assert b"\x1b" not in ran.err


async def _read(client, name, path, **where):
    return b"".join([piece async for piece in client.stream_artifact(name, path, **where)])
