"""A Docker daemon that is not there, hangs, answers rubbish or lacks something: said in time and in words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crucible_executor import docker_config, dockerd
from crucible_executor.dockerd import AttachedStream, Daemon, DaemonError
from crucible_executor.engines import docker
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.docker import DockerEngine, DockerGvisorEngine
from crucible_executor.images import ImageStore
from crucible_executor.model import SandboxClass

INFO = {
    "Runtimes": {"runc": {}, "runsc": {}},
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "SwapLimit": True,
    "SecurityOptions": ["name=seccomp,profile=default"],
    "ServerVersion": "20.10",
}


@asynccontextmanager
async def daemon(socket: Path, answer: Callable[[str], bytes | None]) -> AsyncIterator[str]:
    """Something that listens where a dockerd would; None: it never answers."""
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        request = await reader.readuntil(b"\r\n\r\n")
        said = answer(request.split(b" ")[1].decode())
        if said is not None:
            writer.write(said)
            writer.close()

    server = await asyncio.start_unix_server(serve, socket)
    try:
        yield f"unix://{socket}"
    finally:
        server.close()
        for connection in connections:
            connection.close()


def http(content: object, status: str = "200 OK") -> bytes:
    body = json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def healthy(path: str, info: dict[str, object]) -> bytes:
    if path.endswith("/version"):
        return http({"ApiVersion": "1.41"})
    return http(info if path.endswith("/info") else [])


def engine(address: str, tmp_path: Path, kind: type[DockerEngine] | type[DockerGvisorEngine] = DockerEngine):
    return kind(address, tmp_path / "init", ImageStore(tmp_path), "test")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dockerd, docker):
        monkeypatch.setattr(module, "PING_S", 0.5)
    monkeypatch.setattr(docker.os, "geteuid", lambda: 0)


@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:2375", "/var/run/docker.sock"])
async def test_a_daemon_that_is_not_there_is_named(tmp_path: Path, address: str):
    with pytest.raises(EngineUnavailableError, match=f"{address}.*(No such file|no Unix socket)"):
        await engine(address, tmp_path).check()
    assert await engine(address, tmp_path).sweep() == 0


async def test_a_daemon_that_hangs_is_given_up_in_time(tmp_path: Path):
    async with daemon(tmp_path / "socket", lambda _: None) as address:
        before = time.monotonic()
        with pytest.raises(EngineUnavailableError, match="answer"):
            await engine(address, tmp_path).check()
        assert await engine(address, tmp_path).sweep() == 0
        assert time.monotonic() - before < 5


@pytest.mark.parametrize("said", [b"", b"hello\r\n", b"HTTP/1.1 200 OK\r\n\r\n[]", http({}, "500 Broken"), http("x")])
async def test_a_daemon_that_answers_rubbish_is_refused(tmp_path: Path, said: bytes):
    async with daemon(tmp_path / "socket", lambda _: said) as address:
        with pytest.raises(EngineUnavailableError):
            await engine(address, tmp_path).check()


@pytest.mark.parametrize(
    ("kind", "changed", "reason"),
    [
        (DockerGvisorEngine, {"Runtimes": {"runc": {}}}, "no runtime 'runsc': add it to /etc/docker/daemon.json"),
        (DockerEngine, {"MemoryLimit": False, "PidsLimit": False}, "cannot limit memory, processes"),
        (DockerEngine, {"SecurityOptions": None}, "seccomp"),
        (DockerEngine, {}, "make images"),
    ],
)
async def test_what_a_daemon_or_its_kernel_lacks_is_named(tmp_path: Path, kind, changed, reason: str):
    async with daemon(tmp_path / "socket", lambda path: healthy(path, INFO | changed)) as address:
        with pytest.raises(EngineUnavailableError, match=reason):
            await engine(address, tmp_path, kind).check()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 404 No such container\r\n\r\n", b"HTTP/1.1 101 " + b"x" * 20_000])
async def test_an_attachment_that_fails_is_an_error_and_leaves_no_socket(tmp_path: Path, said: bytes):
    async with daemon(tmp_path / "socket", lambda _: said) as address:
        with pytest.raises(DaemonError):
            await Daemon(address).attach("c")


async def test_a_cancelled_call_is_known_until_it_is_over(tmp_path: Path):
    async with daemon(tmp_path / "socket", lambda path: healthy(path, INFO)) as address:
        one = Daemon(address)
        done = []
        calling = asyncio.create_task(one.call("x", lambda client: (time.sleep(0.3), done.append(client.ping()))))
        await asyncio.sleep(0.05)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert not done
        await one.settled()
        assert len(done) == 1


def test_attached_streams_are_told_apart_however_they_are_cut():
    data = b"\x01\0\0\0\0\0\0\x05hello\x02\0\0\0\0\0\0\x03err\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x01!"
    for step in (1, 3, 7, 100):
        out: list[bytes] = []
        stream = AttachedStream(out.append)
        for at in range(0, len(data), step):
            stream.feed(data[at : at + step])
        assert (b"".join(out), stream.stderr) == (b"hello!", b"err")


def test_what_a_runtime_complains_is_bounded():
    stream = AttachedStream(print)
    for _ in range(10):
        stream.feed(b"\x02\0\0\0\0\x01\0\0" + b"x" * 65536)
    assert len(stream.stderr) == 2000


def test_nothing_of_the_host_is_in_a_containers_configuration():
    sandbox_class = SandboxClass("python", 64 << 20, 1 << 20, 100, 0.5, 7)
    for kind in (docker_config.RUNC, docker_config.RUNSC):
        config = docker_config.container_config(kind, "sha256:0", sandbox_class, {})
        host = config["HostConfig"]
        assert not {"Binds", "Mounts", "Devices", "VolumesFrom", "Privileged", "PidMode"} & (set(host) | set(config))
        assert host["Memory"] == host["MemorySwap"] > 64 << 20
        assert host["NanoCpus"] == 500_000_000
        assert ("nr_inodes=100" in host["Tmpfs"]["/tmp"]) == (kind.runtime == "runc")
