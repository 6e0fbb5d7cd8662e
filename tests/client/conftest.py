import asyncio
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from crucible_client import AsyncClient, ClientSettings
from crucible_client.cli import app
from crucible_rpc import pki
from crucible_rpc.tls import ServerTls
from tests.client.gateway_servicer import KEY, Gateway, serve


@dataclass(frozen=True)
class Tls:
    ca_file: Path
    server: ServerTls


@pytest.fixture(scope="session")
def tls(tmp_path_factory) -> Tls:
    ca = pki.make_ca()
    issued = pki.issue(ca, "gateway", dns=["localhost"], ips=["127.0.0.1"])
    folder = tmp_path_factory.mktemp("pki")
    for name, pem in {"ca.crt": ca.cert_pem, "tls.crt": issued.cert_pem, "tls.key": issued.key_pem}.items():
        (folder / name).write_bytes(pem)
    return Tls(folder / "ca.crt", ServerTls(folder / "tls.crt", folder / "tls.key", None))


@pytest.fixture
async def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
async def config(gateway, tls):
    """Settings for a server that is up."""
    async with serve(gateway, tls.server.credentials) as port:
        yield ClientSettings(f"127.0.0.1:{port}", KEY, tls.ca_file)


@pytest.fixture
async def client(config):
    async with AsyncClient(config, retry_for=timedelta(seconds=10)) as client:
        yield client


@dataclass(frozen=True)
class Ran:
    code: int
    out: bytes
    err: bytes

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()


@dataclass(frozen=True)
class CommandLine:
    """The `crucible` command."""

    env: dict[str, str]
    started: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self, *args: str, **more) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        options = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "env": self.env} | more
        child = await asyncio.create_subprocess_exec(sys.executable, "-m", "crucible_client", *args, **options)
        self.started.append(child)
        return child

    def _here(self, args: tuple[str, ...], stdin: bytes) -> Ran:
        others = dict.fromkeys(name for name in os.environ if name.startswith("CRUCIBLE_"))
        with CliRunner().isolation(input=stdin, env=others | self.env) as (out, err, _):
            code = app.execute(args)
            sys.stdout.flush()
            sys.stderr.flush()
            return Ran(code, out.getvalue(), err.getvalue())

    async def close(self) -> None:
        """Ends what a failed test left, and reads the pipes to their ends."""
        for child in self.started:
            if child.returncode is None:
                child.kill()
            await child.communicate()

    async def __call__(self, *args: str, stdin: bytes = b"") -> Ran:
        """Runs a command to its end; in this process where that makes no difference, which spares a start of Python."""
        if not _needs_a_process(args):
            return await asyncio.to_thread(self._here, args, stdin)
        child = await self.start(*args)
        out, err = await asyncio.wait_for(child.communicate(stdin), 30)
        return Ran(child.returncode, out or b"", err or b"")


def _needs_a_process(args: tuple[str, ...]) -> bool:
    """What has its own event loop and signals, and `logs`, which writes to the descriptor itself."""
    if args[0] == "batch":
        return args[1] in ("watch", "cancel") or "--watch" in args
    return args[0] in ("run", "bench", "logs")


@pytest.fixture
def bare_env(tmp_path) -> dict[str, str]:
    """An environment without settings."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return kept | {"CRUCIBLE_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}


@pytest.fixture
async def crucible(config, bare_env):
    """The command line with settings for the server."""
    own = {"CRUCIBLE_ADDRESS": config.address, "CRUCIBLE_API_KEY": KEY, "CRUCIBLE_CA_FILE": str(config.ca_file)}
    command = CommandLine(bare_env | own)
    yield command
    await command.close()
