"""The gateway process: puts its parts together and serves until it is told to stop."""

from crucible_rpc import process, settings  # isort: skip  # before grpc: turns off its fork handlers

from contextlib import AsyncExitStack

import uvloop
from prometheus_client import REGISTRY, CollectorRegistry, Counter

from crucible.gateway.v1 import (
    admin_service_pb2_grpc,
    artifact_service_pb2_grpc,
    batch_service_pb2_grpc,
    evaluation_service_pb2_grpc,
    platform_service_pb2_grpc,
)
from crucible_gateway.admin_servicer import AdminServicer
from crucible_gateway.api_keys import ApiKeys
from crucible_gateway.artifact_servicer import ArtifactServicer
from crucible_gateway.artifacts import Artifacts
from crucible_gateway.audit import Audit
from crucible_gateway.auth import Authenticator
from crucible_gateway.authentication import ApiKeyAuthentication
from crucible_gateway.batch_servicer import BatchServicer
from crucible_gateway.batches import Batches
from crucible_gateway.evaluation_servicer import EvaluationServicer
from crucible_gateway.evaluations import Evaluations
from crucible_gateway.executors import Executors
from crucible_gateway.inspections import Inspections
from crucible_gateway.interruption import Interruption
from crucible_gateway.peers import Monitor, Storage
from crucible_gateway.platform_servicer import PlatformServicer
from crucible_gateway.platform_view import PlatformView
from crucible_gateway.queue_control import QueueControl
from crucible_gateway.settings import Settings
from crucible_rpc.admin import AdminServer
from crucible_rpc.channel import connect
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls, ServerTls

PROCESS = "gateway"


async def main() -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        SettingsError: a setting is missing or malformed.
        StartError: a certificate is not usable or an address is taken.
    """
    own = settings.load(Settings, "CRUCIBLE_GATEWAY_")
    async with AsyncExitStack() as stack:
        credentials = ClientTls(own.tls_cert, own.tls_key, own.tls_ca)
        storage = Storage(await stack.enter_async_context(connect(own.storage, credentials, "storage")))
        monitor = Monitor(await stack.enter_async_context(connect(own.monitor, credentials, "monitor")))
        server = build(own, storage, monitor)
        await stack.enter_async_context(AdminServer(own.admin, ready=lambda: server.serving))
        await server.run()


def build(own: Settings, storage: Storage, monitor: Monitor, registry: CollectorRegistry = REGISTRY) -> Server:
    """The public server over these peers, not started."""
    authenticator = Authenticator(storage, ttl=own.key_ttl)
    refused = Counter("crucible_gateway_refused_calls", "Calls refused for want of a good API key.", registry=registry)
    server = Server(
        PROCESS,
        own.listen,
        ServerTls(own.public_cert or own.tls_cert, own.public_key or own.tls_key, client_ca=None),
        authentication=ApiKeyAuthentication(authenticator, refused.inc),
        max_message_bytes=own.max_message_bytes,
        max_concurrent_calls=own.max_concurrent_calls,
        grace=own.grace,
        registry=registry,
    )
    interruption = Interruption()
    server.on_drain(interruption.begin)
    executors = Executors(storage, ttl=own.executors_ttl, grace=own.executors_grace)
    evaluations = Evaluations(storage, monitor, executors, own.defaults(), outage=own.outage)
    view = PlatformView(
        storage,
        monitor,
        executors,
        own.defaults(),
        max_message_bytes=own.max_message_bytes,
        stopping=server.draining.is_set,
    )
    audit = Audit(storage)
    server.add(
        evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server,
        EvaluationServicer(evaluations, audit, interruption, own.watcher_patience),
    )
    server.add(
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server,
        ArtifactServicer(Artifacts(storage), interruption, own.watcher_patience),
    )
    batches = Batches(storage, executors, own.defaults(), own.watcher_patience)
    server.add(
        batch_service_pb2_grpc.add_BatchServiceServicer_to_server,
        BatchServicer(batches, interruption, own.watcher_patience),
    )
    server.add(
        platform_service_pb2_grpc.add_PlatformServiceServicer_to_server,
        PlatformServicer(view, Inspections(storage, view), audit, interruption),
    )
    server.add(
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server,
        AdminServicer(ApiKeys(storage, authenticator), evaluations, QueueControl(storage), audit, interruption),
    )
    server.reflect()
    return server


if __name__ == "__main__":
    process.run(main, PROCESS, loop_factory=uvloop.new_event_loop)
