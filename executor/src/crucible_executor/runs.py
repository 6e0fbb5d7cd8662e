"""The runs of this executor: accepted once, never started twice, and each ended by exactly one signed record."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import ahead, collecting, convert, records
from crucible_executor.behaviour import Behaviour, Update
from crucible_executor.catalog import Catalog, engine_refused
from crucible_executor.ceilings import Ceilings
from crucible_executor.engines.base import Engine, EngineUnavailableError, Sandbox
from crucible_executor.executor_clock import ExecutorClock
from crucible_executor.journal import Journal, JournalFullError, Kind
from crucible_executor.metrics import ExecutorMetrics
from crucible_executor.model import (
    Artifacts,
    Interpreter,
    Killed,
    Limits,
    Outcome,
    Program,
    SandboxClass,
    SandboxFailed,
    Usage,
)
from crucible_executor.output import OutputFolder
from crucible_executor.past_runs import PastRuns
from crucible_executor.permits import Permit
from crucible_executor.recovery import finished_fields, recover
from crucible_executor.room import Room
from crucible_executor.run import KillCause, Run, RunState
from crucible_executor.spool import Spool
from crucible_executor.tickets import TicketCheck, checked_run_id
from crucible_rpc import logs
from crucible_rpc.errors import AlreadyExistsError, CallError, NotFoundError, ResourceExhaustedError, UnavailableError

START_ALLOWANCE = timedelta(seconds=60)
"""An engine that takes this much longer than a run's wall time is given up, and its sandbox removed."""

REMEMBER_MARGIN_SECONDS = 60.0
"""A run id is remembered for this much longer than any ticket lasts."""

MAX_UNACKNOWLEDGED = 1000

_NOT_COLLECTED = "the run did not end by itself, and its files went with its sandbox"
_NO_SLOT_RETRY = timedelta(milliseconds=200)
_JOURNAL_RETRY_SECONDS = 1.0
_FIRST_DESTROY_PAUSE_SECONDS = 0.1
_LONGEST_DESTROY_PAUSE_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunsSettings:
    """Numbers that an operator may set.

    Attributes:
        slots: runs at once.
        orphan_grace: the longest permit.
    """

    slots: int
    orphan_grace: timedelta


@dataclass(frozen=True)
class _Job:
    """All that is needed to carry out an accepted run."""

    run: Run
    draft: ex.FinalRecord
    engine: Engine
    sandbox_class: SandboxClass
    program: Program
    limits: Limits
    ticket_ends: float


class Runs:
    """All runs that were not acknowledged, and what must be remembered of the others.

    Args:
        settings: see `RunsSettings`.
        catalog: engines and runtimes.
        ceilings: what is allowed at most.
        tickets: checks storage's leave.
        records: signs how runs ended.
        journal: open; what it replayed is taken over by `recover`.
        outputs: where large outputs go.
        room: how much of them there may be.
        metrics: counts.
        now: the wall clock, in UTC.
        clock: the clock of permits and of what must be remembered.
    """

    def __init__(
        self,
        settings: RunsSettings,
        *,
        catalog: Catalog,
        ceilings: Ceilings,
        tickets: TicketCheck,
        records: records.Records,
        journal: Journal,
        outputs: OutputFolder,
        room: Room,
        metrics: ExecutorMetrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: ExecutorClock,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._ceilings = ceilings
        self._tickets = tickets
        self._records = records
        self._journal = journal
        self._outputs = outputs
        self._room = room
        self._metrics = metrics
        self._now = now
        self._clock = clock
        self._runs: dict[str, Run] = {}
        self._past = PastRuns(clock.now, settings.orphan_grace.total_seconds() + REMEMBER_MARGIN_SECONDS)
        self._busy = 0
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._removals = asyncio.Semaphore(settings.slots)

    async def recover(self) -> int:
        """Takes over what the journal knows; every run without an end gets a signed one that says it was lost.

        Call it when the engines have removed what was left behind, so that the records are true.

        Returns:
            How many runs were lost.
        """
        found = await recover(self._journal, self._outputs, self._records, self._now())
        self._runs = found.runs
        self._past.take_over(found.refused)
        self._metrics.kept.set(len(self._runs))
        self._metrics.ended.labels("lost").inc(found.lost)
        return found.lost

    async def accept(self, signed: SignedBytes, run_spec: bytes, permit: timedelta) -> Run:
        """Accepts a run; when this returns, that is on disk, and the run goes on whatever its caller does.

        The permit is cut to end with the `orphan_grace` of the lease that the ticket was made with.

        Raises:
            CallError: it was not accepted and was not started; see `ExecutorService.Execute` for the reasons.
        """
        try:
            job = self._admitted(signed, run_spec)
        except CallError as error:
            self._metrics.refused.labels(error.reason).inc()
            raise
        run = job.run
        if not job.engine.capabilities.traced:
            unseen = Behaviour.no_trace(job.draft.engine)
            run.tried(Update(unseen.observation, unseen.reason))
        self._busy += 1
        self._runs[run.id] = run
        run.permit = Permit(
            min(self._clock.now() + permit.total_seconds(), job.ticket_ends),
            clock=self._clock.now,
            on_expired=lambda: self._end(run, KillCause.PERMIT_EXPIRED),
        )
        self._metrics.running.inc()
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spawn(self._carry_out(job, accepted))
        await asyncio.shield(accepted)
        return run

    def get(self, run_id: str) -> Run:
        """A run that was accepted, or is about to be, and not acknowledged.

        Raises:
            NotFoundError: RUN_NOT_FOUND.
            FailedPreconditionError: ENGINE_NOT_AVAILABLE: it was withdrawn.
        """
        run = self._runs.get(checked_run_id(run_id))
        if run is None and (refusal := self._past.refusal(run_id)) is not None:
            raise refusal
        if run is None:
            raise NotFoundError("RUN_NOT_FOUND", f"this executor has no run {run_id}")
        return run

    async def kill(self, run_id: str) -> RunState:
        """Ends a run; returns, when its sandbox is gone, what was known of it before. An unknown one never starts."""
        run = self._runs.get(checked_run_id(run_id))
        if run is None:
            return await self._refuse_for_ever(run_id)
        before = run.state
        if before is RunState.RUNNING:
            self._end(run, KillCause.REQUESTED)
            await run.over()
        return before

    async def acknowledge(self, run_ids: Iterable[str]) -> None:
        """Drops output and record of runs that ended; their ids are remembered while their tickets could come again.

        Files go also when the caller does not wait for it; those of a run whose entry found no room before the executor
        stopped stay, and the next start has that run as one that was not acknowledged.
        """
        in_files = []
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is not None and run.record is not None:
                del self._runs[run_id]
                self._past.end(run_id)
                if run.stdout.in_file or run.stderr.in_file or run.left is not None:
                    in_files.append(run)
                else:
                    self._journal.append_lazily(Kind.ACKNOWLEDGED, run_id)
            elif self._past.acknowledge_refused(run_id):
                self._journal.append_lazily(Kind.ACKNOWLEDGED, run_id)
        self._metrics.kept.set(len(self._runs))
        # Of these runs nothing else knows any more: a caller that leaves must not take their removal with it.
        await asyncio.shield(asyncio.gather(*[self._spawn(self._drop_files(run)) for run in in_files]))

    def states(self) -> dict[str, RunState]:
        """Every run that was not acknowledged, in the order they were accepted, then those that can never start."""
        known = {run_id: run.state for run_id, run in self._runs.items()}
        return {**known, **dict.fromkeys(self._past.refused, RunState.REFUSED)}

    def extend(self, run_ids: Iterable[str], permit: timedelta, since: float) -> list[str]:
        """Lets runs go on until `permit` after `since` (by the clock); returns those that do not run any more."""
        ends = since + min(permit, self._settings.orphan_grace).total_seconds()
        not_running = []
        for run_id in run_ids:
            run = self._runs.get(run_id)
            if run is None or run.record is not None or run.permit is None or not run.permit.extend(ends):
                not_running.append(run_id)
        return not_running

    async def drain(self, grace: timedelta) -> None:
        """Accepts nothing more; ends what still runs after `grace` and returns when every run has its record."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace.total_seconds())
        for run in self._runs.values():
            if run.record is None:
                self._end(run, KillCause.SHUTDOWN)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _admitted(self, signed: SignedBytes, run_spec: bytes) -> _Job:
        ticket = self._tickets.read(signed)
        # Before anything else is looked at: after another refusal the caller may take it that nothing was ever started.
        self._check_new(ticket)
        spec = self._tickets.check(ticket, run_spec)
        engine = self._catalog.engine(spec.engine)
        runtime, image_digest = self._catalog.runtime(spec.program.runtime, engine)
        asked = convert.asked_limits(ticket.limits)
        limits = self._ceilings.admit(asked, spec.engine, engine.capabilities.enforces)
        limits = dataclasses.replace(limits, artifact_bytes=min(ticket.max_artifact_bytes, limits.artifact_bytes))
        program = convert.program(spec.program, runtime)
        interpreter = ahead.interpreter(
            program,
            limits,
            entrypoint=convert.entrypoint(spec.program),
            reads_whole_file=runtime.reads_whole_file,
        )
        self._check_room(limits.output_bytes)
        ran = records.Ran(runtime.name, image_digest, engine.capabilities, limits)
        stdout, stderr = self._outputs.make(ticket.run_id, limits.output_bytes)
        return _Job(
            run=Run(
                ticket.run_id,
                stdout=stdout,
                stderr=stderr,
                on_fault=self._give_up,
                make_spool=lambda run: self._spool(run, limits.artifact_bytes),
            ),
            draft=records.draft(ticket, ran, program.files, self._now()),
            engine=engine,
            sandbox_class=_sandbox_class(image_digest, limits, interpreter),
            program=program,
            limits=limits,
            ticket_ends=self._tickets.end_of(ticket),
        )

    def _spool(self, run: Run, wanted_bytes: int) -> Spool:
        """For what its program left. With less room than wanted, a run that needs more of it is tried again."""
        return self._outputs.spool(run.id, self._room.for_files(self._runs.values(), wanted_bytes))

    def _check_new(self, ticket: ex.Ticket) -> None:
        run_id = ticket.run_id
        if run_id in self._runs or not self._past.may_start(run_id, ticket.lease_epoch):
            raise AlreadyExistsError("RUN_EXISTS", f"the run {run_id} was accepted or ended before; attach to it")

    def _check_room(self, output_bytes: int) -> None:
        if self._draining:
            raise UnavailableError("SHUTTING_DOWN", "the executor is stopping", retry_after=timedelta(seconds=1))
        if self._busy >= self._settings.slots:
            text = f"all {self._settings.slots} slots of this executor are taken"
            raise ResourceExhaustedError("NO_FREE_SLOT", text, retry_after=_NO_SLOT_RETRY)
        if len(self._runs) >= MAX_UNACKNOWLEDGED + self._settings.slots:
            text = f"{len(self._runs)} runs wait to be acknowledged; storage must confirm them first"
            raise ResourceExhaustedError("NO_FREE_SLOT", text, retry_after=timedelta(seconds=5))
        self._room.check(self._runs.values(), output_bytes)

    async def _carry_out(self, job: _Job, accepted: asyncio.Future[None]) -> None:
        """The whole life of one run, from the journal's first entry to its last."""
        run = job.run
        try:
            try:
                draft = base64.b64encode(job.draft.SerializeToString()).decode()
                await self._journal.append(Kind.ACCEPTED, run.id, draft=draft)
            except JournalFullError as error:
                refusal = _no_room(error)
                self._never_accepted(run, refusal)
                accepted.set_exception(refusal)
                return
            self._past.started(run.id)
            accepted.set_result(None)
            outcome = await self._run_sandbox(job)
            if not await self._gone(run):
                return  # no record may say that it is gone; the next start removes it, and says that it was lost
            if isinstance(outcome, CallError):
                await self._withdraw(job, outcome)
                return
        finally:
            self._busy -= 1
            self._metrics.running.dec()
        await self._finish(job, outcome)

    def _discard(self, run: Run) -> None:
        if run.permit is not None:
            run.permit.end()
        del self._runs[run.id]

    def _never_accepted(self, run: Run, refusal: CallError) -> None:
        """Answers whoever waits for it; one that was to be ended does not start by the same ticket later."""
        if run.kill_cause is not None:
            self._past.end(run.id)
        self._discard(run)
        run.withdraw(refusal)

    async def _withdraw(self, job: _Job, refusal: CallError) -> None:
        """Takes the acceptance back; the same ticket never starts anything, and the run's next lease has another."""
        run = job.run
        await self._journal_at_last(Kind.WITHDRAWN, run.id)
        self._past.withdraw(run.id, job.draft.lease_epoch, refusal)
        self._discard(run)
        run.withdraw(refusal)
        self._metrics.refused.labels(refusal.reason).inc()

    async def _run_sandbox(self, job: _Job) -> Outcome | CallError:
        """Creates and starts the sandbox; whatever raises becomes an outcome.

        Where no sandbox could be made and the engine's breaker is open by now, a refusal, as it would have been had the
        run come a moment later.
        """
        run = job.run
        longest = (job.limits.wall_time + START_ALLOWANCE).total_seconds() + collecting.PATIENCE_S
        try:
            async with asyncio.timeout(longest) as run.watchdog:
                run.sandbox = await job.engine.create(job.sandbox_class)
                job.draft.start_kind = convert.START_KINDS[run.sandbox.start_kind]
                if run.kill_cause is not None or run.fault:
                    return _without_start(Killed())
                outcome = await run.sandbox.start(job.program, job.limits, run)
                run.processes_gone = True
                return outcome
        except TimeoutError:
            return _without_start(SandboxFailed(run.fault or f"the engine did not end the run within {longest:g} s"))
        except EngineUnavailableError as error:
            _log.warning("sandbox refused", extra=logs.fields(run=run.id, reason=str(error)))
            if job.engine.failing and run.sandbox is None and run.kill_cause is None:
                return engine_refused(job.draft.engine, job.engine.failing)
            return _without_start(SandboxFailed(str(error)))
        except Exception as error:
            _log.exception("engine failed", extra=logs.fields(run=run.id))
            return _without_start(SandboxFailed(f"the engine failed with {type(error).__name__}; the log has it"))
        finally:
            run.watchdog = None

    async def _gone(self, run: Run) -> bool:
        """Returns when nothing of the sandbox runs any more: a record says so, and another attempt may start.

        What lies about then is removed beside the next runs, of as many sandboxes as there are slots. False when the
        executor stops before that.
        """
        sandbox, run.sandbox = run.sandbox, None
        if run.permit is not None:
            run.permit.end()
        if sandbox is None:
            return True
        if not run.processes_gone:
            return await self._removed(sandbox, run.id)
        await self._removals.acquire()
        self._spawn(self._remove(sandbox, run.id))
        return True

    async def _remove(self, sandbox: Sandbox, run_id: str) -> None:
        try:
            await self._removed(sandbox, run_id)
        finally:
            self._removals.release()

    async def _removed(self, sandbox: Sandbox, run_id: str) -> bool:
        """Removes the sandbox, however long that takes; False when the executor stops before that."""
        pause = _FIRST_DESTROY_PAUSE_SECONDS
        while True:
            try:
                await sandbox.destroy()
                return True
            except Exception:
                _log.exception("sandbox could not be removed", extra=logs.fields(run=run_id, sandbox=sandbox.id))
            if self._draining:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_DESTROY_PAUSE_SECONDS)

    async def _finish(self, job: _Job, outcome: Outcome) -> None:
        run = job.run
        ended = self._now()
        kept = await self._persisted(run, outcome)
        if run.fault:
            outcome = dataclasses.replace(outcome, termination=SandboxFailed(run.fault))
        if isinstance(outcome.termination, Killed | SandboxFailed):
            why = _NOT_COLLECTED if run.started_at is not None else ""
            outcome = dataclasses.replace(outcome, artifacts=Artifacts(not_collected=why))
        run.artifacts = outcome.artifacts.files
        if run.left is not None and not run.artifacts:
            left, run.left = run.left, None
            try:
                await asyncio.to_thread(left.drop)
            except OSError:  # the run has its end all the same; a later start, which does not know it, removes them
                _log.exception("files of a run could not be removed", extra=logs.fields(run=run.id))
        record = self._sealed(job, outcome, ended)
        await self._journal_at_last(Kind.FINISHED, run.id, {**finished_fields(run, record), **kept})
        run.finish(record)
        self._metrics.kept.set(len(self._runs))
        self._metrics.ended.labels(job.draft.termination.WhichOneof("kind")).inc()
        self._metrics.behaviour.labels(convert.observation(job.draft)).inc()
        if run.started_at is not None:
            accepted = job.draft.accept_time.ToDatetime(tzinfo=UTC)
            self._metrics.start_seconds.observe(max(0.0, (run.started_at - accepted).total_seconds()))

    def _sealed(self, job: _Job, outcome: Outcome, ended: datetime) -> SignedBytes:
        run = job.run
        draft = job.draft.SerializeToString()
        streams = {"stdout": run.stdout, "stderr": run.stderr}
        try:
            return self._records.of_outcome(
                job.draft, outcome, run.kill_cause, **streams, started=run.started_at, ended=ended
            )
        except Exception as error:
            # What the engine said cannot be put into a record; an accepted run has one all the same.
            _log.exception("engine's outcome cannot be recorded", extra=logs.fields(run=run.id))
            job.draft.ParseFromString(draft)
            failed = _without_start(SandboxFailed(f"the engine's outcome cannot be recorded: {type(error).__name__}"))
            return self._records.of_outcome(
                job.draft, failed, run.kill_cause, **streams, started=run.started_at, ended=ended
            )

    async def _persisted(self, run: Run, outcome: Outcome) -> dict[str, object]:
        """What the journal must know of the outputs; when they cannot be kept, the run is at fault of the executor."""
        if run.left is not None and run.left.fault:
            run.fault = run.fault or f"the executor could not keep the program's files: {run.left.fault}"
        try:
            if run.left is not None and outcome.artifacts.files:
                await self._outputs.persist_spool(run.left)
            return await self._outputs.persist(run.stdout, run.stderr)
        except OSError as error:
            _log.exception("output could not be kept", extra=logs.fields(run=run.id))
            run.fault = run.fault or f"the executor could not keep the program's output: {error.strerror}"
            return {}  # after a restart the run counts as lost; until then its output can be read

    async def _drop_files(self, run: Run) -> None:
        """Drops the files of an acknowledged run when nothing on disk speaks of them any more."""
        if not await self._journal_at_last(Kind.ACKNOWLEDGED, run.id, unless_draining=True):
            return
        run.stdout.drop()
        run.stderr.drop()
        if run.left is not None:
            await asyncio.to_thread(run.left.drop)

    async def _journal_at_last(
        self,
        kind: Kind,
        run_id: str,
        fields: Mapping[str, object] = MappingProxyType({}),
        *,
        unless_draining: bool = False,
    ) -> bool:
        """Appends, waiting for room for as long as there is none: what happened cannot be taken back.

        False: with `unless_draining` there was no room, and the executor stops.
        """
        while True:
            try:
                await self._journal.append(kind, run_id, **fields)
                return True
            except JournalFullError as error:
                if unless_draining and self._draining:
                    return False
                _log.error("waiting for room in the journal", extra=logs.fields(run=run_id, reason=str(error)))
            await asyncio.sleep(_JOURNAL_RETRY_SECONDS)

    def _end(self, run: Run, cause: KillCause) -> None:
        if run.kill_cause is None and run.record is None:
            run.kill_cause = cause
            self._kill_sandbox(run)

    def _give_up(self, run: Run) -> None:
        _log.error("run given up", extra=logs.fields(run=run.id, reason=run.fault))
        self._kill_sandbox(run)

    def _kill_sandbox(self, run: Run) -> None:
        if run.sandbox is not None:
            self._spawn(self._killing(run))

    async def _killing(self, run: Run) -> None:
        if run.sandbox is None:
            return
        try:
            await run.sandbox.kill()
        except Exception:
            _log.exception("sandbox could not be killed; giving it up", extra=logs.fields(run=run.id))
            run.fault = run.fault or "the sandbox could not be killed in order"
            if run.watchdog is not None:
                run.watchdog.reschedule(asyncio.get_running_loop().time())

    async def _refuse_for_ever(self, run_id: str) -> RunState:
        if self._past.is_refused(run_id):
            return RunState.REFUSED
        if self._past.refuse(run_id):
            await self._journal_at_last(Kind.REFUSED, run_id)
        return RunState.UNKNOWN

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.critical("a run's task failed", exc_info=task.exception())


def _sandbox_class(image_digest: str, limits: Limits, interpreter: Interpreter | None) -> SandboxClass:
    return SandboxClass(
        image_digest=image_digest,
        memory_bytes=limits.memory_bytes,
        disk_bytes=limits.disk_bytes,
        disk_inodes=limits.disk_inodes,
        cpus=limits.cpus,
        processes=limits.processes,
        interpreter=interpreter,
    )


def _without_start(termination: Killed | SandboxFailed) -> Outcome:
    usage = Usage(wall_time=timedelta(0), program_cpu=None, sandbox_cpu=None, peak_memory_bytes=None)
    unseen = Behaviour.not_observed("the engine did not see the run to its end in order")
    return Outcome(termination, (), usage, unseen)


def _no_room(error: JournalFullError) -> ResourceExhaustedError:
    return ResourceExhaustedError("STORAGE_FULL", f"{error}; free some space", retry_after=timedelta(seconds=5))
