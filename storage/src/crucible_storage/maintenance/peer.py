"""The storage that runs, asked with its own certificate: whoever can read that key can read the database anyway."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from crucible.storage.v1 import maintenance_service_pb2 as pb
from crucible.storage.v1.maintenance_service_pb2_grpc import MaintenanceServiceStub
from crucible_rpc.channel import connect
from crucible_rpc.errors import CallError, StartError
from crucible_rpc.tls import ClientTls
from crucible_storage.clock import from_timestamp
from crucible_storage.maintenance.usage import ArtifactUsage, EvaluationUsage, TableUsage, TenantUsage, Usage

_USAGE_SECONDS = 600.0
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104  # where it listens, seen from this machine, is loopback


@dataclass(frozen=True, slots=True)
class Incoming:
    """A copy of the database that is coming; see `live.Copy`."""

    size: int
    revision: str
    last_position: int
    time: int
    parts: AsyncIterator[bytes]


class Peer:
    """Calls `MaintenanceService`.

    Args:
        listen: where storage serves, `host:port`.
        tls: storage's own certificate.
    """

    def __init__(self, listen: str, tls: ClientTls) -> None:
        host, _, port = listen.rpartition(":")
        self._target = f"127.0.0.1:{port}" if host in _EVERYWHERE else listen
        self._tls = tls

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[Incoming]:
        """A consistent copy.

        Raises:
            StartError: storage refused, or cannot be reached.
        """
        async with self._stub() as stub, aclosing(aiter(stub.CopyDatabase(pb.CopyDatabaseRequest()))) as answers:
            first: pb.CopyDatabaseResponse = await anext(answers)
            about = first.copy
            time = from_timestamp(about.time)
            yield Incoming(about.size, about.revision, about.last_position, time, _data(answers))

    async def usage(self) -> Usage:
        """Where the bytes are.

        Raises:
            StartError: as above.
        """
        async with self._stub() as stub:
            used: pb.GetUsageResponse = await stub.GetUsage(pb.GetUsageRequest(), timeout=_USAGE_SECONDS)
        return Usage(
            used.database_bytes,
            used.reusable_bytes,
            used.free_disk_bytes,
            [TableUsage(one.name, one.rows, one.bytes) for one in used.tables],
            [
                TenantUsage(
                    one.tenant,
                    one.evaluations,
                    one.output_bytes,
                    one.program_bytes,
                    one.event_bytes,
                    one.sample_bytes,
                    one.artifact_bytes,
                    one.moved_output_bytes,
                )
                for one in used.tenants
            ],
            [EvaluationUsage(one.name, one.tenant, one.bytes) for one in used.largest],
            ArtifactUsage(used.artifacts.objects, used.artifacts.bytes, used.artifacts.passing_bytes),
        )

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator[Any]:
        try:
            async with connect(self._target, self._tls, "storage") as channel:
                yield MaintenanceServiceStub(channel)
        except CallError as error:
            raise StartError(f"storage runs, and does not do this now: {error.message}") from None


async def _data(answers: Any) -> AsyncIterator[bytes]:
    async for answer in answers:
        yield answer.data
