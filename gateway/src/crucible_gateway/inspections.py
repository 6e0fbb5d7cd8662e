"""Inspections of executors for public callers: self-tests for everybody, the attack suite for administrators."""

import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import timedelta
from typing import Protocol

from crucible.gateway.v1 import platform_service_pb2 as api
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible.storage.v1 import inspection_service_pb2 as store
from crucible_gateway.caller import Caller
from crucible_gateway.validation import invalid
from crucible_rpc.errors import (
    CallError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

SERVICES = ("executor",)
"""Those with self-tests."""

MAX_ATTEMPTS = 200
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_RETRY_AFTER = timedelta(seconds=5)


class InspectionStore(Protocol):
    """What is needed of storage."""

    def inspect(self, request: store.RunInspectionRequest) -> AsyncGenerator[store.RunInspectionResponse, None]: ...  # noqa: D102


class DefaultEngine(Protocol):
    """Who knows which engine is the default."""

    async def default_engine(self) -> str: ...  # noqa: D102


class Inspections:
    """A caller's inspections. Each ends with the call that asked for it.

    Args:
        storage: where they are kept.
        view: knows the default engine.
    """

    def __init__(self, storage: InspectionStore, view: DefaultEngine) -> None:
        self._storage = storage
        self._view = view

    async def self_test(
        self, caller: Caller, request: api.RunSelfTestRequest
    ) -> AsyncGenerator[api.RunSelfTestResponse, None]:
        """Each check as it comes, then the summary.

        Raises:
            CallError: see `PlatformService.RunSelfTest`.
        """
        violations = _names([request.engine] if request.engine else [], "engine")
        if request.service not in ("", *SERVICES):
            violations.append(FieldViolation("service", f"must be one of {', '.join(SERVICES)}, or empty"))
        if violations:
            raise invalid(violations)
        wanted = _request(caller, pb.INSPECTION_KIND_SELF_TEST, request.engine)
        async with aclosing(self._events(wanted)) as events:
            async for event in events:
                if event.HasField("check"):
                    yield api.RunSelfTestResponse(check=event.check)
                elif event.HasField("self_test"):
                    yield api.RunSelfTestResponse(summary=event.self_test)

    async def verify(
        self, caller: Caller, request: api.VerifyIsolationRequest
    ) -> AsyncGenerator[api.VerifyIsolationResponse, None]:
        """Each verdict as it comes, then the summary.

        Raises:
            CallError: see `PlatformService.VerifyIsolation`.
        """
        violations = _names([request.engine] if request.engine else [], "engine")
        violations += _names(request.attempts[:MAX_ATTEMPTS], "attempts")
        if len(request.attempts) > MAX_ATTEMPTS:
            violations.append(FieldViolation("attempts", f"must be at most {MAX_ATTEMPTS}"))
        if violations:
            raise invalid(violations)
        engine = request.engine or await self._view.default_engine()
        if not engine:
            text = "no executor has registered yet, so nothing can be verified; start an executor with its worker"
            raise FailedPreconditionError("ENGINE_NOT_AVAILABLE", text)
        wanted = _request(caller, pb.INSPECTION_KIND_VERIFY_ISOLATION, engine, request.attempts)
        async with aclosing(self._events(wanted)) as events:
            async for event in events:
                if event.HasField("attempt"):
                    yield api.VerifyIsolationResponse(attempt=event.attempt)
                elif event.HasField("verification"):
                    yield api.VerifyIsolationResponse(summary=event.verification)

    async def _events(self, wanted: store.RunInspectionRequest) -> AsyncGenerator[pb.InspectionEvent, None]:
        async with aclosing(self._storage.inspect(wanted)) as answers:
            async for answer in answers:
                if answer.HasField("lost"):
                    text = f"the inspection was not brought to its end: {answer.lost.reason}"
                    raise UnavailableError("INSPECTION_LOST", text, retry_after=_RETRY_AFTER)
                if answer.HasField("refused"):
                    raise _refusal(answer.refused)
                yield answer.event


def _request(
    caller: Caller, kind: pb.InspectionKind.ValueType, engine: str, attempts: Iterable[str] = ()
) -> store.RunInspectionRequest:
    return store.RunInspectionRequest(
        tenant=caller.tenant,
        creator=caller.key_id,
        kind=kind,
        engine=engine,
        attempts=attempts,
    )


def _names(texts: Iterable[str], field: str) -> list[FieldViolation]:
    bad = [text for text in texts if not _NAME.fullmatch(text)]
    return [FieldViolation(field, "must have 1 to 64 small letters, digits and `-`")] if bad else []


def _refusal(refused: store.InspectionRefused) -> CallError:
    """What a caller is told of its executor's refusal."""
    if refused.reason == "INSPECTION_RUNNING":
        return ResourceExhaustedError("INSPECTION_RUNNING", refused.message, retry_after=_RETRY_AFTER)
    if refused.reason == "INVALID_FIELD":
        return InvalidArgumentError("INVALID_FIELD", refused.message, [FieldViolation("attempts", refused.message)])
    if refused.reason in ("ENGINE_NOT_AVAILABLE", "CANNOT_VERIFY"):
        return FailedPreconditionError(refused.reason, refused.message)
    # A ticket that came too late, say: nothing was begun, and another try has another ticket.
    text = f"the executor did not take the inspection: {refused.message}"
    return UnavailableError("INSPECTION_LOST", text, retry_after=_RETRY_AFTER)
