"""`python -m crucible_storage`: reads the settings, puts the process together, serves until SIGTERM."""

import logging
from pathlib import Path

import uvloop
from prometheus_client import REGISTRY

from crucible_rpc import process, settings
from crucible_rpc.admin import AdminServer
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ServerTls
from crucible_storage import artifacts, keys
from crucible_storage.clock import Clock, DatabaseClock, SystemClock
from crucible_storage.databases import choose
from crucible_storage.metrics import Metrics
from crucible_storage.permissions import PERMISSIONS
from crucible_storage.service import running
from crucible_storage.serving import add_services
from crucible_storage.settings import PREFIX, Settings

_LOG = logging.getLogger(__name__)


async def main() -> None:
    """Runs the process to its end."""
    config = settings.load(Settings, PREFIX)
    signer = keys.private_signer(config.tickets_key)
    records = [Path(file) for file in config.records_pub]
    verifier = keys.record_verifier(records)
    heads = keys.head_keys(config.heads_key, config.public_keys, records)
    tls = ServerTls(config.tls_cert, config.tls_key, config.tls_ca)
    metrics = Metrics(REGISTRY)
    clock: Clock = DatabaseClock() if config.database_url else SystemClock()
    backend = choose(config.database_url, config.state, config.database_password_file, clock)
    chosen = config.bucket is not None or config.artifacts is not None
    blobs = artifacts.choose(config.bucket, config.artifacts, config.state) if chosen else None
    keep, ages = config.retention, config.sample_ages
    async with running(
        config.state, config.policy, clock, signer, verifier, heads, metrics, backend, keep, ages, blobs
    ) as service:
        if config.bootstrap_digest and await service.api_keys.bootstrap(config.bootstrap_digest):
            _LOG.info("the operator's admin key was stored")
        server = Server(
            "storage", config.listen, tls, authentication=PeerPermissions(PERMISSIONS), call_log_level=logging.DEBUG
        )
        add_services(server, service)
        async with AdminServer(config.admin, ready=lambda: server.serving):
            await server.run()


if __name__ == "__main__":
    process.run(main, "storage", loop_factory=uvloop.new_event_loop)
