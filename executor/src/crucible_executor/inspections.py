"""The inspections of this executor: self-tests and runs of the attack suite, each with storage's ticket, each signed.

An inspection lives as long as the call that carries it: when that ends, everything that it made is removed. At most one
of a kind is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Protocol

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible_executor.catalog import Catalog
from crucible_executor.inspection_tickets import InspectionTicketCheck
from crucible_executor.selftest import model
from crucible_executor.selftest.parts import Parts
from crucible_rpc import logs
from crucible_rpc.errors import CallError, FailedPreconditionError, ResourceExhaustedError, UnavailableError
from crucible_rpc.signing import Signer

CONTEXT = "crucible.inspection.event.v1"
LONGEST: Mapping[int, timedelta] = {
    pb.INSPECTION_KIND_SELF_TEST: timedelta(minutes=3),
    pb.INSPECTION_KIND_VERIFY_ISOLATION: timedelta(minutes=15),
}
"""What takes longer is ended."""

_BUSY_RETRY = timedelta(seconds=5)
_STATUSES = {
    model.Status.PASSED: pb.CHECK_STATUS_PASSED,
    model.Status.FAILED: pb.CHECK_STATUS_FAILED,
    model.Status.NOT_RUN: pb.CHECK_STATUS_NOT_RUN,
}
_log = logging.getLogger(__name__)

Found = pb.CheckResult | pb.AttemptResult | pb.SelfTestSummary | pb.VerificationSummary
_FIELDS: dict[type[Any], str] = {
    pb.CheckResult: "check",
    pb.AttemptResult: "attempt",
    pb.SelfTestSummary: "self_test",
    pb.VerificationSummary: "verification",
    pb.InspectionFailed: "failed",
}


class SuiteFailedError(Exception):
    """The attack suite did not get to its end; the text says why."""


class AttackSuite(Protocol):
    """Runs the attack suite."""

    def run(self, engine: str, attempts: list[str]) -> AsyncGenerator[Found, None]:
        """Yields each attempt's result as it comes, then the summary. Closed early, it removes what it made.

        Raises:
            CallError: it could not be begun.
            SuiteFailedError: see there.
        """
        ...


class Inspections:
    """All inspections of one start of this executor.

    Args:
        tickets: checks storage's leave.
        catalog: the engines.
        parts: what a self-test looks at.
        suite: the attack suite.
        signer: signs what was found.
        executor_id: for the events, as `boot_id`.
        longest: see `LONGEST`.
    """

    def __init__(
        self,
        *,
        tickets: InspectionTicketCheck,
        catalog: Catalog,
        parts: Parts,
        suite: AttackSuite,
        signer: Signer,
        executor_id: str,
        boot_id: str,
        longest: Mapping[int, timedelta] = LONGEST,
    ) -> None:
        self._tickets = tickets
        self._catalog = catalog
        self._parts = parts
        self._suite = suite
        self._signer = signer
        self._executor_id = executor_id
        self._boot_id = boot_id
        self._longest = longest
        self._running: set[int] = set()
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    async def run(self, signed: SignedBytes) -> AsyncGenerator[SignedBytes, None]:
        """Makes the inspection that a ticket names and yields its signed events.

        Raises:
            CallError: it was refused; see `InspectionService.RunInspection`.
        """
        ticket = self._tickets.take(signed)
        with self._only_one(ticket.kind):
            facts = logs.fields(inspection=ticket.inspection_id, kind=pb.InspectionKind.Name(ticket.kind))
            _log.info("inspection begins", extra=facts)
            sequence = 0
            async with aclosing(self._bounded(ticket)) as found:
                async for one in found:
                    sequence += 1
                    yield self._signed(ticket, sequence, one)

    async def close(self) -> None:
        """Ends what is under way, and takes nothing more; returns when all of it is removed."""
        self.begin_closing()
        await self._idle.wait()

    def begin_closing(self) -> None:
        """Ends what is under way, and takes nothing more."""
        self._closing.set()

    @contextlib.contextmanager
    def _only_one(self, kind: int) -> Iterator[None]:
        if self._closing.is_set():
            raise UnavailableError("SHUTTING_DOWN", "the executor is stopping", retry_after=timedelta(seconds=1))
        if kind in self._running:
            text = "an inspection of this kind is under way on this executor; try again when it has ended"
            raise ResourceExhaustedError("INSPECTION_RUNNING", text, retry_after=_BUSY_RETRY)
        self._running.add(kind)
        self._idle.clear()
        try:
            yield
        finally:
            self._running.discard(kind)
            if not self._running:
                self._idle.set()

    async def _bounded(self, ticket: pb.InspectionTicket) -> AsyncGenerator[Found | pb.InspectionFailed, None]:
        """What it finds, until it ends, takes too long, or the executor stops."""
        deadline = asyncio.get_running_loop().time() + self._longest[ticket.kind].total_seconds()
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            async with aclosing(self._found(ticket)) as found:
                while (one := await _next(found, closing, deadline)) is not None:
                    yield one
                    if isinstance(one, pb.InspectionFailed):
                        return
        finally:
            closing.cancel()

    def _found(self, ticket: pb.InspectionTicket) -> AsyncGenerator[Found, None]:
        if ticket.kind == pb.INSPECTION_KIND_VERIFY_ISOLATION:
            self._catalog.engine(ticket.engine)  # one that can be used
            return self._suite.run(ticket.engine, list(ticket.attempts))
        if ticket.engine and ticket.engine not in self._catalog.engines:
            raise FailedPreconditionError("ENGINE_NOT_AVAILABLE", f"this executor has no engine {ticket.engine!r}")
        return self._self_test(ticket.engine)

    async def _self_test(self, engine: str) -> AsyncGenerator[Found, None]:
        began = time.monotonic()
        count = dict.fromkeys(model.Status, 0)
        async with aclosing(model.run(self._parts.checks(engine))) as results:
            async for result in results:
                count[result.status] += 1
                yield _check(result)
        summary = pb.SelfTestSummary(
            executor=self._executor_id,
            passed=count[model.Status.PASSED],
            failed=count[model.Status.FAILED],
            not_run=count[model.Status.NOT_RUN],
        )
        summary.duration.FromMilliseconds(int((time.monotonic() - began) * 1000))
        yield summary

    def _signed(self, ticket: pb.InspectionTicket, sequence: int, found: Found | pb.InspectionFailed) -> SignedBytes:
        event = pb.InspectionEvent(
            inspection_id=ticket.inspection_id,
            executor_id=self._executor_id,
            boot_id=self._boot_id,
            sequence=sequence,
            **{_FIELDS[type(found)]: found},  # type: ignore[arg-type]
        )
        payload = event.SerializeToString()
        signature = self._signer.sign(CONTEXT, payload)
        return SignedBytes(payload=payload, key_id=signature.key_id, signature=signature.signature)


def _check(result: model.Result) -> pb.CheckResult:
    made = pb.CheckResult(
        component=result.component, name=result.name, status=_STATUSES[result.status], evidence=result.evidence
    )
    made.duration.FromMilliseconds(int(result.seconds * 1000))
    return made


async def _next(
    found: AsyncGenerator[Found, None], closing: asyncio.Future[Any], deadline: float
) -> Found | pb.InspectionFailed | None:
    """What is found next, and None at the end; `failed` when the executor stops or the time is up before that."""
    step = asyncio.ensure_future(anext(found, None))
    either: list[asyncio.Future[Any]] = [step, closing]
    left = max(0.0, deadline - asyncio.get_running_loop().time())
    try:
        await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        in_time = step.done()
        if not in_time:
            step.cancel()
            await _settled(step)
    if in_time:
        return _result(step)
    return pb.InspectionFailed(reason="the executor stopped" if closing.done() else "it took longer than it may")


async def _settled(step: asyncio.Future[Any]) -> None:
    """Waits for the end of a step that was cancelled: what it made must be removed, whatever else is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _result(step: asyncio.Future[Any]) -> Found | pb.InspectionFailed | None:
    """What one step found. An inspection that fails on the way has found what it has found, and says that it failed."""
    try:
        found: Found | None = step.result()
        return found
    except CallError:
        raise
    except SuiteFailedError as error:
        return pb.InspectionFailed(reason=str(error)[: model.MAX_EVIDENCE_CHARACTERS])
    except Exception as error:
        _log.exception("inspection failed")
        return pb.InspectionFailed(reason=f"{type(error).__name__}; the executor's log has it")
