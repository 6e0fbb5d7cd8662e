"""`python -m crucible_worker`: the only place that reads the environment and wires the worker."""

from __future__ import annotations

import uvloop

from crucible_rpc import process, settings, signals
from crucible_rpc.admin import AdminServer
from crucible_rpc.channel import connect
from crucible_rpc.tls import ClientTls
from crucible_worker.grpc_inspections import GrpcInspectionExecutor, GrpcInspectionStorage
from crucible_worker.grpc_peers import GrpcExecutor, GrpcStorage
from crucible_worker.inspector import Inspector
from crucible_worker.metrics import WorkerMetrics
from crucible_worker.settings import Settings
from crucible_worker.worker import Worker


async def main() -> None:
    """Works until SIGTERM or SIGINT."""
    chosen = settings.load(Settings, prefix="CRUCIBLE_WORKER_")
    tls = ClientTls(chosen.tls_cert, chosen.tls_key, chosen.tls_ca)
    async with (
        connect(chosen.storage, tls, "storage") as storage,
        connect(chosen.executor, tls, "executor") as executor,
    ):
        worker = Worker(chosen, GrpcStorage(storage), GrpcExecutor(executor), WorkerMetrics())
        inspector = Inspector(
            GrpcInspectionStorage(storage), GrpcInspectionExecutor(executor), worker.connected, chosen.lease_wait
        )
        stop = signals.caught()
        async with AdminServer(chosen.admin_listen, ready=lambda: worker.ready), inspector:
            await worker.run(stop)


if __name__ == "__main__":
    process.run(main, "worker", loop_factory=uvloop.new_event_loop)
