"""Carries one run's events from the executor to the reporter, through broken streams and restarts of the executor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Protocol

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import logs
from crucible_rpc.errors import (
    AlreadyExistsError,
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnimplementedError,
)
from crucible_worker.carried import CarriedRun
from crucible_worker.peers import ExecutorPeer
from crucible_worker.reporter import Reporter
from crucible_worker.uploads import NotStorableError, Uploads

PERMANENT_REASONS = frozenset({"ABOVE_CEILING", "LIMIT_NOT_ENFORCEABLE", "MESSAGE_TOO_LARGE"})
"""No executor with the same settings will ever take such a run."""

NO_ROOM_REASONS = frozenset({"NO_FREE_SLOT", "STORAGE_FULL"})
"""The executor may take the very same run later: such a refusal is no attempt."""

ENGINE_REASON = "ENGINE_NOT_AVAILABLE"
"""Nor is this one: the engine failed after storage was told that it works. Once storage knows, work for it waits.

The only refusal that ends a run from `Attach` too: it was accepted, and withdrawn before anything of it started.
"""

_REFUSALS = (
    FailedPreconditionError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnimplementedError,
)
_LATER = timedelta(seconds=1)
_RETRY_SECONDS = 0.1
_log = logging.getLogger(__name__)


class ExecutorLink(Protocol):
    """Whether the executor can be reached."""

    def lost(self, error: CallError) -> None:
        """A call to it failed; somebody finds out whether it is there."""
        ...

    def outdated(self) -> None:
        """It does not offer any more what storage knows of it; somebody asks it, and tells storage."""
        ...

    async def back(self) -> None:
        """Returns when it can be reached."""
        ...


def refusal(error: CallError) -> work.Refused | None:
    """What a failed `Execute` means for storage; None when it does not say that the run was never accepted."""
    message = work.Refused(reason=f"{error.reason}: {error.message}")
    if isinstance(error, ResourceExhaustedError) and error.reason in NO_ROOM_REASONS:
        message.retry_after.FromTimedelta(error.retry_after or _LATER)
    elif error.reason == ENGINE_REASON:
        message.retry_after.FromTimedelta(_LATER)
    elif isinstance(error, InvalidArgumentError) or error.reason in PERMANENT_REASONS:
        message.permanent = True
    elif isinstance(error, _REFUSALS):
        message.failed_attempt = True  # refused for good, as far as anybody can tell: it must not wait for ever
    else:
        return None
    return message


class Carrier:
    """Carries runs.

    Args:
        executor: runs them.
        link: knows whether it can be reached.
        reporter: takes what they did.
        uploads: stores the files that a run's program left.
        on_ended: called when a run's slot is free and its end is on its way.
        on_storing: called when its slot is free, and its end is not yet.
    """

    def __init__(
        self,
        executor: ExecutorPeer,
        link: ExecutorLink,
        reporter: Reporter,
        uploads: Uploads,
        on_ended: Callable[[CarriedRun], None],
        on_storing: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._link = link
        self._reporter = reporter
        self._uploads = uploads
        self._on_ended = on_ended
        self._on_storing = on_storing

    async def execute(self, run: CarriedRun, assignment: work.Assignment, permit: timedelta) -> None:
        """Starts a run and carries its events to the end."""
        try:
            await self._carry(run, self._executor.execute(assignment, permit))
        except AlreadyExistsError:
            pass
        except CallError as error:
            refused = refusal(error)
            if refused is not None:
                self._refused(run, refused, error)
                return
            self._link.lost(error)
        del assignment  # may be megabytes, and nothing is ever started from it again
        if not run.ended:
            await self.attach(run)

    async def attach(self, run: CarriedRun) -> None:
        """Carries the events of a run that was started before, from what was received on, as often as it takes."""
        while not run.ended:
            await self._link.back()
            try:
                have = (run.stdout_offset, run.stderr_offset, run.behaviour_sequence, run.usage_samples)
                await self._carry(run, self._executor.attach(run.run_id, *have))
            except NotFoundError:
                await self._unknown(run)
            except CallError as error:
                if error.reason == ENGINE_REASON and (refused := refusal(error)) is not None:
                    self._refused(run, refused, error)  # it was withdrawn before it started
                else:
                    await self._failed(error)

    async def _carry(self, run: CarriedRun, events: AsyncIterator[ex.RunEvent]) -> None:
        try:
            async for event in events:
                if event.HasField("finished") and not await self._stored(run, event.finished):
                    return
                self._reporter.take(run, event)
                if run.ended:
                    self._on_ended(run)  # the stream ends by itself now; leaving it early would cancel the call
                else:
                    await run.room()
        except CallError:
            if not run.ended:
                raise

    async def _stored(self, run: CarriedRun, record: SignedBytes) -> bool:
        """Stores what the program left, for storage takes no end of a run whose files it lacks. False: it cannot be."""
        files = ex.FinalRecord.FromString(record.payload).artifacts
        if not files:
            return True
        run.storing = True
        self._on_storing()
        try:
            await self._uploads.store(run, files)
        except NotStorableError as error:
            _log.error("files cannot be stored", extra=logs.fields(run=run.run_id, reason=str(error)))
            self._conclude(run, work.RunLost(reason=str(error), confirmed_gone=True))
            return False
        return True

    async def _unknown(self, run: CarriedRun) -> None:
        """The executor does not know the run: makes sure that it never starts, and says so.

        Always a failed attempt, also when the call that brought the run was lost: its id can never start now, and only
        another attempt has another id.
        """
        try:
            state = await self._executor.kill(run.run_id)
        except CallError as error:
            await self._failed(error)
            return
        if state in (ex.RUN_STATE_RUNNING, ex.RUN_STATE_FINISHED):
            return  # it was accepted in between: attach again
        _log.warning("reconciled", extra=logs.fields(case="run unknown to the executor", run=run.run_id))
        reason = "the executor does not know the run; nothing of it is left and it can never start there"
        self._conclude(run, work.RunLost(reason=reason, confirmed_gone=True))

    async def _failed(self, error: CallError) -> None:
        """Waits a moment: what answers other calls at once and fails this one must not be called in a tight loop."""
        self._link.lost(error)
        await asyncio.sleep(_RETRY_SECONDS)

    def _refused(self, run: CarriedRun, refused: work.Refused, error: CallError) -> None:
        _log.warning("the executor refused a run", extra=logs.fields(run=run.run_id, reason=str(error)))
        self._conclude(run, refused)
        if error.reason == ENGINE_REASON:
            self._link.outdated()

    def _conclude(self, run: CarriedRun, outcome: work.Refused | work.RunLost) -> None:
        self._reporter.conclude(run, outcome)
        self._on_ended(run)


async def kill_at_last(executor: ExecutorPeer, link: ExecutorLink, run_id: str) -> None:
    """Ends a run, however long the executor cannot be reached."""
    while True:
        try:
            await executor.kill(run_id)
            return
        except CallError as error:
            _log.warning("the executor did not end a run", extra=logs.fields(run=run_id, error=str(error)))
            link.lost(error)
            await asyncio.sleep(_RETRY_SECONDS)
            await link.back()
