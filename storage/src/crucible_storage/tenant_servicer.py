"""`TenantService`: checks the request, calls `Tenants`, converts the answer."""

from typing import Any

from crucible.storage.v1 import tenant_service_pb2 as pb
from crucible.storage.v1 import tenant_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.tenants import Tenants


class TenantServicer(rpc.TenantServiceServicer):
    """Tenants for the gateway."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.CreateTenantResponse:
        """See the contract."""
        tenant, quota = checks.name(request.tenant, "tenant"), checks.quota(request.quota, "quota")
        return pb.CreateTenantResponse(tenant=await self._tenants.create(tenant, quota, checks.short(request.by, "by")))

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:
        """See the contract."""
        return pb.ListTenantsResponse(tenants=await self._tenants.list())

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Any) -> pb.SetQuotaResponse:
        """See the contract."""
        tenant, quota = checks.name(request.tenant, "tenant"), checks.quota(request.quota, "quota")
        return pb.SetQuotaResponse(tenant=await self._tenants.set_quota(tenant, quota, checks.short(request.by, "by")))
