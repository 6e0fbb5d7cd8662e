"""Leases: given to a start of an executor, renewed by its worker, taken back when nothing of the run can be alive."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import bindparam, case, select, text, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1.platform_pb2 import Executor
from crucible.executor.v1.executor_service_pb2 import ExecutorTime
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc.errors import CallError
from crucible_rpc.signing import Signer
from crucible_storage import models, outputs, queue, store, tickets
from crucible_storage.clock import Clock, micros
from crucible_storage.database import Database
from crucible_storage.executors import Executors
from crucible_storage.hub import Hub, wait_for
from crucible_storage.lifecycle import STARTING, Record
from crucible_storage.names import evaluation_name, parse_run_id, run_id
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import Stop, WriteTransaction

T = TypeVar("T")

MAX_ANSWER_BYTES = 3 << 20
FALLBACK_POLL = 5.0
_CONTENDED_POLL = 0.05
_LOG = logging.getLogger(__name__)

_ROW = models.evaluation.c
_STATE_HELD = text("state IN (2, 3)")  # as the conditions of the indexes say it
_SELECT_HELD = (
    select(
        _ROW.seq,
        _ROW.id,
        _ROW.attempt,
        _ROW.epoch,
        _ROW.boot_id,
        _ROW.stdout_bytes,
        _ROW.stderr_bytes,
        _ROW.behaviour_updates,
        _ROW.cancel_time,
    )
    .where(_ROW.executor == bindparam("executor"), _STATE_HELD, _ROW.lost_reason.is_(None))
    .order_by(_ROW.seq)
)
_HELD = Prepared(_SELECT_HELD)
_HELD_TO_CHANGE = Prepared(_SELECT_HELD.with_for_update(key_share=True))
# Whoever watches a lease sees each renewal (`Sweeper`), also after the clock was set back.
_GROWN = case((_ROW.lease_renewed < bindparam("now"), bindparam("now")), else_=_ROW.lease_renewed + 1)
_RENEW = Prepared(
    update(models.evaluation)
    .where(_ROW.seq == bindparam("key"))
    .values(lease_renewed=_GROWN, lease_expiry=bindparam("expiry"))
)


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that an executor holds."""

    seq: int
    evaluation_id: str
    attempt: int
    epoch: int
    boot_id: str
    stdout_bytes: int
    stderr_bytes: int
    behaviour_updates: int
    cancel_time: int | None

    @property
    def run_id(self) -> str:
        """The run it is for."""
        return run_id(self.evaluation_id, self.attempt)


@dataclass(slots=True)
class _Look:
    """What a look for work met: `met_another`, work that another process was just giving out, or giving back."""

    met_another: bool = False


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last wish of an executor's worker, and what it was given."""

    request_id: str
    assignments: list[work.Assignment]


class Leases:
    """Gives work to executors and takes it back.

    Args:
        database: where.
        hub: wakes those who wait for work and for stops.
        executors: who may lease.
        signer: signs tickets.
        policy: how long things last.
        clock: for what storage records.
        jitter: a number from 0 to 1.
    """

    def __init__(
        self,
        database: Database,
        hub: Hub,
        executors: Executors,
        signer: Signer,
        policy: Policy,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._hub = hub
        self._executors = executors
        self._signer = signer
        self._policy = policy
        self._clock = clock
        self._jitter = jitter
        self._queue = queue.Queue()
        self._returning: set[asyncio.Future[None]] = set()
        self._answered: dict[str, _Answered] = {}

    async def register(self, executor: Executor) -> list[Held]:
        """Makes this start of the executor the current one; answers the leases that any start of it holds."""

        def run(transaction: WriteTransaction) -> tuple[int, list[Held]]:
            registration = self._executors.store(transaction, executor, self._clock.now())
            return registration, held_leases(transaction.connection, executor.id, to_change=True)

        registration, held = await self._database.write(run)
        self._executors.remember(executor, registration)
        return held

    async def lease(self, executor_id: str, since: ExecutorTime, max_runs: int, wait: float) -> list[work.Assignment]:
        """Leases up to `max_runs` evaluations to the executor's start that told `since`.

        Waits up to `wait` seconds for the first.

        Raises:
            FailedPreconditionError: NOT_REGISTERED.
        """
        asked = tickets.Asked(since, self._clock.monotonic(), self._clock)
        deadline = asyncio.get_running_loop().time() + wait
        with self._hub.work.subscribed() as changed, self._executors.calling(executor_id):
            while True:
                changed.clear()
                await self._executors.check_registered(executor_id, since.boot_id)
                # An empty queue need not be asked for work: every run that ends leads here while nothing waits.
                waiting = self._database.queued > 0
                look = _Look()
                give = self._giver(executor_id, asked, max_runs, look)
                given = await self._kept(self._database.write(give), _itself) if waiting else []
                left = deadline - asyncio.get_running_loop().time()
                if given or left <= 0 or self._hub.closing:
                    return given
                patience = await self._until_delayed() if waiting else FALLBACK_POLL
                seconds = min(left, _CONTENDED_POLL if look.met_another else patience)
                if given := await self._given_as_it_comes(give, changed, seconds):
                    return given

    async def after(
        self, first: Callable[[WriteTransaction], T], executor_id: str, wish: work.LeaseMore
    ) -> tuple[T, list[work.Assignment]]:
        """Does `first`, then leases what there is, in the same transaction.

        Who cannot be given any (is not registered, say) gets nothing: what `first` did must not be undone for that.
        The same wish of the same executor once more is answered as before, with what of it is still to be started.
        """
        asked = tickets.Asked(wish.since, self._clock.monotonic(), self._clock)
        give = self._giver(executor_id, asked, wish.max_runs, _Look())
        earlier = self._answered.get(executor_id)
        repeated = earlier.assignments if earlier is not None and earlier.request_id == wish.request_id else None

        def run(transaction: WriteTransaction) -> tuple[T, list[work.Assignment]]:
            done = first(transaction)
            if repeated is not None:
                return done, [one for one in repeated if _unstarted(transaction, one) is not None]
            if not transaction.queued:
                return done, []
            try:
                with transaction.savepoint():
                    return done, give(transaction)
            except CallError:
                return done, []

        self._executors.heard(executor_id)
        done, given = await self._kept(self._database.write(run), lambda answer: answer[1])
        # Only now: what was given back because its caller had left is never given again under the same ticket.
        if given:
            self._answered[executor_id] = _Answered(wish.request_id, given)
        else:
            self._answered.pop(executor_id, None)
        return done, given

    async def _given_as_it_comes(
        self, give: Callable[[WriteTransaction], list[work.Assignment]], changed: asyncio.Event, seconds: float
    ) -> list[work.Assignment]:
        """Waits until there may be work, at most so long; leases what comes meanwhile as it is stored."""
        standing = self._database.stand_by(give)
        try:
            await wait_for(changed, seconds)
        except asyncio.CancelledError:
            if not self._database.stand_down(standing):
                self._return_later(standing.future, _itself)
            raise
        return [] if self._database.stand_down(standing) else await self._kept(standing.future, _itself)

    async def _kept(self, giving: Awaitable[T], leased: Callable[[T], list[work.Assignment]]) -> T:
        """Waits. When the caller leaves meanwhile nobody has the tickets: the work goes back at once."""
        given = asyncio.ensure_future(giving)
        try:
            return await asyncio.shield(given)
        except asyncio.CancelledError:
            self._return_later(given, leased)
            raise

    def _return_later(self, giving: "asyncio.Future[T]", leased: Callable[[T], list[work.Assignment]]) -> None:
        returning = asyncio.ensure_future(self._give_back(giving, leased))
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)

    async def _give_back(self, giving: "asyncio.Future[T]", leased: Callable[[T], list[work.Assignment]]) -> None:
        def run(transaction: WriteTransaction) -> None:
            now = self._clock.now()
            for assignment in given:
                record = _unstarted(transaction, assignment)
                if record is not None:
                    before = store.Before(record)
                    outputs.as_of_the_attempt_before(transaction.settled(record.seq), record)
                    record.refuse("its worker left before it was told", now, now, permanent=False)
                    store.save(transaction, record, before, now)

        with contextlib.suppress(CallError):  # a lease that cannot be given back expires
            given = leased(await giving)
            if given:
                await self._database.write(run)

    def _giver(
        self, executor_id: str, asked: tickets.Asked, max_runs: int, look: _Look
    ) -> Callable[[WriteTransaction], list[work.Assignment]]:
        def run(transaction: WriteTransaction) -> list[work.Assignment]:
            known = self._executors.registered_now(transaction, executor_id, asked.since.boot_id)
            now = self._clock.now()
            given: list[work.Assignment] = []
            size = 0
            for waiting in self._queue.pick(transaction, known, now):
                if given and size + waiting.size > MAX_ANSWER_BYTES:
                    break
                taken = store.take_waiting(transaction.connection, waiting.seq)
                if taken is None:
                    look.met_another = True
                    continue
                given.append(self._give(transaction, *taken, executor_id, asked, now))
                size += waiting.size
                if len(given) >= max_runs:
                    break
            self._hub.held_back = self._queue.held_back
            return given

        return run

    def _give(
        self,
        transaction: WriteTransaction,
        record: Record,
        run_spec: bytes,
        executor_id: str,
        asked: tickets.Asked,
        now: int,
    ) -> work.Assignment:
        before = store.Before(record)
        record.lease(executor_id, asked.since.boot_id, now, self._policy)
        store.save(transaction, record, before, now)
        return work.Assignment(
            run_id=record.run_id,
            evaluation=evaluation_name(record.id),
            epoch=record.epoch,
            ticket=tickets.issue(record, asked, now, self._signer, self._policy),
            run_spec=run_spec,
        )

    async def _until_delayed(self) -> float:
        """Seconds until the next evaluation that waits for a time may be leased, or `FALLBACK_POLL`."""
        at = await self._database.read(queue.next_delayed)
        if at is None:
            return FALLBACK_POLL
        return min(max((at - self._clock.now()) / 1e6, 0.001), FALLBACK_POLL)

    async def renew(self, executor_id: str, leases: Sequence[work.LeaseRef]) -> tuple[list[str], list[str]]:
        """Extends leases from now; answers the runs whose lease is gone, and those that are to be ended."""

        def run(transaction: WriteTransaction) -> tuple[list[str], list[str]]:
            now = self._clock.now()
            held = {
                (one.run_id, one.epoch): one for one in held_leases(transaction.connection, executor_id, to_change=True)
            }
            kept = {ref.run_id: one for ref in leases if (one := held.get((ref.run_id, ref.epoch))) is not None}
            times = {"now": now, "expiry": now + micros(self._policy.lease)}
            if kept:
                _RENEW.many(transaction.connection, [{"key": one.seq} | times for one in kept.values()])
            self._executors.store_heard(transaction, executor_id, now)
            lost = [ref.run_id for ref in leases if (ref.run_id, ref.epoch) not in held]
            return lost, [name for name, one in kept.items() if one.cancel_time is not None]

        self._executors.heard(executor_id)
        return await self._database.write(run)

    async def stops(self, executor_id: str) -> AsyncIterator[list[Stop]]:
        """The executor's runs that are to be ended: those known now, then each as its intent is stored. Never ends."""

        def known(connection: Connection) -> list[Stop]:
            held = held_leases(connection, executor_id)
            return [Stop(executor_id, one.run_id, one.epoch, one.cancel_time) for one in held if one.cancel_time]

        with self._hub.stops_of(executor_id) as watch:
            stops = await self._database.read(known)
            while True:
                if stops:
                    yield stops
                self._hub.check_open()
                stops = await watch.take()


def _itself(given: list[work.Assignment]) -> list[work.Assignment]:
    return given


def _unstarted(transaction: WriteTransaction, assignment: work.Assignment) -> Record | None:
    """The record of work that was given and whose worker has not been heard of since; None when it has moved on."""
    name = parse_run_id(assignment.run_id)
    record = None if name is None else store.load(transaction.connection, name.evaluation_id, to_change=True)
    return record if record is not None and record.state == STARTING and record.epoch == assignment.epoch else None


def held_leases(connection: Connection, executor_id: str, *, to_change: bool = False) -> list[Held]:
    """The leases that any start of an executor holds, oldest evaluation first. `to_change` as in `store.load`."""
    query = _HELD_TO_CHANGE if to_change else _HELD
    return [Held(*row) for row in query.all(connection, {"executor": executor_id})]
