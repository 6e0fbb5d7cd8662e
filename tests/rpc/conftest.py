from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from crucible_rpc.channel import connect
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import REFLECTION_SERVICE, Server
from tests.rpc.echo_servicer import METHODS, EchoServicer, EchoStub, Keys, add_echo, full

REFLECTION = f"/{REFLECTION_SERVICE}/ServerReflectionInfo"


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory):
    """Of an authority that nobody here trusts."""
    return Keys(tmp_path_factory.mktemp("other"))


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def servicer():
    return EchoServicer()


@pytest.fixture
async def resources():
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def serve(keys, registry, servicer, resources):
    """Starts an echo server as the process `storage` that `worker` may call."""

    async def start(**options):
        options = {
            "process": "storage",
            "listen": "127.0.0.1:0",
            "tls": keys.server("storage"),
            "authentication": PeerPermissions({full(method): frozenset({"worker"}) for method in METHODS}),
            "registry": registry,
            "grace": timedelta(seconds=5),
            **options,
        }
        served = options.pop("servicer", servicer)
        server = Server(**options)
        server.add(add_echo, served)
        await server.start()
        resources.push_async_callback(server.drain, timedelta(0))
        return server

    return start


@pytest.fixture
def dial(keys, resources):
    """Connects a process to a server."""

    async def open_channel(server, process="worker", *, peer="storage", **options):
        channel = connect(f"127.0.0.1:{server.port}", keys.client(process), peer, **options)
        resources.push_async_callback(channel.close)
        return channel

    return open_channel


@pytest.fixture
async def server(serve):
    return await serve()


@pytest.fixture
async def stub(server, dial):
    return EchoStub(await dial(server))
