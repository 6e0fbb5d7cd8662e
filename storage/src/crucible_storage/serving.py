"""Storage's RPCs on a server."""

from crucible.storage.v1.api_key_service_pb2_grpc import add_ApiKeyServiceServicer_to_server
from crucible.storage.v1.audit_service_pb2_grpc import add_AuditServiceServicer_to_server
from crucible.storage.v1.batch_store_service_pb2_grpc import add_BatchStoreServiceServicer_to_server
from crucible.storage.v1.evaluation_store_service_pb2_grpc import add_EvaluationStoreServiceServicer_to_server
from crucible.storage.v1.event_log_service_pb2_grpc import add_EventLogServiceServicer_to_server
from crucible.storage.v1.inspection_service_pb2_grpc import (
    add_InspectionStoreServiceServicer_to_server,
    add_InspectionWorkServiceServicer_to_server,
)
from crucible.storage.v1.maintenance_service_pb2_grpc import add_MaintenanceServiceServicer_to_server
from crucible.storage.v1.queue_service_pb2_grpc import add_QueueServiceServicer_to_server
from crucible.storage.v1.status_service_pb2_grpc import add_StatusServiceServicer_to_server
from crucible.storage.v1.tenant_service_pb2_grpc import add_TenantServiceServicer_to_server
from crucible.storage.v1.work_service_pb2_grpc import add_WorkServiceServicer_to_server
from crucible_rpc.server import Server
from crucible_storage.api_key_servicer import ApiKeyServicer
from crucible_storage.audit_servicer import AuditServicer
from crucible_storage.batch_store_servicer import BatchStoreServicer
from crucible_storage.evaluation_store_servicer import EvaluationStoreServicer
from crucible_storage.event_log_servicer import EventLogServicer
from crucible_storage.inspection_servicer import InspectionStoreServicer, InspectionWorkServicer
from crucible_storage.maintenance_servicer import MaintenanceServicer
from crucible_storage.queue_servicer import QueueServicer
from crucible_storage.service import Service
from crucible_storage.status_servicer import StatusServicer
from crucible_storage.tenant_servicer import TenantServicer
from crucible_storage.work_servicer import WorkServicer


def add_services(server: Server, service: Service) -> None:
    """Adds storage's RPCs to a server, and lets its streams end when it drains."""
    evaluations = EvaluationStoreServicer(service.evaluations, service.lists, service.deletion, service.samples)
    status = StatusServicer(service.executors, service.evaluations, service.policy.max_attempts)
    server.add(add_EvaluationStoreServiceServicer_to_server, evaluations)
    batches = BatchStoreServicer(service.batches, service.batch_watches)
    server.add(add_BatchStoreServiceServicer_to_server, batches)
    server.add(add_WorkServiceServicer_to_server, WorkServicer(service.leases, service.reports, service.policy))
    server.add(add_EventLogServiceServicer_to_server, EventLogServicer(service.events))
    server.add(add_ApiKeyServiceServicer_to_server, ApiKeyServicer(service.api_keys))
    server.add(add_InspectionStoreServiceServicer_to_server, InspectionStoreServicer(service.inspections))
    server.add(add_InspectionWorkServiceServicer_to_server, InspectionWorkServicer(service.inspections))
    server.add(add_StatusServiceServicer_to_server, status)
    audit = AuditServicer(service.audit_log, service.receipts, service.heads.public)
    server.add(add_AuditServiceServicer_to_server, audit)
    server.add(add_TenantServiceServicer_to_server, TenantServicer(service.tenants))
    queue = QueueServicer(service.pauses, service.dead_letters, service.policy.max_queued)
    server.add(add_QueueServiceServicer_to_server, queue)
    server.add(add_MaintenanceServiceServicer_to_server, MaintenanceServicer(service.live))
    server.on_drain(service.hub.close)
