from contextlib import AsyncExitStack
from datetime import timedelta

import grpc
import pytest
from prometheus_client import CollectorRegistry

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.gateway.v1 import (
    admin_service_pb2_grpc,
    evaluation_service_pb2_grpc,
    platform_service_pb2_grpc,
)
from crucible_gateway.__main__ import build
from crucible_gateway.peers import Monitor, Storage
from crucible_gateway.settings import Settings
from crucible_rpc.channel import _Channel, connect
from crucible_rpc.tls import public_credentials
from tests.gateway.fake_servicer import FakeMonitor, FakeStore, Keys, fake_monitor, fake_storage

USER_KEY = "crucible_user-key-of-acme"
OTHER_KEY = "crucible_user-key-of-other"
ADMIN_KEY = "crucible_admin-key"


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    return Keys(tmp_path_factory.mktemp("gateway-keys"))


@pytest.fixture
async def resources():
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def store():
    store = FakeStore()
    store.add_key(USER_KEY, "acme")
    store.add_key(OTHER_KEY, "other")
    store.add_key(ADMIN_KEY, "acme", admin=True)
    return store


@pytest.fixture
async def storage(keys, store, resources):
    peer = fake_storage(keys, store)
    await peer.start()
    resources.push_async_callback(peer.stop)
    return peer


@pytest.fixture
def watched():
    return FakeMonitor()


@pytest.fixture
async def monitor(keys, watched, resources):
    peer = fake_monitor(keys, watched)
    await peer.start()
    resources.push_async_callback(peer.stop)
    return peer


@pytest.fixture
def start_gateway(keys, storage, monitor, resources):
    async def start(**options):
        cert, key, ca = keys.files("gateway")
        fresh = {"executors_ttl": timedelta(0), "executors_grace": timedelta(0)}
        options = {"grace": timedelta(seconds=2), **fresh, **options}
        own = Settings(cert, key, ca, listen="127.0.0.1:0", storage=storage.address, monitor=monitor.address, **options)
        channels = [connect(peer.address, keys.client("gateway"), peer.process) for peer in (storage, monitor)]
        for channel in channels:
            resources.push_async_callback(channel.close)
        server = build(own, Storage(channels[0]), Monitor(channels[1]), CollectorRegistry())
        await server.start()
        resources.push_async_callback(server.drain, timedelta(0))
        return server

    return start


@pytest.fixture
async def gateway(start_gateway):
    return await start_gateway()


class Client:
    """The public stubs of one key."""

    def __init__(self, channel):
        self.channel = channel
        self.evaluations = evaluation_service_pb2_grpc.EvaluationServiceStub(channel)
        self.platform = platform_service_pb2_grpc.PlatformServiceStub(channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(channel)


@pytest.fixture
def dial(keys, resources):
    def connected(server, key=USER_KEY):
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        # As `connect_public`, without its retries: what the gateway answers is to be seen, not what a second try gets.
        plain = grpc.aio.secure_channel(
            f"localhost:{server.port}", public_credentials(keys.ca), [("grpc.enable_retries", 0)]
        )
        channel = _Channel(plain, "gateway", timedelta(seconds=10), metadata)
        resources.push_async_callback(channel.close)
        return Client(channel)

    return connected


@pytest.fixture
async def client(gateway, dial):
    return dial(gateway)


def a_spec(content=b"print(1)", **more):
    program = ev.Program(runtime="python", files=[ev.File(path="main.py", content=content)])
    return ev.EvaluationSpec(program=program, **more)


@pytest.fixture
def spec():
    return a_spec()
