"""Storage as a process of its own, over TLS, with the keys and certificates of an installation made for it alone."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from crucible_rpc import pki, signing
from crucible_rpc.channel import connect
from crucible_rpc.tls import ClientTls
from crucible_storage.settings import PREFIX

_START_SECONDS = 60.0
_LAST_BYTES = 500
_CALLERS = ("gateway", "worker")


@dataclass(frozen=True, slots=True)
class Served:
    """A storage that serves.

    Attributes:
        pid: of its process.
        gateway: a channel of the gateway's.
        worker: of the worker's.
        executor: signs as the executor does.
    """

    pid: int
    gateway: grpc.aio.Channel
    worker: grpc.aio.Channel
    executor: signing.Signer

    def peak_bytes(self) -> int:
        """The most memory that the process ever held, as the kernel counted it (VmHWM)."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@asynccontextmanager
async def served(folder: Path, **settings: str) -> AsyncIterator[Served]:
    """Runs it until the block ends. What this process's environment says of a bucket (`CRUCIBLE_STORAGE_S3_…`) holds.

    Args:
        folder: an empty one, for its state and its keys.
        **settings: further ones, as `max_artifact_bytes`.

    Raises:
        RuntimeError: it does not start; says what it said last.
    """
    executor = signing.generate()
    environment = os.environ | _installed(folder, executor) | {f"{PREFIX}{k.upper()}": v for k, v in settings.items()}
    command = [sys.executable, "-I", "-m", "crucible_storage"]
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        if process.stderr is None:
            raise RuntimeError("a pipe was asked for")
        address = f"127.0.0.1:{await _port(process.stderr)}"
        reading = asyncio.create_task(process.stderr.read())
        gateway, worker = (connect(address, _identity(folder, name), "storage") for name in _CALLERS)
        async with gateway, worker:
            yield Served(process.pid, gateway, worker, signing.Signer(executor.private_pem))
        reading.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _port(lines: asyncio.StreamReader) -> int:
    said = b""
    async with asyncio.timeout(_START_SECONDS):
        async for line in lines:
            said = (said + line)[-_LAST_BYTES:]
            if line.startswith(b"{") and (told := json.loads(line))["message"] == "serving":
                return int(told["port"])
    raise RuntimeError(f"storage did not start: {said.decode(errors='replace')}")


def _installed(folder: Path, executor: signing.SigningKeys) -> dict[str, str]:
    """Makes the files that storage and its callers need; answers the settings that name them."""
    authority = pki.make_ca()
    (folder / "ca.crt").write_bytes(authority.cert_pem)
    for process in ("storage", *_CALLERS):
        made = pki.issue(authority, process)
        (folder / f"{process}.crt").write_bytes(made.cert_pem)
        (folder / f"{process}.key").write_bytes(made.key_pem)
    for name in ("tickets", "heads"):
        (folder / f"{name}.key").write_bytes(signing.generate().private_pem)
    (folder / "records.pub").write_bytes(executor.public_pem)
    for use in ("heads", "records"):
        (folder / "public" / use).mkdir(parents=True)
    files = {"tls_cert": "storage.crt", "tls_key": "storage.key", "tls_ca": "ca.crt", "tickets_key": "tickets.key"}
    files |= {"heads_key": "heads.key", "public_keys": "public", "records_pub": "records.pub", "state": "state"}
    settings = {name: str(folder / file) for name, file in files.items()}
    settings |= {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0"}
    return {f"{PREFIX}{name.upper()}": value for name, value in settings.items()}


def _identity(folder: Path, process: str) -> ClientTls:
    return ClientTls(folder / f"{process}.crt", folder / f"{process}.key", folder / "ca.crt")
