"""A gateway over a real storage, both served over TLS; nobody is at monitor's address."""

import hashlib
from contextlib import asynccontextmanager
from datetime import timedelta

from prometheus_client import CollectorRegistry

from crucible_gateway.__main__ import build
from crucible_gateway.peers import Monitor, Storage
from crucible_gateway.settings import Settings
from crucible_rpc.channel import connect
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_storage.clock import SystemClock
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.serving import add_services
from tests.gateway.fake_servicer import an_executor
from tests.storage import world as w

NOWHERE = "127.0.0.1:1"


@asynccontextmanager
async def storage_with(folder, tenants, policy=w.POLICY):
    """Storage with an executor, and a user's key for each tenant."""
    async with w.storage(folder, policy, clock=SystemClock()) as world:
        await world.service.leases.register(an_executor("ex-1").executor)
        for key, tenant in tenants.items():
            await world.service.api_keys.create(tenant, "", hashlib.sha256(key.encode()).digest(), admin=False)
        yield world


@asynccontextmanager
async def served(world, keys):
    """The server of a storage."""
    authentication = PeerPermissions(PERMISSIONS)
    credentials = keys.server("storage")
    server = Server("storage", "127.0.0.1:0", credentials, authentication=authentication, registry=CollectorRegistry())
    add_services(server, world.service)
    await server.start()
    try:
        yield server
    finally:
        await server.drain(timedelta(0))


@asynccontextmanager
async def gateway(storage, keys, **options):
    """A gateway's server over a storage's."""
    cert, key, ca = keys.files("gateway")
    address = f"127.0.0.1:{storage.port}"
    options = {"listen": "127.0.0.1:0", **options}
    own = Settings(cert, key, ca, storage=address, monitor=NOWHERE, **options)
    client = keys.client("gateway")
    async with connect(address, client, "storage") as to_storage, connect(NOWHERE, client, "monitor") as to_monitor:
        server = build(own, Storage(to_storage), Monitor(to_monitor), CollectorRegistry())
        await server.start()
        try:
            yield server
        finally:
            await server.drain(timedelta(0))


async def run_all(world, count, code=0):
    """An executor that runs `count` evaluations, each of which writes its name."""
    while count:
        for one in await world.lease(count, wait=5, boot_id="b"):
            text = one.evaluation.encode()
            end = w.finished(one, w.exited(code), stdout=text)
            assert not await world.report(w.report(one, w.started(), w.output(text), end))
            count -= 1
