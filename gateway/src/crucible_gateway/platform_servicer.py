"""`PlatformService`: calls `PlatformView` and `Inspections`."""

from contextlib import aclosing
from typing import Any

from crucible.gateway.v1 import platform_service_pb2 as api
from crucible.gateway.v1 import platform_service_pb2_grpc
from crucible_gateway import caller
from crucible_gateway.audit import Audit
from crucible_gateway.inspections import Inspections
from crucible_gateway.interruption import Interruption
from crucible_gateway.platform_view import PlatformView


class PlatformServicer(platform_service_pb2_grpc.PlatformServiceServicer):
    """The public RPCs about the installation itself.

    Args:
        view: answers about it as it is.
        inspections: has its executors looked at.
        audit: knows the public keys.
        interruption: ends streams when the gateway stops.
    """

    def __init__(self, view: PlatformView, inspections: Inspections, audit: Audit, interruption: Interruption) -> None:
        self._view = view
        self._inspections = inspections
        self._audit = audit
        self._interruption = interruption

    async def GetCapabilities(self, _request: api.GetCapabilitiesRequest, _context: Any) -> api.GetCapabilitiesResponse:
        """See the contract."""
        return await self._view.capabilities()

    async def GetStatus(self, _request: api.GetStatusRequest, _context: Any) -> api.GetStatusResponse:
        """See the contract."""
        return await self._view.status(caller.current())

    async def ListRuntimes(self, _request: api.ListRuntimesRequest, _context: Any) -> api.ListRuntimesResponse:
        """See the contract."""
        return api.ListRuntimesResponse(runtimes=await self._view.runtimes())

    async def ListPublicKeys(self, _request: api.ListPublicKeysRequest, _context: Any) -> api.ListPublicKeysResponse:
        """See the contract."""
        return api.ListPublicKeysResponse(public_keys=await self._audit.public_keys())

    async def RunSelfTest(  # type: ignore[override]  # a coroutine that writes, which grpc.aio takes too
        self, request: api.RunSelfTestRequest, context: Any
    ) -> None:
        """See the contract. Writes by itself, so that a write to a reader that does not read is interrupted too."""
        results = self._inspections.self_test(caller.current(), request)
        with self._interruption.waiting():
            async with aclosing(results) as answers:
                async for answer in answers:
                    await context.write(answer)

    async def VerifyIsolation(  # type: ignore[override]  # as above
        self, request: api.VerifyIsolationRequest, context: Any
    ) -> None:
        """See the contract; that the caller is an administrator was checked before (see `authentication`)."""
        results = self._inspections.verify(caller.current(), request)
        with self._interruption.waiting():
            async with aclosing(results) as answers:
                async for answer in answers:
                    await context.write(answer)
