"""Inspections of the executor: leased from storage, made by the executor, and carried back event by event.

An inspection is one call of the executor, and ends with it: this process may end at any moment and nothing goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible.storage.v1 import inspection_service_pb2 as pb
from crucible_rpc import logs
from crucible_rpc.errors import (
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
)

HEARTBEAT_SECONDS = 1.0
"""Between reports: storage must hear of a worker within a lease, and a caller who left is noticed by this."""

MAX_EVENTS = 100
SILENCE_SECONDS = 10.0
"""A storage that cannot be reached for so long has given the inspection up."""

_RETRY_SECONDS = 0.5
_FAREWELL_SECONDS = 1.0
_MAX_REASON_CHARACTERS = 1000
_REFUSALS = (FailedPreconditionError, InvalidArgumentError, PermissionDeniedError, ResourceExhaustedError)
_log = logging.getLogger(__name__)

Outcome = pb.InspectionRefused | pb.InspectionLost | None


class InspectionStorage(Protocol):
    """Storage's inspections; all of it raises CallError."""

    async def lease(self, executor_id: str, since: ExecutorTime, wait: timedelta) -> Sequence[pb.InspectionAssignment]:
        """See `InspectionWorkService.LeaseInspections`."""
        ...

    async def report(
        self, executor_id: str, inspection_id: str, events: Sequence[SignedBytes], outcome: Outcome
    ) -> bool:
        """See `InspectionWorkService.ReportInspection`; whether it is to be ended."""
        ...


class InspectionExecutor(Protocol):
    """The executor beside this worker."""

    def inspect(self, ticket: SignedBytes) -> AsyncGenerator[SignedBytes, None]:
        """See `InspectionService.RunInspection`."""
        ...


class Inspector:
    """Carries inspections; to be used as an asynchronous context, inside which it works.

    Args:
        storage: gives them and takes what they found.
        executor: makes them.
        connected: returns the executor's id and what its clock says, once both can be reached.
        lease_wait: how long storage may hold a call for one that is not there yet.
    """

    def __init__(
        self,
        storage: InspectionStorage,
        executor: InspectionExecutor,
        connected: Callable[[], Awaitable[tuple[str, ExecutorTime]]],
        lease_wait: timedelta,
    ) -> None:
        self._storage = storage
        self._executor = executor
        self._connected = connected
        self._lease_wait = lease_wait
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._spawn(self._lease_for_ever())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _lease_for_ever(self) -> None:
        while True:
            executor_id, since = await self._connected()
            try:
                given = await self._storage.lease(executor_id, since, self._lease_wait)
            except CallError as error:
                _log.debug("no inspections can be leased", extra=logs.fields(error=str(error)))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for assignment in given:
                self._spawn(self._carry(executor_id, assignment))

    async def _carry(self, executor_id: str, assignment: pb.InspectionAssignment) -> None:
        """One inspection, from its ticket to its end."""
        inspection = assignment.inspection_id
        _log.info("inspection begins", extra=logs.fields(inspection=inspection))
        arrived: asyncio.Queue[SignedBytes] = asyncio.Queue(MAX_EVENTS)
        carrying = asyncio.ensure_future(self._receive(assignment.ticket, arrived))
        try:
            await self._report_until_ended(executor_id, inspection, arrived, carrying)
        except asyncio.CancelledError:
            await self._farewell(executor_id, inspection)
            raise
        finally:
            carrying.cancel()
            await asyncio.wait([carrying])
        _log.info("inspection ended", extra=logs.fields(inspection=inspection))

    async def _receive(self, ticket: SignedBytes, arrived: asyncio.Queue[SignedBytes]) -> Outcome:
        """Takes what the executor sends; returns why no more will come."""
        count = 0
        try:
            async with aclosing(self._executor.inspect(ticket)) as events:
                async for event in events:
                    await arrived.put(event)
                    count += 1
        except CallError as error:
            if count == 0 and isinstance(error, _REFUSALS):
                return pb.InspectionRefused(reason=error.reason, message=error.message[:_MAX_REASON_CHARACTERS])
            return pb.InspectionLost(reason=f"its executor was lost: {error}"[:_MAX_REASON_CHARACTERS])
        return pb.InspectionLost(reason="its executor ended the call before the inspection's end")

    async def _report_until_ended(
        self,
        executor_id: str,
        inspection: str,
        arrived: asyncio.Queue[SignedBytes],
        carrying: asyncio.Future[Outcome],
    ) -> None:
        """Reports events as they come, and at every heartbeat, until storage wants no more."""
        loop = asyncio.get_running_loop()
        answered = loop.time()
        events: list[SignedBytes] = []
        while True:
            if not events:
                events = await _some(arrived, carrying)
            outcome = carrying.result() if carrying.done() and arrived.empty() else None
            try:
                stop = await self._storage.report(executor_id, inspection, events, outcome)
            except CallError as error:
                if isinstance(error, InvalidArgumentError) or loop.time() - answered > SILENCE_SECONDS:
                    _log.warning("inspection given up", extra=logs.fields(inspection=inspection, error=str(error)))
                    return
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            answered, events = loop.time(), []
            if stop or outcome is not None:
                return

    async def _farewell(self, executor_id: str, inspection: str) -> None:
        """This worker stops: says so, so that nobody has to wait for a lease to end."""
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self._storage.report(executor_id, inspection, [], pb.InspectionLost(reason="its worker stopped"))
        except (CallError, TimeoutError) as error:
            _log.debug("storage could not be told", extra=logs.fields(error=str(error)))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.critical("a task of the inspector failed", exc_info=task.exception())


async def _some(arrived: asyncio.Queue[SignedBytes], carrying: asyncio.Future[Outcome]) -> list[SignedBytes]:
    """What has arrived; waits for some until the next heartbeat, or the end."""
    if arrived.empty() and not carrying.done():
        first = asyncio.ensure_future(arrived.get())
        either: list[asyncio.Future[Any]] = [first, carrying]
        await asyncio.wait(either, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        taken = [first.result()] if first.done() else []
        first.cancel()
    else:
        taken = []
    while not arrived.empty() and len(taken) < MAX_EVENTS:
        taken.append(arrived.get_nowait())
    return taken
