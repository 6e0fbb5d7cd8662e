"""Brings what runs did to storage: many runs in one call, one call at a time, each run's events in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from crucible.executor.v1.executor_service_pb2 import RunEvent
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import logs
from crucible_rpc.errors import CallError, InvalidArgumentError
from crucible_worker.carried import CarriedRun

MAX_REPORTS = 1000
MAX_BATCH_BYTES = (3 << 20) - (64 << 10)
STARTED_DELAY = timedelta(milliseconds=50)
"""A start without output hardly hurries: of a short program it travels with the end."""
BEHAVIOUR_DELAY = timedelta(milliseconds=50)
"""The executor collected it for longer than that already; of a short program it travels with the end."""
SAMPLES_DELAY = timedelta(seconds=1)
"""What a program used is told in batches of seconds: so it seldom makes a report of its own."""

_REPORT_OVERHEAD_BYTES = 128
_FIRST_BACKOFF_SECONDS = 0.05
_LONGEST_BACKOFF_SECONDS = 1.0
_log = logging.getLogger(__name__)


class ReportTarget(Protocol):
    """Who reports go to, and who hears what became of them."""

    async def send(self, reports: Sequence[work.RunReport]) -> Sequence[work.RejectedReport]:
        """Stores reports; returns those that were not stored."""
        ...

    def stored(self, run: CarriedRun) -> None:
        """Storage has the end of `run`."""
        ...

    def rejected(self, run: CarriedRun, reason: str, message: str) -> None:
        """Storage refused a report of `run`, whose pending events are still there."""
        ...

    def failed(self, error: CallError) -> None:
        """A whole call failed; it is tried again."""
        ...


@dataclass(frozen=True)
class _Sent:
    run: CarriedRun
    generation: int
    events: int
    final: bool


class Reporter:
    """Collects events for a moment, sends them, and sends again until storage has answered.

    Args:
        target: see `ReportTarget`.
        delay: how long output waits for company. An end never waits.
    """

    def __init__(self, target: ReportTarget, delay: timedelta) -> None:
        self._target = target
        self._delays = {
            "started": STARTED_DELAY.total_seconds(),
            "output": delay.total_seconds(),
            "behaviour": BEHAVIOUR_DELAY.total_seconds(),
            "usage_samples": SAMPLES_DELAY.total_seconds(),
        }
        self._dirty: dict[str, CarriedRun] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._one_by_one = False

    def take(self, run: CarriedRun, event: RunEvent) -> None:
        """Adds an event of a run."""
        run.take(event)
        self._schedule(run, self._delays.get(event.WhichOneof("kind") or "", 0.0))

    def conclude(self, run: CarriedRun, outcome: work.Refused | work.RunLost) -> None:
        """Adds that a run will send no end."""
        run.ended, run.outcome = True, outcome
        self._schedule(run, 0.0)

    def forget(self, run: CarriedRun) -> None:
        """Reports nothing more of a run."""
        self._dirty.pop(run.run_id, None)

    async def flushed(self) -> None:
        """Returns when storage has everything that was added."""
        if self._dirty:
            self._wake.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Reports until cancelled."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._dirty and not await self._send():
                self._wake.set()
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
                continue
            backoff = _FIRST_BACKOFF_SECONDS
            if not self._dirty:
                self._idle.set()

    def _schedule(self, run: CarriedRun, delay: float) -> None:
        self._dirty[run.run_id] = run
        self._idle.clear()
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._due)

    def _due(self) -> None:
        self._timer = None
        self._wake.set()

    async def _send(self) -> bool:
        """Sends one batch; False when the call failed."""
        reports, sent = self._batch()
        try:
            rejected = {one.run_id: one for one in await self._target.send(reports)}
        except InvalidArgumentError as error:
            # One report spoils the batch: find it by sending each alone, so that the others are not held up by it.
            if len(reports) > 1:
                self._one_by_one = True
                self._wake.set()
            else:
                self._settle(sent[0], work.RejectedReport(reason=error.reason, message=error.message))
            return True
        except CallError as error:
            _log.warning("storage did not take a report", extra=logs.fields(error=str(error), reports=len(reports)))
            self._target.failed(error)
            return False
        for one in sent:
            self._settle(one, rejected.get(one.run.run_id))
        self._one_by_one = self._one_by_one and bool(self._dirty)
        return True

    def _batch(self) -> tuple[list[work.RunReport], list[_Sent]]:
        reports: list[work.RunReport] = []
        sent: list[_Sent] = []
        size = 0
        most = 1 if self._one_by_one else MAX_REPORTS
        for run in self._dirty.values():
            if len(reports) >= most or size >= MAX_BATCH_BYTES:
                self._wake.set()  # the rest goes at once
                break
            report = work.RunReport(lease=run.ref())
            events: list[RunEvent] = []
            for event, event_bytes in run.pending:
                if size + event_bytes > MAX_BATCH_BYTES and (reports or events):
                    break
                events.append(event)
                size += event_bytes + 8
            report.events.extend(events)
            whole = len(events) == len(run.pending)
            if not whole:
                self._wake.set()
            if whole and isinstance(run.outcome, work.Refused):
                report.refused.CopyFrom(run.outcome)
            elif whole and isinstance(run.outcome, work.RunLost):
                report.lost.CopyFrom(run.outcome)
            reports.append(report)
            sent.append(_Sent(run, run.generation, len(events), final=whole and run.ended))
            size += _REPORT_OVERHEAD_BYTES
        return reports, sent

    def _settle(self, one: _Sent, rejected: work.RejectedReport | None) -> None:
        run = one.run
        if self._dirty.get(run.run_id) is not run or run.generation != one.generation:
            return  # forgotten or begun again meanwhile
        if rejected is not None:
            del self._dirty[run.run_id]
            self._target.rejected(run, rejected.reason, rejected.message)
            return
        run.drop(one.events)
        if one.final:
            del self._dirty[run.run_id]
            self._target.stored(run)
        elif not run.pending and not run.ended:
            del self._dirty[run.run_id]
