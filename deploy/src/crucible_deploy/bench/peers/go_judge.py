"""go-judge, where the user gives its binary: a server that runs each program in a container on the host's kernel."""

import asyncio
import http.client
import json
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from crucible_deploy.bench.commands import to_the_end
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.peers.model import Peer, PeerAbsentError, Ran, Run

_START_S = 20.0
_LOOK_S = 0.05
_SECOND_NS = 1_000_000_000


def peer(binary: Path) -> Peer:
    """A server of this binary, on a free port of loopback."""
    return Peer("go-judge", partial(_opened, binary))


@asynccontextmanager
async def _opened(binary: Path) -> AsyncIterator[Run]:
    if shutil.which(binary) is None:
        raise PeerAbsentError(f"{binary} is no program")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="crucible-go-judge-") as folder:
        process = await asyncio.create_subprocess_exec(
            str(binary), "-http-addr", f"127.0.0.1:{port}", "-silent", cwd=folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            await _until_up(process, port)
            yield lambda code: to_the_end(partial(_run, port, code))
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _until_up(process: asyncio.subprocess.Process, port: int) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        if process.returncode is not None or time.monotonic() > deadline:
            raise PeerAbsentError("go-judge does not start here")
        with suppress(OSError, http.client.HTTPException):
            if (await to_the_end(partial(_call, port, "GET", "/version")))[0] == http.client.OK:
                return
        await asyncio.sleep(_LOOK_S)


def _run(port: int, code: str) -> Ran:
    """Runs one program by `POST /run`, with its file copied in and its output back."""
    command = {
        "args": ["/usr/bin/python3", "main.py"],
        "env": ["PATH=/usr/bin:/bin"],
        "files": [{"content": ""}, {"name": "stdout", "max": 65536}, {"name": "stderr", "max": 65536}],
        "cpuLimit": 20 * _SECOND_NS,
        "clockLimit": 60 * _SECOND_NS,
        "memoryLimit": 256 << 20,
        "procLimit": 32,
        "copyOut": ["stdout", "stderr"],
        "copyIn": {"main.py": {"content": code}},
    }
    began = time.perf_counter()
    status, text = _call(port, "POST", "/run", json.dumps({"cmd": [command]}))
    seconds = time.perf_counter() - began
    try:
        result = json.loads(text)[0]
        if status != http.client.OK or result["status"] != "Accepted":
            raise BenchError(f"go-judge answered {status}: {text[-300:]!r}")
        return Ran(seconds, str(result["files"]["stdout"]).encode())
    except (ValueError, LookupError, TypeError):
        raise BenchError(f"go-judge answered {text[-300:]!r}") from None


def _call(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    finally:
        connection.close()
