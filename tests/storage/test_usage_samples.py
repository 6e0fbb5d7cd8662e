"""Usage samples: nothing twice, nothing missing, in bounds, their tenant's alone; old ones downsampled and removed."""

from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.evaluation.v1.usage_samples_pb2 import UsageSample, UsageSamples
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc.errors import InvalidArgumentError, NotFoundError
from crucible_storage import usage_samples as bounds
from crucible_storage.clock import duration
from crucible_storage.deletion import Deletion, Keep
from crucible_storage.integrity.findings import Findings
from crucible_storage.integrity.tables import check
from crucible_storage.maintenance import usage
from crucible_storage.prepared import Prepared
from crucible_storage.retention import Retention
from crucible_storage.usage_series import MAX_BUCKETS
from tests.storage.world import exited, finished, output, report, started

pytestmark = pytest.mark.slow

MIB = 1 << 20
DAY = timedelta(days=1)


def sample(number, *, memory=None, tasks=12, **changed):
    """The one that an honest executor takes after `number` tenths of a second."""
    at = timedelta(milliseconds=100 * number)
    made = UsageSample(memory_bytes=number * MIB if memory is None else memory, tasks=tasks)
    made.since_start.CopyFrom(changed.get("since_start", duration(at)))
    made.cpu_time.CopyFrom(changed.get("cpu_time", duration(at / 2)))
    return made


def samples(first, last, **changed):
    made = [sample(number, **changed) for number in range(first, last + 1)]
    return ex.RunEvent(usage_samples=UsageSamples(first=first, samples=made))


async def stored(world, assignment, attempt=0, tenant="t"):
    name = assignment.evaluation.removeprefix("evaluations/")
    return await world.service.samples.list(tenant, name, attempt)


def numbers(answer):
    """Of the tenths of a second at which the points were taken."""
    return [round(point.since_start.ToTimedelta() / timedelta(milliseconds=100)) for point in answer.points]


async def ended(world, count, *, taken=None, tenant="t"):
    """An evaluation of which so many samples are stored, and its executor took `taken`."""
    assignment = await world.running(tenant=tenant)
    used = pb.Usage(samples=count if taken is None else taken)
    for first in range(1, count + 1, 200):
        assert await world.report(report(assignment, samples(first, min(count, first + 199)))) == []
    assert await world.report(report(assignment, finished(assignment, exited(0), usage=used))) == []
    return assignment


async def age(world):
    """What the loop does once a minute."""
    service = world.service
    await Retention(Deletion(service.database, world.clock), service.samples, Keep(), world.clock).look()


async def findings(world):
    found = Findings()
    await world.service.database.read(lambda connection: check(connection, found))
    return found.shown


async def test_samples_are_no_events_and_change_no_version(world):
    assignment = await world.running()
    before, log = await world.get(assignment), await world.events()
    assert await world.report(report(assignment, samples(1, 3))) == []
    assert await world.get(assignment) == before
    assert await world.events() == log
    answer = await stored(world, assignment)
    assert (answer.attempt, answer.observation, answer.reason) == (1, pb.OBSERVATION_OBSERVED, "")
    first = answer.points[0]
    assert (first.samples, first.memory_bytes, first.min_memory_bytes, first.max_memory_bytes) == (1, MIB, MIB, MIB)
    assert (first.tasks, first.min_tasks, first.max_tasks) == (12, 12, 12)
    assert [point.cpu_time.ToMilliseconds() for point in answer.points] == [50, 100, 150]


async def test_samples_that_are_stored_already_are_ignored_and_a_gap_is_refused(world):
    assignment = await world.running()
    for one in (samples(1, 2), samples(1, 2), samples(2, 4), samples(3, 3), samples(1, 5)):
        assert await world.report(report(assignment, one)) == []
    assert numbers(await stored(world, assignment)) == [1, 2, 3, 4, 5]
    [rejected] = await world.report(report(assignment, samples(7, 8)))
    assert (rejected.reason, "5 are stored" in rejected.message) == ("INVALID_FIELD", True)
    assert numbers(await stored(world, assignment)) == [1, 2, 3, 4, 5]


async def test_all_of_a_run_in_one_report(world):
    await world.create()
    await world.register()
    assignment = await world.lease_one()
    end = finished(assignment, exited(0), usage=pb.Usage(samples=300), stdout=b"x")
    assert await world.report(report(assignment, samples(1, 200), samples(201, 300), output(b"x"), end)) == []
    answer = await stored(world, assignment)
    assert (answer.observation, numbers(answer)) == (pb.OBSERVATION_OBSERVED, list(range(1, 301)))
    assert (await world.get(assignment)).usage.samples == 300
    assert await findings(world) == []


@pytest.mark.parametrize(
    ("taken", "observation", "reason"),
    [
        (0, pb.OBSERVATION_OBSERVED, ""),
        (None, pb.OBSERVATION_NOT_OBSERVED, "a sandbox of the engine gvisor could not be sampled"),
        (7, pb.OBSERVATION_NOT_OBSERVED, "0 of 7 samples are kept"),
    ],
)
async def test_no_points_never_look_like_nothing_used(world, taken, observation, reason):
    assignment = await world.running()
    running = await stored(world, assignment)
    assert (running.observation, running.reason) == (pb.OBSERVATION_NOT_OBSERVED, "nothing was sampled yet")
    await world.report(report(assignment, finished(assignment, exited(0), usage=pb.Usage(samples=taken))))
    answer = await stored(world, assignment)
    assert (answer.observation, answer.reason, list(answer.points)) == (observation, reason, [])


async def test_what_the_signed_record_counts_and_is_not_there_is_told(world):
    answer = await stored(world, await ended(world, 5, taken=9))
    assert (answer.observation, answer.reason) == (pb.OBSERVATION_PARTIAL, "5 of 9 samples are kept")
    assert len(answer.points) == 5


async def test_each_attempt_has_its_own(world):
    assignment = await world.running()
    await world.report(report(assignment, samples(1, 2)))
    broken = ex.RunTermination(sandbox_failed=ex.SandboxFailed(reason="broken"))
    await world.report(report(assignment, finished(assignment, broken)))
    world.clock.advance(timedelta(seconds=5))
    second = await world.lease_one()
    assert await world.report(report(second, started(), samples(1, 3))) == []
    assert numbers(await stored(world, second)) == numbers(await stored(world, second, 2)) == [1, 2, 3]
    first = await stored(world, second, 1)
    assert (first.observation, numbers(first)) == (pb.OBSERVATION_PARTIAL, [1, 2])
    assert "lost" in first.reason
    assert (await stored(world, second, 3)).reason == "there was no attempt 3"


async def test_nobody_else_sees_them(world):
    assignment = await ended(world, 2)
    with pytest.raises(NotFoundError):
        await stored(world, assignment, tenant="other")
    queued = await world.create()
    answer = await world.service.samples.list("t", queued.name.removeprefix("evaluations/"), 0)
    assert (answer.attempt, answer.observation) == (0, pb.OBSERVATION_NOT_OBSERVED)
    assert answer.reason == "nothing was started yet"


def of(*given, first=1):
    return ex.RunEvent(usage_samples=UsageSamples(first=first, samples=given))


REFUSED = [
    of(), of(*[sample(1)] * (bounds.MAX_TOGETHER + 1)),
    of(sample(1), first=0), of(sample(1), first=-1), of(sample(1), first=1 << 31 - 1),
    of(sample(1), sample(2), first=bounds.MAX_SAMPLES),
    of(sample(1, memory=-1)), of(sample(1, memory=(1 << 63) - 1)),
    of(sample(1, tasks=-1)), of(sample(1, tasks=1 << 30)),
    of(sample(1, since_start=Duration(seconds=-1))), of(sample(1, since_start=Duration(seconds=1 << 60))),
    of(sample(1, since_start=Duration(nanos=1_000_000_000))),
    of(sample(1, cpu_time=Duration(seconds=-1))), of(sample(1, cpu_time=Duration(seconds=1 << 60))),
    of(sample(2), sample(1)), of(sample(1), sample(1)),
    of(sample(1, cpu_time=Duration(seconds=2)), sample(2, cpu_time=Duration(seconds=1))),
    of(sample(1, since_start=Duration(seconds=30 + 121))),
]  # fmt: skip


async def test_samples_out_of_bounds_are_refused_by_themselves(world):
    assignment = await world.running()
    for told in REFUSED:
        [rejected] = await world.report(report(assignment, told))
        assert rejected.reason == "INVALID_FIELD", told
    assert await world.report(report(assignment, samples(1, 1))) == []
    for later in (of(sample(1), first=2), of(sample(2, cpu_time=Duration()), first=2)):  # not after what is stored
        [rejected] = await world.report(report(assignment, later))
        assert rejected.reason == "INVALID_FIELD"
    assert numbers(await stored(world, assignment)) == [1]


async def test_an_attempt_has_a_bounded_series_however_long_its_executor_talks(world):
    assignment = await world.running()
    close = [sample(n, since_start=Duration(nanos=n * 1000), cpu_time=Duration()) for n in range(1, 257)]
    for turn in range(8):
        told = [sample(1, since_start=Duration(seconds=turn, nanos=one.since_start.nanos)) for one in close]
        assert await world.report(report(assignment, of(*told, first=256 * turn + 1))) == []
    [rejected] = await world.report(report(assignment, of(sample(200), first=2049)))
    assert rejected.reason == "INVALID_FIELD"
    assert len((await stored(world, assignment)).points) == 2048
    size = text("SELECT sum(length(data)) FROM usage_sample")
    read = world.service.database.read
    assert await read(lambda connection: connection.execute(size).scalar_one()) == 28 * 2048


async def test_older_series_are_downsampled_then_removed(world):
    kept, young = await ended(world, 1000), None
    world.clock.advance(DAY - timedelta(minutes=1))
    young = await ended(world, 3)
    running = await world.running()
    await world.report(report(running, samples(1, 3)))
    world.clock.advance(timedelta(minutes=2))
    whole = await stored(world, kept)
    await age(world)
    answer = await stored(world, kept)
    assert answer.observation == pb.OBSERVATION_OBSERVED
    assert 40 <= len(answer.points) <= MAX_BUCKETS
    assert sum(point.samples for point in answer.points) == len(whole.points) == 1000
    assert answer.points[-1].since_start == whole.points[-1].since_start
    at = 0
    for point in answer.points:
        bucket = whole.points[at : at + point.samples]
        at += point.samples
        memory = [one.memory_bytes for one in bucket]
        assert (point.since_start, point.cpu_time) == (bucket[-1].since_start, bucket[-1].cpu_time)
        assert (point.min_memory_bytes, point.max_memory_bytes) == (min(memory), max(memory))
        assert point.memory_bytes == sum(memory) // len(memory)
        assert point.since_start.ToTimedelta() - bucket[0].since_start.ToTimedelta() < timedelta(seconds=100 / 60)
    assert numbers(await stored(world, young)) == [1, 2, 3]
    await age(world)  # once is enough
    assert await stored(world, kept) == answer
    assert await findings(world) == []
    world.clock.advance(30 * DAY)
    await age(world)
    gone = await stored(world, kept)
    assert (gone.observation, gone.reason) == (pb.OBSERVATION_NOT_OBSERVED, "0 of 1000 samples are kept")
    assert list(gone.points) == []
    assert numbers(await stored(world, running)) == [1, 2, 3]  # it still runs: nothing is taken from it
    assert await world.report(report(running, samples(4, 4))) == []


async def test_ageing_goes_in_small_transactions(world, monkeypatch):
    for _ in range(5):
        await ended(world, 2)
    world.clock.advance(2 * DAY)
    rows = text("SELECT count(*) FROM usage_sample WHERE downsampled = 1")
    done = []
    monkeypatch.setattr(bounds, "_AGED_WHOLE", bounds._AGED_WHOLE.limit(2))
    while some := await world.service.samples.age():
        read = world.service.database.read
        done.append((some, await read(lambda connection: connection.execute(rows).scalar_one())))
    assert done == [(2, 2), (2, 4), (1, 5)]


async def test_they_go_with_their_evaluation(world):
    assignment = await ended(world, 5)
    await world.service.deletion.delete(assignment.evaluation.removeprefix("evaluations/"), "key-9", "")
    with pytest.raises(NotFoundError):
        await stored(world, assignment)
    rows = text("SELECT count(*) FROM usage_sample")
    assert await world.service.database.read(lambda connection: connection.execute(rows).scalar_one()) == 0
    assert await findings(world) == []


async def test_a_short_run_asks_nothing_of_their_table(world, monkeypatch):
    """Of all that its whole life asks of the database; the same run with a sample shows that this would be seen."""
    asked = []

    def noting(way):
        def noted(statement, *on):
            asked.append(str(statement._statement))
            return way(statement, *on)

        return noted

    def executed(connection, cursor, statement, *more):
        asked.append(statement)

    for way in (Prepared._on, Prepared._form):  # by the driver, and by PostgreSQL's wire
        monkeypatch.setattr(Prepared, way.__name__, noting(way))
    event.listen(Engine, "before_cursor_execute", executed)
    try:
        await ended(world, 0)
        short, asked[:] = list(asked), []
        await ended(world, 1)
    finally:
        event.remove(Engine, "before_cursor_execute", executed)
    assert len(short) > 10
    assert not [one for one in short if "usage_sample" in one]
    assert len([one for one in asked if "usage_sample" in one]) == 2  # is there a row, and its insert


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE usage_sample SET samples = 4", "4 are counted, there are 3"),
        ("UPDATE usage_sample SET tenant = 'u'", "are of no attempt"),
        ("UPDATE usage_sample SET attempt = 2", "are of no attempt"),
        ("UPDATE usage_sample SET downsampled = 1", "cannot be read"),
    ],
)
async def test_the_check_names_what_is_damaged(world, damage, said):
    await ended(world, 3)
    await world.service.database.write(lambda transaction: transaction.execute(text(damage)))
    [found] = await findings(world)
    assert said in found


async def test_usage_tells_their_bytes(world):
    await ended(world, 10)
    [tenant] = await world.service.database.read(usage._tenants)
    assert tenant.sample_bytes == 280


def test_bounds_are_checked_before_the_database_is_asked():
    with pytest.raises(InvalidArgumentError):
        bounds.check(UsageSamples())
