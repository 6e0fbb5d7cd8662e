"""The worker: leases work for its executor's free slots, carries what runs do to storage, and carries stops back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import timedelta

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import logs
from crucible_rpc.errors import CallError
from crucible_worker.carried import CarriedRun
from crucible_worker.carrier import Carrier, kill_at_last
from crucible_worker.metrics import WorkerMetrics
from crucible_worker.peers import ExecutorPeer, StoragePeer
from crucible_worker.renewals import Renewed, Terms, renew
from crucible_worker.reporter import Reporter
from crucible_worker.settings import Settings
from crucible_worker.slots import Slots
from crucible_worker.uploads import Uploads

MAX_RESYNCS = 3
ACKNOWLEDGE_DELAY_SECONDS = 1.0
"""The executor keeps what was reported so much longer, and is called so much less."""
ACKNOWLEDGE_AT_ONCE = 100
"""So many are not kept waiting: what an executor keeps is bounded."""

RECONCILE_SECONDS = 60.0
"""So often the executor is asked for runs that no lease belongs to, whether or not anything failed."""

_ANSWER_SECONDS = 0.5  # storage answers a lease call within it, unless there is no work to give
_FIRST_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 1.0
_FIRST_TERMS = Terms(lease=timedelta(seconds=10), orphan_grace=timedelta(seconds=15))
_log = logging.getLogger(__name__)


class Worker:
    """One worker of one executor.

    Args:
        settings: see `Settings`.
        storage: leases work and takes reports.
        executor: runs it.
        metrics: counts.
        clock: seconds; never goes back.
    """

    def __init__(
        self,
        settings: Settings,
        storage: StoragePeer,
        executor: ExecutorPeer,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._executor = executor
        self._metrics = metrics
        self._clock = clock
        self._reporter = Reporter(self, settings.report_delay)
        uploads = Uploads(
            executor,
            storage,
            executor_id=self._executor_id,
            executor_back=self._executor_back,
            on_stored=metrics.artifacts.inc,
        )
        self._carrier = Carrier(executor, self, self._reporter, uploads, self._on_ended, self._on_storing)
        self._runs: dict[str, CarriedRun] = {}
        self._known: Executor | None = None
        self._terms = _FIRST_TERMS
        self._executor_up = asyncio.Event()
        self._registered = asyncio.Event()
        self._look = asyncio.Event()
        self._slots = Slots(self._free_slots, clock)
        self._renew_soon = asyncio.Event()
        self._executor_seen = clock()
        self._executor_time: ex.ExecutorTime | None = None
        self._stopped = False
        self._stored_ends: set[tuple[str, int]] = set()  # during a registration, whose answer may still list them
        self._acknowledgments: set[str] = set()
        self._stopping: set[str] = set()
        self._strays: set[str] = set()
        self._reconciled = clock()
        self._acknowledge_timer: asyncio.TimerHandle | None = None
        self._lease_call: asyncio.Task[None] | None = None
        self._leasing_report: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether both peers are there and work can flow."""
        return self._executor_up.is_set() and self._registered.is_set()

    @property
    def runs(self) -> dict[str, CarriedRun]:
        """The runs whose leases are held, by id."""
        return self._runs

    async def connected(self) -> tuple[str, ex.ExecutorTime]:
        """The executor's id and what its clock says, as soon as it can be reached and storage knows of it."""
        while True:
            await self._executor_up.wait()
            await self._registered.wait()
            if self._known is not None and self._executor_up.is_set():
                return self._known.id, await self._recent_time()

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set; then leaves the runs alone, hands over what it has, and returns."""
        self._reporting = self._spawn(self._reporter.run())
        loops = [
            self._spawn(self._keep_registered()),
            self._spawn(self._lease_for_ever()),
            self._spawn(self._renew_for_ever()),
            self._spawn(self._watch_stops()),
        ]
        stopping = asyncio.ensure_future(stop.wait())
        done, _ = await asyncio.wait({stopping, self._reporting, *loops}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in done - {stopping}:
            await task  # a loop only ends by a fault of ours: better to end the process than to limp on
        await self._stop(loops)

    async def _stop(self, loops: Iterable[asyncio.Task[None]]) -> None:
        _log.info("stopping", extra=logs.fields(runs=len(self._runs)))
        self._stopped = True
        for task in (*loops, *(run.task for run in self._runs.values())):
            if task is not None:
                task.cancel()
        try:
            async with asyncio.timeout(self._settings.stop_grace.total_seconds()):
                await self._reporter.flushed()
                await self._acknowledge()
        except TimeoutError:
            _log.warning("stopping with reports that storage did not take; the next worker attaches to those runs")
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # --- the executor and the registration ---------------------------------------------------------------------------

    def lost(self, error: CallError) -> None:
        """See `ExecutorLink`."""
        _log.warning("the executor failed a call", extra=logs.fields(error=str(error)))
        self._executor_up.clear()
        self._look.set()

    def outdated(self) -> None:
        """See `ExecutorLink`: nothing is leased until storage knows."""
        self._registered.clear()
        self._look.set()

    async def back(self) -> None:
        """See `ExecutorLink`."""
        await self._executor_up.wait()

    async def _executor_back(self, error: CallError) -> None:
        self.lost(error)
        await self.back()

    def _executor_id(self) -> str:
        return self._known.id if self._known is not None else ""

    def _storage_lost(self, error: CallError, what: str) -> None:
        if self._registered.is_set():
            _log.warning("storage failed a call", extra=logs.fields(call=what, error=str(error)))
        self._registered.clear()
        self._look.set()

    async def _keep_registered(self) -> None:
        """Looks at the executor at every renewal's interval, and when anything failed; registers what is new."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            self._look.clear()
            if await self._look_once():
                backoff = _FIRST_BACKOFF_SECONDS
                await _wait(self._look, self._terms.interval.total_seconds())
            else:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    async def _look_once(self) -> bool:
        try:
            executor = await self._ask_executor()
        except CallError as error:
            self._executor_up.clear()
            _log.warning("the executor cannot be asked", extra=logs.fields(error=str(error)))
            return False
        if executor != self._known:
            self._registered.clear()
        try:
            if not self._registered.is_set():
                await self._register(executor)
            elif self._clock() - self._reconciled >= RECONCILE_SECONDS:
                await self._clear_strays()
        except CallError as error:
            _log.warning("cannot register with storage yet", extra=logs.fields(error=str(error)))
        self._executor_up.set()
        return self._registered.is_set()

    async def _ask_executor(self) -> Executor:
        asked = self._clock()
        answer = await self._executor.get()
        self._executor_seen = asked
        self._executor_time = answer.time
        return answer.executor

    async def _register(self, executor: Executor) -> None:
        """Tells storage of the executor, and brings its leases and the executor's runs together."""
        # No lease may come in between the two lists, or it would look like a run that nobody wants.
        if self._lease_call is not None:
            if self._known is not None and self._known.boot_id == executor.boot_id:
                # Work whose lease is on its way would be lost with the call, and cost an attempt.
                await asyncio.wait([self._lease_call], timeout=_ANSWER_SECONDS)
            self._lease_call.cancel()
            await asyncio.wait([self._lease_call])
        if self._leasing_report is not None:
            await asyncio.wait([self._leasing_report])
        present = await self._executor.list_runs()
        self._stored_ends.clear()
        answer = await self._storage.register(executor)
        self._terms = Terms(answer.lease_duration.ToTimedelta(), answer.orphan_grace.ToTimedelta())
        self._known = executor
        leases = {lease.run_id: lease for lease in answer.leases}
        for lease in leases.values():
            if (lease.run_id, lease.epoch) not in self._stored_ends:
                self._take_over(lease)
        for run_id, run in list(self._runs.items()):
            if run.resync and run_id not in leases:
                _reconciled("storage gave the run up", run_id)
                self._drop(run)
        for one in present:
            if one.run_id not in self._runs and one.run_id not in self._acknowledgments:
                self._clear_away(one)
        _log.info("registered", extra=logs.fields(executor=executor.id, boot=executor.boot_id, leases=len(leases)))
        self._registered.set()
        self._renew_soon.set()

    def _take_over(self, lease: work.Lease) -> None:
        run = self._runs.get(lease.run_id)
        if run is not None and run.epoch == lease.epoch:
            if run.resync:
                _reconciled("events that storage lacks", lease.run_id)
                run.restart(*_stored(lease))
                self._carry(run, self._carrier.attach(run))
            return
        if run is not None:
            _reconciled("lease under another epoch", lease.run_id)
            self._forget(run)
        else:
            _reconciled("lease of an earlier worker or call", lease.run_id)
        run = CarriedRun(lease.run_id, lease.epoch, *_stored(lease))
        self._add(run)
        self._carry(run, self._carrier.attach(run))

    def _clear_away(self, present: ex.Run) -> None:
        """A run that no lease belongs to: storage has its end, or gave it up."""
        _reconciled("run without a lease", present.run_id)
        if present.state == ex.RUN_STATE_RUNNING:
            self._spawn(self._kill_and_acknowledge(present.run_id))
        else:
            self._acknowledge_later(present.run_id)

    async def _clear_strays(self) -> None:
        """Clears runs away that had no lease when it was looked last either: others are just being acknowledged."""
        present = [one for one in await self._executor.list_runs() if one.run_id not in self._runs]
        for one in present:
            if one.run_id in self._strays:
                self._clear_away(one)
        self._strays = {one.run_id for one in present}
        self._reconciled = self._clock()

    # --- leases ------------------------------------------------------------------------------------------------------

    async def _lease_for_ever(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await self._executor_up.wait()
            await self._registered.wait()
            self._slots.changed.clear()
            free = self._slots.unannounced
            if not free:
                await self._slots.changed.wait()
                continue
            if (pause := self._slots.pause_left) > 0:
                await asyncio.sleep(pause)
                continue
            self._lease_call = self._spawn(self._lease(free))
            await asyncio.wait([self._lease_call])
            if self._registered.is_set():
                backoff = _FIRST_BACKOFF_SECONDS
            else:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    async def _lease(self, free: int) -> None:
        executor = self._known
        if executor is None:
            raise RuntimeError("leasing before registering")
        with self._slots.asking(free):
            since = await self._recent_time()
            try:
                assignments = await self._storage.lease(executor.id, since, free, self._settings.lease_wait)
            except CallError as error:
                self._storage_lost(error, "LeaseWork")
                return
            self._begin(assignments)

    def _begin(self, assignments: Sequence[work.Assignment]) -> None:
        # When storage gave the leases is not known here, for the call may have waited: the ticket tells the executor.
        permit = self._terms.orphan_grace
        for assignment in assignments:
            run = CarriedRun(assignment.run_id, assignment.epoch)
            self._add(run)
            if self._stopped:
                self._reporter.conclude(run, work.Refused(reason="its worker is stopping"))
            else:
                self._carry(run, self._carrier.execute(run, assignment, permit))
        self._metrics.leased.inc(len(assignments))

    def _carry(self, run: CarriedRun, events: Coroutine[None, None, None]) -> None:
        run.task = self._spawn(self._carried(run, events))

    async def _carried(self, run: CarriedRun, events: Coroutine[None, None, None]) -> None:
        """A fault of ours ends the run that it met: else its lease was renewed for ever, and its end never told."""
        try:
            await events
        except Exception as error:
            _log.exception("a run could not be carried to its end", extra=logs.fields(run=run.run_id))
            if not run.ended:
                await self._give_up(run, f"the worker failed with {type(error).__name__}; its log has it")

    def _free_slots(self) -> int:
        slots = self._known.slots if self._known is not None else 0
        return slots - sum(1 for run in self._runs.values() if not (run.ended or run.storing))

    def _on_ended(self, run: CarriedRun) -> None:
        """Its slot is free. The report of its end, which goes at once, asks for more work."""
        if isinstance(run.outcome, work.Refused):
            self._slots.hold_back(run.outcome)
        elif run.outcome is None:
            self._slots.taken()
        self._slots.announce()

    def _on_storing(self) -> None:
        """A slot is free, and the report that asks for more work may be long in coming."""
        self._slots.taken()
        self._slots.changed.set()

    def _add(self, run: CarriedRun) -> None:
        self._runs[run.run_id] = run
        self._metrics.held.set(len(self._runs))

    def _forget(self, run: CarriedRun) -> None:
        """Ends all that this worker does for a run."""
        self._reporter.forget(run)
        if run.task is not None:
            run.task.cancel()
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
        self._metrics.held.set(len(self._runs))
        self._slots.reported()
        self._slots.changed.set()

    def _drop(self, run: CarriedRun) -> None:
        """The lease is gone: the run is not ours any more and must not go on."""
        self._forget(run)
        if run.run_id not in self._runs:  # a refused run comes again under the same id: that one goes on
            self._spawn(self._kill_and_acknowledge(run.run_id))

    # --- renewals and stops ------------------------------------------------------------------------------------------

    async def _renew_for_ever(self) -> None:
        while True:
            await _wait(self._renew_soon, self._terms.interval.total_seconds())
            self._renew_soon.clear()
            gone_for = self._clock() - self._executor_seen
            if self._known is None or gone_for > self._settings.executor_lost_after.total_seconds():
                continue  # the leases end, and storage gives the work to others
            leases = [run.ref() for run in self._runs.values()]
            if leases:
                await self._renew(self._known.id, leases)

    async def _renew(self, executor_id: str, leases: Sequence[work.LeaseRef]) -> None:
        since = await self._time_of_executor() if self._executor_up.is_set() else None
        try:
            renewed = await renew(self._storage, self._executor, executor_id, leases, self._terms, since)
        except CallError as error:
            _log.warning("leases or permits were not renewed", extra=logs.fields(error=str(error)))
            self._metrics.renewal_failures.inc()
            self._look.set()
            return
        self._after_renewal(renewed)

    async def _time_of_executor(self) -> ex.ExecutorTime | None:
        """What its clock says now, or said when it was last asked: a stalled executor must not hold the renewal up."""
        try:
            async with asyncio.timeout(self._terms.interval.total_seconds() / 4):
                await self._ask_executor()
        except TimeoutError:
            _log.warning("the executor is slow to answer")
        except CallError as error:
            self.lost(error)
        return self._executor_time

    @property
    def _time_is_recent(self) -> bool:
        """Whether the executor was asked for it so lately as it is unless something is stalled."""
        return self._clock() - self._executor_seen <= 2 * self._terms.interval.total_seconds()

    async def _recent_time(self) -> ex.ExecutorTime:
        """What the executor's clock said lately. Tickets are good from then on: with an old time they would be late."""
        told = self._executor_time if self._time_is_recent else await self._time_of_executor()
        if told is None:
            raise RuntimeError("leasing before the executor was asked")
        return told

    def _after_renewal(self, renewed: Renewed) -> None:
        for run_id in renewed.lost:
            run = self._runs.get(run_id)
            if run is not None:
                _log.warning("lease lost", extra=logs.fields(run=run_id))
                self._metrics.lost.inc()
                self._drop(run)
        for run_id in renewed.stops:
            self._end(run_id)

    async def _watch_stops(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            await self._registered.wait()
            if self._known is None:
                raise RuntimeError("registered without an executor")
            try:
                async for answer in self._storage.stops(self._known.id):
                    backoff = _FIRST_BACKOFF_SECONDS
                    for ref in answer.stops:
                        self._end(ref.run_id)
            except CallError as error:
                self._storage_lost(error, "WatchStops")
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    def _end(self, run_id: str) -> None:
        """Has a run ended; its end then comes as any other.

        Of a run that is not known here the lease may be on its way: killed before it was accepted, it never starts.
        """
        run = self._runs.get(run_id)
        if (run is None or not run.ended) and run_id not in self._stopping:  # renewals tell of a stop again and again
            self._metrics.stops.inc()
            self._stopping.add(run_id)
            killing = self._spawn(kill_at_last(self._executor, self, run_id))
            killing.add_done_callback(lambda _: self._stopping.discard(run_id))

    # --- reports -----------------------------------------------------------------------------------------------------

    async def send(self, reports: Sequence[work.RunReport]) -> Sequence[work.RejectedReport]:
        """See `ReportTarget`. Asks for work for the slots that are free by now, so that a finished run is one call."""
        if self._known is None:
            raise RuntimeError("reporting before registering")
        self._metrics.reports.inc()
        since = self._executor_time if self._time_is_recent else None
        ready = self._registered.is_set() and not self._stopped
        may_lease = since is not None and ready and self._slots.pause_left <= 0
        count = self._slots.unasked if may_lease else 0
        self._slots.reported()
        with self._slots.asking(count):
            answered = asyncio.get_running_loop().create_future()
            self._leasing_report = answered if count else None
            try:
                answer = await self._storage.report(self._known.id, reports, since, count)
                self._begin(answer.assignments)
            finally:
                answered.set_result(None)
                self._leasing_report = None
                if not may_lease:
                    self._slots.changed.set()
        return answer.rejected

    def stored(self, run: CarriedRun) -> None:
        """See `ReportTarget`."""
        if not self._registered.is_set():
            self._stored_ends.add((run.run_id, run.epoch))
        if self._runs.get(run.run_id) not in (None, run):
            return  # it was refused, and came again under the same id before this answer did
        self._runs.pop(run.run_id, None)
        self._metrics.held.set(len(self._runs))
        self._acknowledge_later(run.run_id)

    def rejected(self, run: CarriedRun, reason: str, message: str) -> None:
        """See `ReportTarget`."""
        _log.warning("report rejected", extra=logs.fields(run=run.run_id, reason=reason, text=message))
        self._metrics.rejected.labels(reason).inc()
        if reason == "STALE_LEASE":
            self._drop(run)
            return
        if run.task is not None:
            run.task.cancel()
        run.resyncs += 1
        if run.resyncs > MAX_RESYNCS or run.outcome is not None:
            why = f"storage did not accept what the executor reported ({reason}: {message})"
            run.task = self._spawn(self._give_up(run, why))
            return
        run.resync = True  # registering again tells what storage has
        self.outdated()

    def failed(self, error: CallError) -> None:
        """See `ReportTarget`."""
        self._storage_lost(error, "ReportRuns")

    async def _give_up(self, run: CarriedRun, why: str) -> None:
        if run.outcome is not None:
            self._drop(run)  # even that it is lost was not taken: storage lets the lease end
            return
        await kill_at_last(self._executor, self, run.run_id)
        run.restart(run.stdout_offset, run.stderr_offset, run.behaviour_sequence)
        self._reporter.conclude(run, work.RunLost(reason=why, confirmed_gone=True))
        self._slots.changed.set()

    def _acknowledge_later(self, run_id: str) -> None:
        self._acknowledgments.add(run_id)
        if len(self._acknowledgments) == ACKNOWLEDGE_AT_ONCE:
            self._spawn(self._acknowledge())
        elif self._acknowledge_timer is None:
            self._acknowledge_timer = asyncio.get_running_loop().call_later(
                ACKNOWLEDGE_DELAY_SECONDS, lambda: self._spawn(self._acknowledge())
            )

    async def _acknowledge(self) -> None:
        if self._acknowledge_timer is not None:
            self._acknowledge_timer.cancel()
            self._acknowledge_timer = None
        run_ids = list(self._acknowledgments)
        self._acknowledgments.clear()
        for start in range(0, len(run_ids), 1000):
            try:
                await self._executor.acknowledge(run_ids[start : start + 1000])
            except CallError as error:
                # Registering again finds runs that no lease belongs to, and acknowledges them.
                self.lost(error)
                self._registered.clear()
                return

    async def _kill_and_acknowledge(self, run_id: str) -> None:
        await kill_at_last(self._executor, self, run_id)
        self._acknowledge_later(run_id)

    def _spawn(self, work_to_do: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work_to_do)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.critical("a task of the worker failed", exc_info=task.exception())


def _reconciled(case: str, run_id: str) -> None:
    """Logs that storage and the executor disagree about a run, which is mended now."""
    _log.warning("reconciled", extra=logs.fields(case=case, run=run_id))


def _stored(lease: work.Lease) -> tuple[int, int, int]:
    """How far a run's events are stored."""
    return lease.stdout_offset, lease.stderr_offset, lease.behaviour_sequence


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
