"""Brings what runs did to storage: many runs in one call, one call at a time, each run's events in order."""

from __future__ import annotations

import asyncio
import logging
import math
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
FIRST_DELAY = timedelta(milliseconds=100)
"""What a run does first waits so long for the rest: of a short program all is one report, with its end."""
BEHAVIOUR_DELAY = timedelta(milliseconds=50)
"""The executor collected it for longer than that already."""
HURRY_BYTES = 64 << 10
"""So much of one run does not wait at all."""
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

    Each run has a time when it is due; a report has those that are due by then or so soon that they can as well come
    along. The end of one run does not cut the story of another that has just begun in two.

    Args:
        target: see `ReportTarget`.
        delay: how long output waits for company. An end never waits.
    """

    def __init__(self, target: ReportTarget, delay: timedelta) -> None:
        self._target = target
        self._company = delay.total_seconds()
        self._delays = {
            "behaviour": BEHAVIOUR_DELAY.total_seconds(),
            "usage_samples": SAMPLES_DELAY.total_seconds(),
        }
        self._dirty: dict[str, CarriedRun] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._idle = asyncio.Event()
        self._idle.set()
        self._one_by_one = False

    def take(self, run: CarriedRun, event: RunEvent) -> None:
        """Adds an event of a run."""
        run.take(event)
        if run.ended or run.pending_bytes >= HURRY_BYTES:
            delay = 0.0
        elif not run.reported:
            delay = FIRST_DELAY.total_seconds()
        else:
            delay = self._delays.get(event.WhichOneof("kind") or "", self._company)
        self._schedule(run, delay)

    def conclude(self, run: CarriedRun, outcome: work.Refused | work.RunLost) -> None:
        """Adds that a run will send no end."""
        run.ended, run.outcome = True, outcome
        self._schedule(run, 0.0)

    def forget(self, run: CarriedRun) -> None:
        """Reports nothing more of a run."""
        self._dirty.pop(run.run_id, None)

    async def flushed(self) -> None:
        """Returns when storage has everything that was added."""
        for run in self._dirty.values():
            self._schedule(run, 0.0)
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
            self._wake_at(min((run.due for run in self._dirty.values()), default=math.inf))

    def _schedule(self, run: CarriedRun, delay: float) -> None:
        self._dirty[run.run_id] = run
        self._idle.clear()
        run.due = min(run.due, asyncio.get_running_loop().time() + delay)
        self._wake_at(run.due)

    def _wake_at(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        if due <= loop.time():
            self._wake.set()
        elif due < self._wakes_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._wakes_at = loop.call_at(due, self._due), due

    def _due(self) -> None:
        self._timer, self._wakes_at = None, math.inf
        self._wake.set()

    async def _send(self) -> bool:
        """Sends one batch; False when the call failed."""
        reports, sent = self._batch()
        if not reports:
            return True
        try:
            rejected = {one.run_id: one for one in await self._target.send(reports)}
        except InvalidArgumentError as error:
            # One report spoils the batch: find it by sending each alone, so that the others are not held up by it.
            if len(reports) > 1:
                self._one_by_one = True
                self._again(sent)
            else:
                self._settle(sent[0], work.RejectedReport(reason=error.reason, message=error.message))
            return True
        except CallError as error:
            _log.warning("storage did not take a report", extra=logs.fields(error=str(error), reports=len(reports)))
            self._target.failed(error)
            self._again(sent)
            return False
        for one in sent:
            self._settle(one, rejected.get(one.run.run_id))
        self._one_by_one = self._one_by_one and bool(self._dirty)
        return True

    def _again(self, sent: Sequence[_Sent]) -> None:
        """What was not taken is due still."""
        for one in sent:
            if self._dirty.get(one.run.run_id) is one.run:
                self._schedule(one.run, 0.0)

    def _batch(self) -> tuple[list[work.RunReport], list[_Sent]]:
        reports: list[work.RunReport] = []
        sent: list[_Sent] = []
        size = 0
        most = 1 if self._one_by_one else MAX_REPORTS
        soon = asyncio.get_running_loop().time() + self._company
        for run in self._dirty.values():
            if run.due > soon:
                continue
            if len(reports) >= most or size >= MAX_BATCH_BYTES:
                break  # the rest goes at once
            run.due, run.reported = math.inf, True
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
                self._schedule(run, 0.0)
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
