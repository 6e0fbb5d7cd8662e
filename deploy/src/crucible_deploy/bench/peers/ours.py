"""Our engines as peers: each evaluation through the whole stack."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from crucible_client import AsyncClient
from crucible_deploy.bench import load
from crucible_deploy.bench.peers.model import Peer, PeerAbsentError, Ran, Run


def engine(name: str, engine_name: str, client: AsyncClient, *, pause_s: float = 0.0) -> Peer:
    """One engine, by the client of the stack that has it."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Run]:
        offered = next((one for one in (await client.capabilities()).engines if one.name == engine_name), None)
        if offered is None or not offered.available:
            reason = offered.unavailable_reason if offered is not None else "no executor offers it"
            raise PeerAbsentError(reason)

        async def run(code: str) -> Ran:
            done = await load.one(client, load.python(code, engine=engine_name))
            return Ran(done.ms / 1000, done.evaluation.stdout.preview, done.warm)

        yield run

    return Peer(name, opened, pause_s)
