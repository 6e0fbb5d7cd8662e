"""The audit log and receipts for public callers: receipts for whose they are, the log for administrators."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from crucible.audit.v1 import audit_pb2 as pb
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible.storage.v1 import audit_service_pb2 as store
from crucible_gateway.caller import Caller
from crucible_gateway.validation import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    MAX_PAGE_TOKEN_CHARACTERS,
    Violations,
    check_name,
)
from crucible_rpc import logs
from crucible_rpc.errors import FieldViolation, InvalidArgumentError

MAX_SUBJECT_CHARACTERS = 256
MAX_HEAD_BYTES = 8192


class AuditStore(Protocol):
    """What is needed of storage."""

    async def audit_page(self, request: store.ListAuditRecordsRequest) -> store.ListAuditRecordsResponse: ...  # noqa: D102
    def verify_audit(self, request: store.VerifyAuditRequest) -> AsyncGenerator[store.VerifyAuditResponse, None]: ...  # noqa: D102
    async def receipt(self, tenant: str, name: str) -> pb.Receipt: ...  # noqa: D102
    async def public_keys(self) -> list[pb.PublicKey]: ...  # noqa: D102


class Audit:
    """What can be proved afterwards.

    Args:
        storage: where the log is kept.
    """

    def __init__(self, storage: AuditStore) -> None:
        self._storage = storage

    async def receipt(self, caller: Caller, name: str) -> pb.Receipt:
        """The receipt of one of the caller's evaluations.

        Raises:
            CallError: see `EvaluationService.GetReceipt`.
        """
        check_name(name)
        logs.bind(evaluation=name)
        return await self._storage.receipt(caller.tenant, name)

    async def public_keys(self) -> list[pb.PublicKey]:
        """What heads and records can be checked with."""
        return await self._storage.public_keys()

    async def page(self, request: admin.ListAuditRecordsRequest) -> admin.ListAuditRecordsResponse:
        """A page of the log, newest first.

        Raises:
            InvalidArgumentError: with every field at fault, or INVALID_PAGE_TOKEN.
        """
        found = Violations()
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            found.add("page_size", f"must be from 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}")
        if len(request.subject) > MAX_SUBJECT_CHARACTERS or "\0" in request.subject:
            found.add("subject", f"must be at most {MAX_SUBJECT_CHARACTERS} characters, without NUL")
        found.check()
        if len(request.page_token) > MAX_PAGE_TOKEN_CHARACTERS:
            violation = FieldViolation("page_token", "must be the next_page_token of the answer before")
            raise InvalidArgumentError("INVALID_PAGE_TOKEN", f"page_token: {violation.description}", [violation])
        size = request.page_size or DEFAULT_PAGE_SIZE
        page = await self._storage.audit_page(
            store.ListAuditRecordsRequest(page_size=size, page_token=request.page_token, subject=request.subject)
        )
        return admin.ListAuditRecordsResponse(records=page.records, next_page_token=page.next_page_token)

    async def verify(self, request: admin.VerifyAuditRequest) -> AsyncGenerator[admin.VerifyAuditResponse, None]:
        """A check of the whole log: how far it came and what is wrong, then the summary.

        Raises:
            CallError: see `AdminService.VerifyAudit`.
        """
        found = Violations()
        if request.since.ByteSize() > MAX_HEAD_BYTES:
            found.add("since", "must be a signed head of this log")
        found.check()
        wanted = store.VerifyAuditRequest(since=request.since if request.HasField("since") else None)
        async with aclosing(self._storage.verify_audit(wanted)) as answers:
            async for answer in answers:
                kind = answer.WhichOneof("kind")
                if kind == "finding":
                    yield admin.VerifyAuditResponse(finding=answer.finding)
                elif kind == "summary":
                    yield admin.VerifyAuditResponse(summary=answer.summary)
                else:
                    yield admin.VerifyAuditResponse(records=answer.records)
