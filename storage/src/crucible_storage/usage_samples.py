"""Usage samples: taken in from executors, read by callers, downsampled and removed by age.

A row for each attempt that lasted long enough to be looked at, in a table of its own: no event, and no change of the
evaluation's row. Of an attempt that is over nothing is ever added to its row again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Select, and_, bindparam, delete, insert, or_, select, update
from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.usage_samples_pb2 import UsagePoint, UsageSample, UsageSamples
from crucible.storage.v1 import evaluation_store_service_pb2 as answers
from crucible_rpc.errors import InvalidArgumentError
from crucible_storage import models, store, usage_series
from crucible_storage.clock import Clock, duration, micros
from crucible_storage.database import Database
from crucible_storage.lifecycle import HELD, Record
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import WriteTransaction
from crucible_storage.usage_series import Point

MAX_SAMPLES = 2048
"""Of one attempt."""

MAX_TOGETHER = 256
"""In one event."""

ROWS_PER_TRANSACTION = 20
_MAX_SECONDS = 366 * 86_400
_MAX_CPUS = 1 << 16
_MAX_TASKS = 1 << 22  # the most that Linux numbers
_MAX_BYTES = 1 << 62
_START_ALLOWANCE = timedelta(minutes=2)
"""What an executor may take beyond a run's wall time to see it ended; later than that nothing can have been sampled."""

_ROW, _EVALUATION = models.usage_sample.c, models.evaluation.c
_KEY = and_(_ROW.evaluation_seq == bindparam("seq"), _ROW.attempt == bindparam("number"))
_OF_ATTEMPT = Prepared(select(_ROW.samples, _ROW.downsampled, _ROW.data).where(_KEY))
_INSERT = Prepared(insert(models.usage_sample))
_APPEND = Prepared(
    update(models.usage_sample)
    .where(_KEY)
    .values(samples=bindparam("new_samples"), recorded=bindparam("now"), data=bindparam("new_data"))
)
_RESULT = Prepared(select(models.result.c.result).where(models.result.c.evaluation_seq == bindparam("seq")))
_OVER = or_(_EVALUATION.state.not_in(sorted(HELD)), _EVALUATION.attempt > _ROW.attempt)
_AGED = (
    select(_ROW.evaluation_seq, _ROW.attempt)
    .join(models.evaluation, _EVALUATION.seq == _ROW.evaluation_seq)
    .where(_ROW.recorded < bindparam("before"), _OVER)
    .order_by(_ROW.recorded)
    .limit(ROWS_PER_TRANSACTION)
)
_AGED_WHOLE = _AGED.where(_ROW.downsampled == 0)
_TO_DOWNSAMPLE = select(_ROW.data).where(_KEY, _ROW.downsampled == 0).with_for_update()
_DOWNSAMPLE = update(models.usage_sample).where(_KEY).values(downsampled=1, data=bindparam("new_data"))
_DELETE = delete(models.usage_sample).where(_KEY)
_Step = Callable[[WriteTransaction, dict[str, int]], None]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ages:
    """How long samples are kept after the last of their attempt.

    Attributes:
        whole: as they were taken; then they are downsampled. None: for ever.
        keep: at all. None: as long as their evaluation.
    """

    whole: timedelta | None = timedelta(days=1)
    keep: timedelta | None = timedelta(days=30)


def check(message: UsageSamples) -> None:
    """Checks all that needs no database: the executor's words may be wrong.

    Raises:
        InvalidArgumentError: INVALID_FIELD.
    """
    count = len(message.samples)
    if not 1 <= count <= MAX_TOGETHER or not 1 <= message.first <= MAX_SAMPLES - count + 1:
        raise _invalid(f"1 to {MAX_TOGETHER} usage samples come together, at most {MAX_SAMPLES} of an attempt")
    if not all(_is_bounded(sample) for sample in message.samples):
        raise _invalid("a usage sample must have a time, CPU time, memory and tasks that a machine can have")


def add(transaction: WriteTransaction, record: Record, message: UsageSamples, now: int) -> None:
    """Stores those of an attempt's checked samples that are not stored yet; the record is locked.

    Raises:
        InvalidArgumentError: INVALID_FIELD: some are missing before these, or they are out of order or too late.
    """
    connection, key = transaction.connection, {"seq": record.seq, "number": record.attempt}
    row = _OF_ATTEMPT.first(connection, key)
    stored, data = (0, b"") if row is None else (row[0], row[2])
    if message.first > stored + 1:
        raise _invalid(f"usage samples are missing: {stored} are stored, these begin with number {message.first}")
    fresh = [_point(sample) for sample in message.samples[stored + 1 - message.first :]]
    if not fresh:
        return
    last = usage_series.unpack(data, downsampled=False)[-1:]
    if not usage_series.in_order([*last, *fresh]) or fresh[-1].since_start > _latest(record):
        raise _invalid("usage samples must rise in time, not fall in CPU time, and lie within the run's wall time")
    samples, data = stored + len(fresh), data + usage_series.pack_samples(fresh)
    if row is not None:
        _APPEND.run(connection, key | {"new_samples": samples, "now": now, "new_data": data})
        return
    new = {"evaluation_seq": record.seq, "attempt": record.attempt, "tenant": record.tenant}
    _INSERT.run(connection, new | {"samples": samples, "downsampled": 0, "recorded": now, "data": data})


class Samples:
    """The usage samples of all tenants.

    Args:
        database: where.
        clock: says what is old.
        ages: how long they are kept.
    """

    def __init__(self, database: Database, clock: Clock, ages: Ages) -> None:
        self._database = database
        self._clock = clock
        self._ages = ages

    async def list(self, tenant: str, evaluation_id: str, attempt: int) -> answers.ListUsageSamplesResponse:
        """What is kept of one attempt (0: the latest), and how far that is all.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND.
        """

        def run(connection: Connection) -> answers.ListUsageSamplesResponse:
            return _listed(connection, store.load_owned(connection, tenant, evaluation_id), attempt)

        return await self._database.read(run)

    async def age(self) -> int:
        """Removes and downsamples a few of those that are old enough; answers how many, 0 when there are no more."""
        ages = self._ages
        removed = await self._each(_AGED, ages.keep, _remove)
        return removed or await self._each(_AGED_WHOLE, ages.whole, _downsample)

    async def _each(self, aged: Select[Any], age: timedelta | None, do: _Step) -> int:
        if age is None:
            return 0
        before = self._clock.now() - micros(age)
        rows = await self._database.read(lambda connection: connection.execute(aged, {"before": before}).fetchall())
        keys = sorted((row.evaluation_seq, row.attempt) for row in rows)  # in one order for all processes

        def run(transaction: WriteTransaction) -> None:
            for seq, attempt in keys:
                do(transaction, {"seq": seq, "number": attempt})

        if keys:
            await self._database.write(run)
        return len(keys)


def _remove(transaction: WriteTransaction, key: dict[str, int]) -> None:
    transaction.execute(_DELETE, key)


def _downsample(transaction: WriteTransaction, key: dict[str, int]) -> None:
    data = transaction.execute(_TO_DOWNSAMPLE, key).scalar_one_or_none()
    if data is None:
        return  # another process was faster, or its evaluation was deleted
    try:
        points = usage_series.downsampled(usage_series.unpack(data, downsampled=False))
    except ValueError:
        _LOG.error("the usage samples of evaluation number %d are damaged; they are removed", key["seq"])
        transaction.execute(_DELETE, key)
        return
    transaction.execute(_DOWNSAMPLE, key | {"new_data": usage_series.pack_points(points)})


def _listed(connection: Connection, record: Record, attempt: int) -> answers.ListUsageSamplesResponse:
    answer = answers.ListUsageSamplesResponse(attempt=attempt or record.attempt)
    row = _OF_ATTEMPT.first(connection, {"seq": record.seq, "number": answer.attempt})
    if row is not None:
        points = usage_series.unpack(row[2], downsampled=bool(row[1]))
        answer.points.extend(_message(point) for point in points)
    answer.reason = _what_is_missing(connection, record, answer.attempt, 0 if row is None else row[0])
    if answer.points:
        answer.observation = pb.OBSERVATION_PARTIAL if answer.reason else pb.OBSERVATION_OBSERVED
    else:
        answer.observation = pb.OBSERVATION_NOT_OBSERVED if answer.reason else pb.OBSERVATION_OBSERVED
    return answer


def _what_is_missing(connection: Connection, record: Record, attempt: int, stored: int) -> str:
    """Why the stored samples of an attempt are not all of it; empty when they are."""
    if not 1 <= attempt <= record.attempt:
        return f"there was no attempt {attempt}" if attempt else "nothing was started yet"
    if attempt == record.attempt and record.state in HELD:
        return "" if stored else "nothing was sampled yet"
    row = _RESULT.first(connection, {"seq": record.seq}) if attempt == record.attempt else None
    end = pb.Evaluation() if row is None else pb.Evaluation.FromString(row[0])
    if not end.HasField("usage"):
        return "the attempt was lost, and with it how many samples there were"
    if not end.usage.HasField("samples"):
        return f"a sandbox of the engine {record.engine} could not be sampled"
    if stored == end.usage.samples:
        return ""
    return f"{stored} of {end.usage.samples} samples are kept"


def _latest(record: Record) -> int:
    limits = pb.Limits.FromString(record.limits)
    if not limits.HasField("wall_time"):
        return _MAX_SECONDS * 1_000_000
    return limits.wall_time.ToMicroseconds() + micros(_START_ALLOWANCE)


def _is_bounded(sample: UsageSample) -> bool:
    return (
        _is_time(sample.since_start, _MAX_SECONDS)
        and _is_time(sample.cpu_time, _MAX_SECONDS * _MAX_CPUS)
        and 0 <= sample.memory_bytes <= _MAX_BYTES
        and 0 <= sample.tasks <= _MAX_TASKS
    )


def _is_time(length: Duration, most: int) -> bool:
    return 0 <= length.seconds <= most and 0 <= length.nanos < 1_000_000_000


def _point(sample: UsageSample) -> Point:
    since_start, cpu = sample.since_start.ToMicroseconds(), sample.cpu_time.ToMicroseconds()
    return Point.of_sample(since_start, cpu, sample.memory_bytes, sample.tasks)


def _message(point: Point) -> UsagePoint:
    return UsagePoint(
        since_start=duration(timedelta(microseconds=point.since_start)),
        cpu_time=duration(timedelta(microseconds=point.cpu)),
        samples=point.samples,
        memory_bytes=point.memory,
        min_memory_bytes=point.min_memory,
        max_memory_bytes=point.max_memory,
        tasks=point.tasks,
        min_tasks=point.min_tasks,
        max_tasks=point.max_tasks,
    )


def _invalid(message: str) -> InvalidArgumentError:
    return InvalidArgumentError("INVALID_FIELD", message)
