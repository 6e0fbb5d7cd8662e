"""Which process may call which RPC; what is not listed nobody may call."""

from crucible_rpc.identity import Permissions

_GATEWAY = frozenset({"gateway"})
_WORKER = frozenset({"worker"})
_MONITOR = frozenset({"monitor"})
_OPERATOR = frozenset({"storage"})
"""Local commands that can read storage's own key (`maintenance`)."""

PERMISSIONS: Permissions = {
    "/crucible.storage.v1.ApiKeyService/AuthenticateApiKey": _GATEWAY,
    "/crucible.storage.v1.ApiKeyService/CreateApiKey": _GATEWAY,
    "/crucible.storage.v1.ApiKeyService/ListApiKeys": _GATEWAY,
    "/crucible.storage.v1.ApiKeyService/RevokeApiKey": _GATEWAY,
    "/crucible.storage.v1.AuditService/GetReceipt": _GATEWAY,
    "/crucible.storage.v1.AuditService/ListAuditRecords": _GATEWAY,
    "/crucible.storage.v1.AuditService/ListPublicKeys": _GATEWAY,
    "/crucible.storage.v1.AuditService/VerifyAudit": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/AddBatchItems": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/CancelBatch": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/CompleteBatch": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/GetBatch": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/ListBatches": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/OpenBatch": _GATEWAY,
    "/crucible.storage.v1.BatchStoreService/WatchBatch": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/CancelEvaluation": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/CreateEvaluation": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/DeleteEvaluation": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/GetEvaluation": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/ListEvaluations": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/ListUsageSamples": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/ReadOutput": _GATEWAY,
    "/crucible.storage.v1.EvaluationStoreService/WaitEvaluation": _GATEWAY,
    "/crucible.storage.v1.EventLogService/ReadEvents": _MONITOR,
    "/crucible.storage.v1.EventLogService/TailEvents": _MONITOR,
    "/crucible.storage.v1.InspectionStoreService/RunInspection": _GATEWAY,
    "/crucible.storage.v1.InspectionWorkService/LeaseInspections": _WORKER,
    "/crucible.storage.v1.InspectionWorkService/ReportInspection": _WORKER,
    "/crucible.storage.v1.MaintenanceService/CopyDatabase": _OPERATOR,
    "/crucible.storage.v1.MaintenanceService/GetUsage": _OPERATOR,
    "/crucible.storage.v1.QueueService/GetQueueStatus": _GATEWAY,
    "/crucible.storage.v1.QueueService/ListDeadLetters": _GATEWAY,
    "/crucible.storage.v1.QueueService/PauseQueue": _GATEWAY,
    "/crucible.storage.v1.QueueService/ResumeQueue": _GATEWAY,
    "/crucible.storage.v1.QueueService/RetryDeadLetter": _GATEWAY,
    "/crucible.storage.v1.StatusService/GetQueue": _GATEWAY,
    "/crucible.storage.v1.StatusService/ListExecutors": _GATEWAY,
    "/crucible.storage.v1.TenantService/CreateTenant": _GATEWAY,
    "/crucible.storage.v1.TenantService/ListTenants": _GATEWAY,
    "/crucible.storage.v1.TenantService/SetQuota": _GATEWAY,
    "/crucible.storage.v1.WorkService/LeaseWork": _WORKER,
    "/crucible.storage.v1.WorkService/RegisterExecutor": _WORKER,
    "/crucible.storage.v1.WorkService/RenewLeases": _WORKER,
    "/crucible.storage.v1.WorkService/ReportRuns": _WORKER,
    "/crucible.storage.v1.WorkService/WatchStops": _WORKER,
}
