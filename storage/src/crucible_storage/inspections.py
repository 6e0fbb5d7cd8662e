"""Inspections of executors: asked for by one call, given to one executor as work, and over when either is gone.

An inspection belongs to the call that asked for it: while that call lives, it follows what is stored, and notices when
the worker fell silent; when it ends early, so does the inspection. At most one of a kind is active per executor.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from sqlalchemy import delete, func
from sqlalchemy.engine import Connection
from sqlmodel import Session, col, select

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible.selftest.v1 import inspection_pb2 as pb
from crucible.storage.v1 import inspection_service_pb2 as api
from crucible_rpc import logs
from crucible_rpc.errors import CallError, FailedPreconditionError, ResourceExhaustedError
from crucible_rpc.signing import BadSignatureError, Signer, Verifier
from crucible_storage import audit, tickets
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.executors import Executors
from crucible_storage.hub import Hub, wait_for
from crucible_storage.lifecycle import storable
from crucible_storage.models import InspectionEventRow, InspectionRow
from crucible_storage.names import new_id
from crucible_storage.policy import Policy
from crucible_storage.transaction import WriteTransaction

CONTEXT = "crucible.inspection.event.v1"
QUEUED, RUNNING, DONE, LOST, REFUSED, CANCELLED = 1, 2, 3, 4, 5, 6
"""Active are the first two."""

MAX_EVENTS = 1000
MAX_EVENT_BYTES = 16 << 10
MAX_REASON_CHARACTERS = 1000
KEPT = 200
"""So many of the latest are kept."""

_POLL_SECONDS = 0.5
_LEASE_POLL_SECONDS = 5.0
_LOG = logging.getLogger(__name__)

_KINDS = {
    pb.INSPECTION_KIND_SELF_TEST: frozenset({"check", "self_test", "failed"}),
    pb.INSPECTION_KIND_VERIFY_ISOLATION: frozenset({"attempt", "verification", "failed"}),
}
_SUMMARIES = frozenset({"self_test", "verification"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for; see `RunInspectionRequest`."""

    tenant: str
    creator: str
    kind: int
    engine: str
    attempts: tuple[str, ...]

    def refusal(self, executor: Executor) -> str:
        """Why a live executor cannot make it; empty when it can."""
        for engine in executor.engines:
            if self.engine in ("", engine.name):
                # One that takes no work can still say what is wrong with it.
                diagnosing = self.kind == pb.INSPECTION_KIND_SELF_TEST and bool(executor.not_serving_reason)
                if engine.available or diagnosing or not self.engine:
                    return ""
                return engine.unavailable_reason or "its executor gives no reason"
        return "no live executor has it"


class _UnsignedError(Exception):
    """An event is not what this inspection's executor signed for it; the text says how."""


class Inspections:
    """All inspections.

    Args:
        database: where.
        hub: wakes those who wait.
        executors: who can make them.
        signer: signs tickets.
        verifier: knows the executors' keys.
        policy: how long things last.
        clock: for what storage records.
    """

    def __init__(
        self,
        database: Database,
        hub: Hub,
        executors: Executors,
        signer: Signer,
        verifier: Verifier,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._database = database
        self._hub = hub
        self._executors = executors
        self._signer = signer
        self._verifier = verifier
        self._policy = policy
        self._clock = clock
        self._heard: dict[str, tuple[float, int]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Ends what earlier processes left active: the calls that it belonged to are gone. Before anything else."""
        await self._database.write(self._end_orphans)

    def _end_orphans(self, transaction: WriteTransaction) -> None:
        """Ends what belongs to processes that are not there any more."""
        active = select(InspectionRow).where(col(InspectionRow.state).in_((QUEUED, RUNNING)))
        for row in transaction.session.exec(active.with_for_update()):
            own = row.owner == self._database.process
            if not own and transaction.backend.is_gone(transaction.connection, row.owner):
                self._end(row, LOST, "storage was started anew")
                transaction.session.add(row)
        transaction.session.flush()

    async def run(self, wanted: Wanted) -> AsyncGenerator[api.RunInspectionResponse, None]:
        """Has an executor make an inspection, and follows it to its end; it ends when this is closed.

        Raises:
            FailedPreconditionError: ENGINE_NOT_AVAILABLE.
            ResourceExhaustedError: INSPECTION_RUNNING.
        """
        inspection_id = new_id()
        candidates = await self._candidates(wanted)
        self._heard[inspection_id] = (self._clock.monotonic(), 0)
        try:
            await self._database.write(self._creation(inspection_id, wanted, candidates))
            sent = 0
            with self._hub.inspections.subscribed() as changed:
                while True:
                    changed.clear()
                    row, events = await self._database.read(_reader(inspection_id, sent))
                    for event in events:
                        yield api.RunInspectionResponse(event=event)
                    sent += len(events)
                    if row.state not in (QUEUED, RUNNING):
                        if row.state != DONE:
                            yield _outcome(row)
                        return
                    self._hub.check_open()
                    self._note_heard(row)
                    await self._give_up_silent(row)
                    await wait_for(changed, _POLL_SECONDS)
        finally:
            del self._heard[inspection_id]
            await self._abandon(inspection_id)

    async def lease(self, executor_id: str, since: ExecutorTime, wait: float) -> list[api.InspectionAssignment]:
        """Gives the start of an executor that told `since` what waits for it; waits up to `wait` seconds for some.

        Raises:
            FailedPreconditionError: NOT_REGISTERED.
        """
        deadline = asyncio.get_running_loop().time() + wait
        asked = tickets.Asked(since, self._clock.monotonic(), self._clock)
        with self._hub.inspections.subscribed() as changed, self._executors.calling(executor_id):
            while True:
                changed.clear()
                await self._executors.check_registered(executor_id, since.boot_id)
                given: list[api.InspectionAssignment] = []
                if await self._database.read(_any_queued(executor_id)):
                    given = await self._kept(self._database.write(self._giver(executor_id, asked)))
                left = deadline - asyncio.get_running_loop().time()
                if given or left <= 0 or self._hub.closing:
                    return given
                await wait_for(changed, min(left, _LEASE_POLL_SECONDS))

    async def _kept(self, giving: Awaitable[list[api.InspectionAssignment]]) -> list[api.InspectionAssignment]:
        """Waits. When the caller leaves meanwhile nobody has the tickets: the next who asks is given the work."""
        given = asyncio.ensure_future(giving)
        try:
            return await asyncio.shield(given)
        except asyncio.CancelledError:
            self._in_background(self._give_back(given))
            raise

    async def _give_back(self, giving: Awaitable[list[api.InspectionAssignment]]) -> None:
        def run(transaction: WriteTransaction) -> None:
            for assignment in given:
                row = _find(transaction.session, assignment.inspection_id)
                if row is not None and row.state == RUNNING:
                    row.state, row.boot_id = QUEUED, ""
                    transaction.notices.inspections = True
                    transaction.session.add(row)

        with contextlib.suppress(CallError):  # then it is lost as that of a silent worker is
            given = await giving
            if given:
                await self._database.write(run)

    async def report(
        self,
        executor_id: str,
        inspection_id: str,
        events: Sequence[SignedBytes],
        outcome: api.InspectionLost | api.InspectionRefused | None = None,
    ) -> bool:
        """Stores what an inspection found, and that its worker is alive; answers whether it is to be ended."""

        def run(transaction: WriteTransaction) -> bool:
            row = _find(transaction.session, inspection_id)
            transaction.notices.inspections = True
            if row is None or row.executor != executor_id or row.state != RUNNING:
                return True
            row.heard += 1
            self._note_heard(row)
            try:
                for signed in events:
                    self._store(transaction.session, row, signed)
            except _UnsignedError as error:
                _LOG.error("inspection's worker lies", extra=logs.fields(inspection=row.id, reason=str(error)))
                self._end(row, LOST, f"its worker reported what its executor did not sign for it: {error}")
            if row.state == RUNNING and isinstance(outcome, api.InspectionRefused):
                self._end(row, REFUSED, outcome.reason, outcome.message)
            elif row.state == RUNNING and isinstance(outcome, api.InspectionLost):
                self._end(row, LOST, outcome.reason)
            transaction.session.add(row)
            return row.state != RUNNING

        return await self._database.write(run)

    async def _candidates(self, wanted: Wanted) -> list[str]:
        """The live executors that can make it."""
        live = [one.executor for one in await self._executors.list() if one.live]
        if not live:
            raise _not_available("no executor's worker is heard of now, so nothing can be inspected; start one")
        refusals = {executor.id: wanted.refusal(executor) for executor in live}
        able = [name for name, refusal in refusals.items() if not refusal]
        if not able:
            reason = next((text for text in refusals.values() if text != "no live executor has it"), "")
            reason = reason or "no live executor has it"
            raise _not_available(f"the engine {wanted.engine!r} is not available: {reason}"[:MAX_REASON_CHARACTERS])
        return able

    def _creation(
        self, inspection_id: str, wanted: Wanted, candidates: Sequence[str]
    ) -> Callable[[WriteTransaction], None]:
        def run(transaction: WriteTransaction) -> None:
            session = transaction.session
            self._end_orphans(transaction)
            transaction.notices.inspections = True
            active = select(InspectionRow.executor).where(
                InspectionRow.kind == wanted.kind, col(InspectionRow.state).in_((QUEUED, RUNNING))
            )
            busy = set(session.exec(active))
            executor = next((name for name in candidates if name not in busy), None)
            if executor is None:
                text = "an inspection of this kind is under way already; try again when it has ended"
                raise ResourceExhaustedError("INSPECTION_RUNNING", text, retry_after=self._policy.lease / 2)
            _forget_oldest(session)
            row = InspectionRow(
                id=inspection_id,
                tenant=wanted.tenant,
                creator=wanted.creator,
                kind=wanted.kind,
                engine=wanted.engine,
                attempts=json.dumps(wanted.attempts),
                executor=executor,
                boot_id="",
                state=QUEUED,
                events=0,
                reason="",
                message="",
                create_time=self._clock.now(),
                owner=self._database.process,
            )
            session.add(row)
            audit.record(
                transaction,
                time=row.create_time,
                tenant=wanted.tenant,
                actor=audit.by_key(wanted.creator),
                action=audit.INSPECTION_START,
                subject=f"inspections/{inspection_id}",
                kind=pb.InspectionKind.Name(pb.InspectionKind.ValueType(wanted.kind)).removeprefix("INSPECTION_KIND_"),
                engine=wanted.engine,
                executor=executor,
            )

        return run

    def _giver(
        self, executor_id: str, asked: tickets.Asked
    ) -> Callable[[WriteTransaction], list[api.InspectionAssignment]]:
        boot_id = asked.since.boot_id

        def run(transaction: WriteTransaction) -> list[api.InspectionAssignment]:
            self._executors.registered_now(transaction, executor_id, boot_id)
            given = []
            for row in transaction.session.exec(_queued(executor_id).with_for_update()).all():
                row.state, row.boot_id = RUNNING, boot_id
                row.heard += 1
                self._note_heard(row)
                transaction.notices.inspections = True
                transaction.session.add(row)
                ticket = tickets.issue_inspection(row, asked, self._clock.now(), self._signer)
                given.append(api.InspectionAssignment(inspection_id=row.id, ticket=ticket))
            return given

        return run

    def _store(self, session: Session, row: InspectionRow, signed: SignedBytes) -> None:
        """Stores one event; one that is stored already, or comes behind the end, is ignored."""
        event = self._checked(row, signed)
        if event.sequence <= row.events or row.state != RUNNING:
            return
        if event.sequence != row.events + 1:
            raise _UnsignedError(f"event {event.sequence} came after event {row.events}")
        body = signed.SerializeToString()
        session.add(
            InspectionEventRow(inspection_seq=row.seq or 0, sequence=event.sequence, tenant=row.tenant, body=body)
        )
        row.events = event.sequence
        kind = event.WhichOneof("kind")
        if kind in _SUMMARIES:
            self._end(row, DONE)
        elif kind == "failed":
            self._end(row, LOST, f"its executor could not bring it to its end: {event.failed.reason}")

    def _checked(self, row: InspectionRow, signed: SignedBytes) -> pb.InspectionEvent:
        if len(signed.payload) > MAX_EVENT_BYTES:
            raise _UnsignedError(f"an event is larger than {MAX_EVENT_BYTES} bytes")
        try:
            self._verifier.verify(CONTEXT, signed.payload, signed.key_id, signed.signature)
            event = pb.InspectionEvent.FromString(signed.payload)
        except BadSignatureError as error:
            raise _UnsignedError(str(error)) from None
        except DecodeError:
            raise _UnsignedError("an event's payload is not an event") from None
        own = (event.inspection_id, event.executor_id, event.boot_id)
        if own != (row.id, row.executor, row.boot_id):
            raise _UnsignedError("an event belongs to another inspection, executor or start of it")
        if event.WhichOneof("kind") not in _KINDS[pb.InspectionKind.ValueType(row.kind)]:
            raise _UnsignedError("an event belongs to another kind of inspection")
        if not 1 <= event.sequence <= MAX_EVENTS:
            raise _UnsignedError(f"an event has the number {event.sequence}")
        return event

    def _note_heard(self, row: InspectionRow) -> None:
        """Notes that the worker of an inspection that is followed here was heard of, by this process or another."""
        followed = self._heard.get(row.id)
        if followed is not None and followed[1] < row.heard:
            self._heard[row.id] = (self._clock.monotonic(), row.heard)

    async def _give_up_silent(self, row: InspectionRow) -> None:
        """Ends an inspection whose worker was not heard of for a lease."""
        limit = self._policy.lease.total_seconds()
        if self._clock.monotonic() - self._heard[row.id][0] <= limit:
            return
        text = f"its executor's worker {'did not take it' if row.state == QUEUED else 'was not heard of'}"
        reason = f"{text} for {limit:g} s"
        _LOG.warning("inspection lost", extra=logs.fields(inspection=row.id, executor=row.executor, reason=reason))
        await self._database.write(self._ender(row.id, LOST, reason))

    async def _abandon(self, inspection_id: str) -> None:
        """Ends an inspection that nobody follows any more, whatever becomes of this task; nothing when it has ended."""
        await asyncio.shield(self._in_background(self._abandoned(inspection_id)))

    def _in_background(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _abandoned(self, inspection_id: str) -> None:
        with contextlib.suppress(CallError):  # storage stops or cannot write: its next start ends it
            await self._database.write(self._ender(inspection_id, CANCELLED, "its caller left"))

    def _ender(self, inspection_id: str, state: int, reason: str) -> Callable[[WriteTransaction], None]:
        def run(transaction: WriteTransaction) -> None:
            row = _find(transaction.session, inspection_id)
            if row is not None and row.state in (QUEUED, RUNNING):
                transaction.notices.inspections = True
                self._end(row, state, reason)
                transaction.session.add(row)

        return run

    def _end(self, row: InspectionRow, state: int, reason: str = "", message: str = "") -> None:
        row.state, row.end_time = state, self._clock.now()
        row.reason, row.message = storable(reason)[:MAX_REASON_CHARACTERS], storable(message)[:MAX_REASON_CHARACTERS]


def _outcome(row: InspectionRow) -> api.RunInspectionResponse:
    if row.state == REFUSED:
        return api.RunInspectionResponse(refused=api.InspectionRefused(reason=row.reason, message=row.message))
    return api.RunInspectionResponse(lost=api.InspectionLost(reason=row.reason))


def _reader(inspection_id: str, after: int) -> Callable[[Connection], tuple[InspectionRow, list[pb.InspectionEvent]]]:
    def run(connection: Connection) -> tuple[InspectionRow, list[pb.InspectionEvent]]:
        session = Session(connection)
        row = session.exec(select(InspectionRow).where(InspectionRow.id == inspection_id)).one()
        query = select(InspectionEventRow.body).where(
            InspectionEventRow.inspection_seq == row.seq, InspectionEventRow.sequence > after
        )
        bodies = session.exec(query.order_by(col(InspectionEventRow.sequence))).all()
        return row, [pb.InspectionEvent.FromString(SignedBytes.FromString(body).payload) for body in bodies]

    return run


def _find(session: Session, inspection_id: str) -> InspectionRow | None:
    """To be changed: no other process changes it until the transaction ends."""
    return session.exec(select(InspectionRow).where(InspectionRow.id == inspection_id).with_for_update()).first()


def _queued(executor_id: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  # sqlmodel's type has no name
    return select(InspectionRow).where(InspectionRow.executor == executor_id, InspectionRow.state == QUEUED)


def _any_queued(executor_id: str) -> Callable[[Connection], bool]:
    return lambda connection: Session(connection).exec(_queued(executor_id)).first() is not None


def _forget_oldest(session: Session) -> None:
    """Keeps the table small: only the latest that have ended stay."""
    ended = col(InspectionRow.state).not_in((QUEUED, RUNNING))
    count = session.exec(select(func.count(col(InspectionRow.seq))).where(ended)).one()
    if count < KEPT:
        return
    oldest = select(InspectionRow.seq).where(ended).order_by(col(InspectionRow.seq)).limit(count - KEPT + 1)
    for seq in session.exec(oldest).all():
        session.exec(delete(InspectionEventRow).where(col(InspectionEventRow.inspection_seq) == seq))
        session.exec(delete(InspectionRow).where(col(InspectionRow.seq) == seq))


def _not_available(text: str) -> FailedPreconditionError:
    return FailedPreconditionError("ENGINE_NOT_AVAILABLE", text, metadata={"field": "engine"})
