"""`MaintenanceService`: a copy of the database, and what it uses, while storage runs."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from crucible.storage.v1 import maintenance_service_pb2 as pb
from crucible.storage.v1 import maintenance_service_pb2_grpc as rpc
from crucible_storage.clock import timestamp
from crucible_storage.maintenance.live import LiveDatabase
from crucible_storage.maintenance.usage import Usage

_PART = 256 << 10


class MaintenanceServicer(rpc.MaintenanceServiceServicer):
    """For commands that run as storage's own user."""

    def __init__(self, database: LiveDatabase) -> None:
        self._database = database

    async def CopyDatabase(
        self, request: pb.CopyDatabaseRequest, context: Any
    ) -> AsyncIterator[pb.CopyDatabaseResponse]:
        """See the contract."""
        async with self._database.copy() as copy:
            yield pb.CopyDatabaseResponse(
                copy=pb.DatabaseCopy(
                    size=copy.size, revision=copy.revision, last_position=copy.last_position, time=timestamp(copy.time)
                )
            )
            while data := await asyncio.to_thread(copy.stream.read, _PART):
                yield pb.CopyDatabaseResponse(data=data)

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        """See the contract."""
        return convert(await self._database.usage())


def convert(used: Usage) -> pb.GetUsageResponse:
    """What is used, as a message."""
    return pb.GetUsageResponse(
        database_bytes=used.database_bytes,
        reusable_bytes=used.reusable_bytes or 0,
        free_disk_bytes=used.free_disk_bytes or 0,
        tables=[pb.TableUsage(**asdict(one)) for one in used.tables],
        tenants=[pb.TenantUsage(**asdict(one)) for one in used.tenants],
        largest=[pb.EvaluationUsage(**asdict(one)) for one in used.largest],
        artifacts=pb.ArtifactUsage(**asdict(used.artifacts)),
    )
