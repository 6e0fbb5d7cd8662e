"""`AuditService`: checks the request, calls `AuditLog` or `Receipts`, converts the answer."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from crucible.audit.v1.audit_pb2 import AuditFinding, AuditSummary, PublicKey
from crucible.storage.v1 import audit_service_pb2 as pb
from crucible.storage.v1 import audit_service_pb2_grpc as rpc
from crucible_storage import checks
from crucible_storage.audit_log import AuditLog
from crucible_storage.names import parse_evaluation_name
from crucible_storage.receipts import Receipts

MAX_PAGE = 1000


class AuditServicer(rpc.AuditServiceServicer):
    """The audit log and receipts for the gateway."""

    def __init__(self, log: AuditLog, receipts: Receipts, public_keys: Sequence[PublicKey]) -> None:
        self._log = log
        self._receipts = receipts
        self._public_keys = public_keys

    async def ListAuditRecords(self, request: pb.ListAuditRecordsRequest, context: Any) -> pb.ListAuditRecordsResponse:
        """See the contract."""
        subject = checks.short(request.subject, "subject")
        size = checks.between(request.page_size, 1, MAX_PAGE, "page_size")
        page, token = await self._log.page(subject, size, request.page_token)
        return pb.ListAuditRecordsResponse(records=page, next_page_token=token)

    async def VerifyAudit(self, request: pb.VerifyAuditRequest, context: Any) -> AsyncIterator[pb.VerifyAuditResponse]:
        """See the contract."""
        async with aclosing(self._log.verify(request.since if request.HasField("since") else None)) as found:
            async for one in found:
                if isinstance(one, AuditFinding):
                    yield pb.VerifyAuditResponse(finding=one)
                elif isinstance(one, AuditSummary):
                    yield pb.VerifyAuditResponse(summary=one)
                else:
                    yield pb.VerifyAuditResponse(records=one)

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.GetReceiptResponse:
        """See the contract."""
        evaluation_id = parse_evaluation_name(request.name)
        return pb.GetReceiptResponse(receipt=await self._receipts.get(request.tenant, evaluation_id))

    async def ListPublicKeys(self, request: pb.ListPublicKeysRequest, context: Any) -> pb.ListPublicKeysResponse:
        """See the contract."""
        return pb.ListPublicKeysResponse(public_keys=self._public_keys)
