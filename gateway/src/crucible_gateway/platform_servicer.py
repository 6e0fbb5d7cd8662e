"""`PlatformService`: calls `PlatformView`."""

from typing import Any

from crucible.gateway.v1 import platform_service_pb2 as api
from crucible.gateway.v1 import platform_service_pb2_grpc
from crucible_gateway import caller
from crucible_gateway.platform_view import PlatformView


class PlatformServicer(platform_service_pb2_grpc.PlatformServiceServicer):
    """The public RPCs about the installation itself."""

    def __init__(self, view: PlatformView) -> None:
        self._view = view

    async def GetCapabilities(self, _request: api.GetCapabilitiesRequest, _context: Any) -> api.GetCapabilitiesResponse:
        """See the contract."""
        return await self._view.capabilities()

    async def GetStatus(self, _request: api.GetStatusRequest, _context: Any) -> api.GetStatusResponse:
        """See the contract."""
        return await self._view.status(caller.current())

    async def ListRuntimes(self, _request: api.ListRuntimesRequest, _context: Any) -> api.ListRuntimesResponse:
        """See the contract."""
        return api.ListRuntimesResponse(runtimes=await self._view.runtimes())
