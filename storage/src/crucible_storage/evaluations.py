"""Evaluations for the gateway: made once, looked at, waited for, cancelled."""

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from sqlalchemy import bindparam, insert, select
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1.executor_service_pb2 import RunSpec
from crucible_rpc.errors import AlreadyExistsError
from crucible_storage import admission, audit, models, outputs, store, views
from crucible_storage.artifacts import reading
from crucible_storage.artifacts.blob_store import BlobMissingError, BlobStore
from crucible_storage.artifacts.reading import Object
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.ended_views import EndedViews
from crucible_storage.hub import Hub, wait_for
from crucible_storage.lifecycle import TERMINAL, Record
from crucible_storage.names import evaluation_name, new_id, parse_evaluation_name
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared
from crucible_storage.queue import lane_of, rank_of
from crucible_storage.transaction import WriteTransaction

FALLBACK_POLL = 5.0
READ_BYTES = 64 << 10
_MOVED_BYTES = 256 << 10
"""Read at once of output that is in the artifact store: each read is a request there."""

_ROW = models.evaluation.c
_BY_REQUEST = Prepared(
    select(_ROW.id, _ROW.spec_sha256).where(
        _ROW.tenant == bindparam("tenant"), _ROW.request_id == bindparam("request_id"), _ROW.request_id.is_not(None)
    )
)
_INSERT_PROGRAM = Prepared(insert(models.program))
_INSERT_LABELS = Prepared(insert(models.label))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks for, in the forms in which it is stored; made outside the writer."""

    tenant: str
    creator: str
    request_id: str
    spec: pb.EvaluationSpec
    run_spec: bytes
    spec_sha256: bytes

    @classmethod
    def of(cls, tenant: str, creator: str, request_id: str, spec: pb.EvaluationSpec) -> "Wanted":
        """Serializes what the executor will get, once; its digest is part of every ticket."""
        run_spec = RunSpec(program=spec.program, engine=spec.engine).SerializeToString(deterministic=True)
        digest = spec_sha256(hashlib.sha256(run_spec).digest(), spec.limits, spec.priority, spec.labels)
        return cls(tenant, creator, request_id, spec, run_spec, digest)


def spec_sha256(run_spec_sha256: bytes, limits: pb.Limits, priority: int, labels: Mapping[str, str]) -> bytes:
    """The digest of all that a caller asked for."""
    rest = pb.EvaluationSpec(limits=limits, priority=priority, labels=labels)
    return hashlib.sha256(run_spec_sha256 + rest.SerializeToString(deterministic=True)).digest()


def new_record(
    wanted: Wanted, evaluation_id: str, now: int, policy: Policy, *, batch: str | None = None, blocked: int = 0
) -> Record:
    """The record of a new evaluation, QUEUED, with its first event.

    Args:
        wanted: what was asked for.
        evaluation_id: its id.
        now: µs, when it is made.
        policy: how priorities are weighed.
        batch: the id of the batch of which it is an item.
        blocked: how many things it waits for before it may be leased.
    """
    spec = wanted.spec
    record = Record(
        seq=0,
        id=evaluation_id,
        tenant=wanted.tenant,
        creator=wanted.creator,
        request_id=wanted.request_id or None,
        spec_sha256=wanted.spec_sha256,
        run_spec_sha256=hashlib.sha256(wanted.run_spec).digest(),
        run_spec_size=len(wanted.run_spec),
        runtime=spec.program.runtime,
        engine=spec.engine,
        priority=spec.priority,
        limits=spec.limits.SerializeToString(),
        output_limit=spec.limits.output_bytes,
        labels=json.dumps(dict(sorted(spec.labels.items()))),
        lane=lane_of(wanted.tenant, spec.engine, spec.program.runtime),
        rank=rank_of(now, spec.priority, policy),
        create_time=now,
        batch=batch,
        blocked=blocked,
    )
    record.create()
    return record


def insert_parts(transaction: WriteTransaction, created: Sequence[tuple[Record, Wanted]]) -> None:
    """Stores what evaluations that were just inserted have elsewhere: programs, labels, audit records."""
    programs, labels = [], []
    for record, wanted in created:
        owner = {"evaluation_seq": record.seq, "tenant": record.tenant}
        programs.append(owner | {"run_spec": wanted.run_spec})
        audit.record(
            transaction,
            time=record.create_time,
            tenant=record.tenant,
            actor=audit.by_key(record.creator),
            action=audit.EVALUATION_CREATE,
            subject=evaluation_name(record.id),
            run_spec_sha256=record.run_spec_sha256.hex(),
        )
        labels += [owner | {"key": key, "value": value} for key, value in sorted(wanted.spec.labels.items())]
    _INSERT_PROGRAM.many(transaction.connection, programs)
    if labels:
        _INSERT_LABELS.many(transaction.connection, labels)


class Evaluations:
    """The evaluations of all tenants; every call names one, and sees no other's.

    Args:
        database: where.
        hub: wakes those who wait for an end.
        blob_store: has large output.
        ended: remembers what has ended.
        policy: how much may wait.
        clock: for what storage records.
        ids: makes a new id, a UUID.
    """

    def __init__(
        self,
        database: Database,
        hub: Hub,
        blob_store: BlobStore,
        ended: EndedViews,
        policy: Policy,
        clock: Clock,
        ids: Callable[[], str] = new_id,
    ) -> None:
        self._database = database
        self._hub = hub
        self._store = blob_store
        self._ended = ended
        self._policy = policy
        self._clock = clock
        self._ids = ids

    async def create(self, wanted: Wanted) -> pb.Evaluation:
        """Stores an evaluation, or answers the one that this request id made before.

        Raises:
            AlreadyExistsError: REQUEST_ID_REUSED, with another spec.
            InvalidArgumentError: INVALID_FIELD, a priority above the tenant's ceiling.
            ResourceExhaustedError: QUEUE_FULL, QUOTA_EXCEEDED or STORAGE_FULL.
        """

        def run(transaction: WriteTransaction) -> pb.Evaluation:
            if wanted.request_id and (earlier := self._earlier(transaction.connection, wanted)) is not None:
                return views.complete(transaction.settled(earlier.seq), earlier)
            record = self.insert(transaction, wanted)
            view = views.new(record)
            view.spec.program.CopyFrom(wanted.spec.program)
            return view

        return await self._database.write(run)

    async def create_and_wait(self, wanted: Wanted, seconds: float) -> pb.Evaluation:
        """As `create`, then as `wait` for at most `seconds`."""
        evaluation = await self.create(wanted)
        if not seconds or int(evaluation.state) in TERMINAL:
            return evaluation
        evaluation_id = parse_evaluation_name(evaluation.name)
        return await self.wait(wanted.tenant, evaluation_id, seconds, wanted.spec.program)

    def _earlier(self, connection: Connection, wanted: Wanted) -> Record | None:
        row = _BY_REQUEST.first(connection, {"tenant": wanted.tenant, "request_id": wanted.request_id})
        if row is None:
            return None
        if row[1] != wanted.spec_sha256:
            text = f"the request_id was used before for evaluations/{row[0]} with another spec; use a new one"
            raise AlreadyExistsError("REQUEST_ID_REUSED", text, metadata={"evaluation": f"evaluations/{row[0]}"})
        return store.load(connection, row[0])

    def insert(self, transaction: WriteTransaction, wanted: Wanted) -> Record:
        """Admits and stores a new evaluation; see `admission.admit` for what is raised."""
        now, priority, size = self._clock.now(), wanted.spec.priority, len(wanted.run_spec)
        admission.admit(transaction, self._policy, wanted.tenant, now, priority=priority, stored_bytes=size)
        record = new_record(wanted, self._ids(), now, self._policy)
        store.insert_record(transaction, record, now)
        insert_parts(transaction, [(record, wanted)])
        return record

    async def get(self, tenant: str, evaluation_id: str) -> pb.Evaluation:
        """One evaluation as it is now.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND.
        """

        def run(connection: Connection) -> pb.Evaluation:
            return self._ended.complete(connection, store.load_owned(connection, tenant, evaluation_id))

        return await self._database.read(run)

    async def wait(
        self, tenant: str, evaluation_id: str, seconds: float, program: pb.Program | None = None
    ) -> pb.Evaluation:
        """The evaluation when it is terminal, or as it is after `seconds`.

        Args:
            tenant: whose it must be.
            evaluation_id: which.
            seconds: at most so long.
            program: its program, when that is known: then an end that comes meanwhile need not be read back.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND.
        """

        def look(connection: Connection, last: bool) -> pb.Evaluation | None:
            record = store.load_owned(connection, tenant, evaluation_id)
            return self._ended.complete(connection, record) if last or record.terminal else None

        deadline = asyncio.get_running_loop().time() + seconds
        with self._hub.end_of(evaluation_id) as ended:
            unended = self._hub.is_unended(tenant, evaluation_id)  # then a first look would find nothing
            while True:
                ended.changed.clear()
                left = deadline - asyncio.get_running_loop().time()
                last = left <= 0 or self._hub.closing
                if last or not unended:
                    view = await self._database.read(lambda connection: look(connection, last))  # noqa: B023
                    if view is not None:
                        if view.state in TERMINAL:
                            self._hub.forget(evaluation_id)
                        return view
                unended = False
                await wait_for(ended.changed, min(left, FALLBACK_POLL))
                if program is not None and ended.end is not None:
                    return views.at_its_end(ended.end, program)

    async def cancel(self, tenant: str, evaluation_id: str, by: str, reason: str) -> pb.Evaluation:
        """Stores the wish to end an evaluation; a queued one ends at once, a terminal one is returned unchanged.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND.
        """

        def run(transaction: WriteTransaction) -> pb.Evaluation:
            record = store.load_owned(transaction.connection, tenant, evaluation_id, to_change=True)
            if not record.terminal and not record.cancel_wanted:
                now = self._clock.now()
                before = store.Before(record)
                record.want_cancel(by, reason, now)
                audit.record(
                    transaction,
                    time=now,
                    tenant=tenant,
                    actor=audit.by_key(by),
                    action=audit.EVALUATION_CANCEL,
                    subject=evaluation_name(evaluation_id),
                    reason=reason,
                )
                store.save(transaction, record, before, now)
            return views.complete(transaction.settled(record.seq), record)

        return await self._database.write(run)

    async def read_output(
        self, tenant: str, evaluation_id: str, stream: int, offset: int, attempt: int
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Kept bytes from `offset` as far as they are stored, in parts of at most 64 KiB, each with its offset.

        Args:
            tenant: whose it must be.
            evaluation_id: which.
            stream: an `OutputStream`.
            offset: the first byte.
            attempt: which; 0: the latest.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND, also when it is deleted meanwhile.
            DataLossError: ARTIFACT_DAMAGED, of output that is in the artifact store.
            UnavailableError: ARTIFACT_STORE_UNAVAILABLE, of such output.
        """

        def owned(connection: Connection) -> Record:
            return store.load_owned(connection, tenant, evaluation_id)

        record = await self._database.read(owned)
        chosen = attempt or record.attempt
        while found := await self._database.read(
            lambda connection: outputs.read(connection, record.seq, chosen, stream, offset, READ_BYTES)  # noqa: B023
        ):
            if isinstance(found, Object):
                async with aclosing(self._moved(found, offset, owned)) as parts:
                    async for part in parts:
                        yield part
                break
            yield offset, found
            offset += len(found)
        await self._database.read(owned)  # deleted meanwhile, this was not the end of what it wrote

    async def _moved(
        self, found: Object, offset: int, owned: Callable[[Connection], Record]
    ) -> AsyncGenerator[tuple[int, bytes], None]:
        """The rest of a stream that is in the artifact store."""
        try:
            rest = reading.parts(self._store, found, offset, found.size, _MOVED_BYTES, READ_BYTES)
            async with aclosing(rest) as parts:
                async for part in parts:
                    yield part
        except BlobMissingError:
            await self._database.read(owned)  # deleted meanwhile, it is not damaged
            raise reading.damaged(found) from None

    async def counts(self, tenant: str) -> dict[int, int]:
        """How many evaluations of the tenant are in each state."""
        row = models.evaluation_count.c
        query = select(row.state, row.count).where(row.tenant == tenant)
        rows = await self._database.read(lambda connection: connection.execute(query).fetchall())
        return {row[0]: row[1] for row in rows}
