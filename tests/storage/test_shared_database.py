"""Two storage services on one PostgreSQL database, as two processes are: nothing is doubled, lost or overlooked."""

import asyncio
import threading
from datetime import timedelta

import pytest
from sqlalchemy import text

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.selftest.v1 import inspection_pb2 as inspection
from crucible_rpc.errors import FailedPreconditionError
from crucible_storage import announcements, database, group_commit, inspections, state, store
from crucible_storage.clock import DatabaseClock, SystemClock
from crucible_storage.databases import choose
from crucible_storage.transaction import Notices, Stop
from tests.storage.world import finished, output, report, started, storage, told

pytestmark = pytest.mark.database("postgresql")
LIMIT = 20.0


@pytest.fixture
async def pair(tmp_path, databases, clock):
    databases.share(tmp_path / "a", tmp_path / "b")
    async with storage(tmp_path / "a", clock=clock) as first, storage(tmp_path / "b", clock=clock) as second:
        yield first, second


@pytest.fixture
def never_looks(monkeypatch):
    """Without its regular look a process knows only what it is told."""
    monkeypatch.setattr(database, "POLL_SECONDS", 3600.0)


async def reading(world, query):
    return await world.service.database.read(lambda connection: connection.execute(text(query)).one())


async def test_positions_have_no_gap_at_any_moment_and_both_tails_miss_nothing(pair):
    await pair[0].register()
    for _ in range(6):
        await pair[0].create()
    assignments = await pair[0].lease(6)
    total = 12 + 2 * 10 * 8 + 6 + 6 * 15
    tails = [[], []]

    async def tail(world, seen):
        async for batch in world.service.events.tail(0):
            seen.extend(event.position for event in batch.events)
            if len(seen) >= total:
                return

    async def creates(world):
        for _ in range(8):
            await world.create()

    async def writes_output(number, assignment):
        for offset in range(15):
            assert not await pair[(number + offset) % 2].report(report(assignment, output(b"x", offset)))

    async def looks():
        while True:
            last, count, head = await reading(
                pair[1], "SELECT coalesce(max(position), 0), count(*), (SELECT position FROM log_head) FROM event"
            )
            assert last == count == head
            await asyncio.sleep(0)

    following = [asyncio.create_task(tail(world, seen)) for world, seen in zip(pair, tails, strict=True)]
    looking = asyncio.create_task(looks())
    creating = [creates(world) for world in pair for _ in range(10)]
    await asyncio.gather(*creating, *(writes_output(*one) for one in enumerate(assignments)))
    await asyncio.wait_for(asyncio.gather(*following), LIMIT)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert tails == [list(range(1, total + 1))] * 2


async def test_output_is_whole_when_reports_of_one_run_share_a_group(pair):
    """Output of a group has no row before the group's end, but what comes after it in the group has to see it."""
    assignment = await pair[0].running()
    reports = [report(assignment, output(bytes([number]), number)) for number in range(20)]
    stdout = bytes(range(20))
    results = await asyncio.gather(
        *(pair[0].report(one) for one in reports),
        pair[0].report(report(assignment, finished(assignment, stdout=stdout))),
    )
    assert results == [[]] * 21
    evaluation = await pair[1].get(assignment)
    assert (evaluation.state, evaluation.stdout.preview) == (pb.EVALUATION_STATE_SUCCEEDED, stdout)


async def test_each_evaluation_is_leased_once(pair):
    for number, world in enumerate(pair):
        await world.register(executor_id=f"ex-{number}")
    created = {(await pair[number % 2].create(f"t{number % 3}")).name for number in range(60)}

    async def leases(number):
        given = []
        while len(given) < 60:
            more = await pair[number % 2].lease(3, executor_id=f"ex-{number % 2}")
            given += more
            if not more and not (await reading(pair[0], "SELECT count(*) FROM evaluation WHERE state = 1"))[0]:
                return given
        return given

    given = [one.evaluation for part in await asyncio.gather(*(leases(n) for n in range(6))) for one in part]
    assert sorted(given) == sorted(created)


async def test_what_one_does_wakes_those_who_wait_at_the_other(tmp_path, databases, clock, never_looks):
    databases.share(tmp_path / "a", tmp_path / "b")
    async with storage(tmp_path / "a", clock=clock) as first, storage(tmp_path / "b", clock=clock) as second:
        await second.register()
        leasing = asyncio.create_task(second.lease(wait=30.0))
        stops = second.service.leases.stops("ex-1")
        await asyncio.gather(present(first), present(second))  # both listen
        evaluation = await first.create()
        [assignment] = await asyncio.wait_for(leasing, 4)  # who waits looks by himself after 5 s
        assert assignment.evaluation == evaluation.name
        stopping = asyncio.create_task(anext(stops))
        waiting = asyncio.create_task(first.service.evaluations.wait("t", evaluation.name[12:], 30))
        tail = first.service.events.tail(-1)
        await anext(tail)
        tailing = asyncio.create_task(anext(tail))
        await asyncio.sleep(0.2)
        await first.cancel(evaluation)
        [stop] = await asyncio.wait_for(stopping, 4)
        assert stop.run_id == assignment.run_id
        assert (await asyncio.wait_for(tailing, 4)).events[0].WhichOneof("kind") == "cancel_requested"
        await second.report(report(assignment, started(), finished(assignment)))
        assert (await asyncio.wait_for(waiting, 4)).state == pb.EVALUATION_STATE_SUCCEEDED
        await tail.aclose()
        await stops.aclose()


async def test_without_announcements_a_look_every_second_finds_what_the_other_did(pair, monkeypatch):
    monkeypatch.setattr(announcements, "encoded", lambda transaction, process: "")
    await pair[1].register()
    leasing = asyncio.create_task(pair[1].lease(wait=30.0))
    tail = pair[1].service.events.tail(-1)
    await anext(tail)
    tailing = asyncio.create_task(anext(tail))
    await asyncio.sleep(0)
    evaluation = await pair[0].create()
    [assignment] = await asyncio.wait_for(leasing, LIMIT)
    assert assignment.evaluation == evaluation.name
    assert (await asyncio.wait_for(tailing, LIMIT)).events
    await tail.aclose()


async def test_only_the_latest_start_of_an_executor_leases_wherever_it_registered(pair):
    await pair[0].register()
    await pair[0].create()
    await pair[1].register(boot_id="boot-2")
    with pytest.raises(FailedPreconditionError, match="a later one is"):
        await pair[0].lease()
    assert len(await pair[0].lease(boot_id="boot-2")) == 1


async def test_what_an_executor_offers_is_known_to_both(pair):
    await pair[0].register(runtimes=("python",))
    await pair[1].register(runtimes=("bash",))
    await pair[0].create(runtime="python")
    assert await pair[0].lease() == []
    await pair[0].create(runtime="bash")
    assert len(await pair[0].lease()) == 1


async def test_an_executor_that_waits_at_one_is_live_for_the_other(pair, clock):
    await pair[0].register()
    clock.advance(timedelta(minutes=5))
    assert [one.live for one in await pair[1].service.executors.list()] == [False]
    waiting = asyncio.create_task(pair[0].lease(wait=30.0))
    await asyncio.sleep(0)
    await pair[0].service.executors.store_all_heard()
    assert [one.live for one in await pair[1].service.executors.list()] == [True]
    waiting.cancel()


async def test_a_lease_is_renewed_and_a_run_reported_at_either(pair):
    assignment = await pair[0].running()
    assert await pair[1].renew(assignment) == ([], [])
    assert await pair[1].report(report(assignment, output(b"x"), finished(assignment, stdout=b"x"))) == []
    assert await pair[0].renew(assignment) == ([assignment.run_id], [])


async def test_both_sweep_and_an_expired_lease_ends_once(pair, clock):
    [assignment] = [await pair[0].running()]
    await pair[1].sweeper.observe()
    clock.advance(pair[0].policy.fence)
    assert sum(await asyncio.gather(*(world.sweep() for world in pair for _ in range(3)))) == 1
    evaluation = await pair[0].get(assignment)
    assert (evaluation.state, len(evaluation.failed_attempts)) == (pb.EVALUATION_STATE_QUEUED, 1)


async def test_the_same_request_at_both_makes_one_evaluation(pair):
    made = await asyncio.gather(*(pair[number % 2].create(request_id="same") for number in range(20)))
    assert len({one.name for one in made}) == 1
    assert len(await pair[0].events()) == 1


async def test_the_queue_is_counted_over_both(pair):
    await pair[0].create()
    await pair[1].create()
    seen = await pair[0].service.database.write(lambda transaction: transaction.queued)
    assert seen == 2


async def test_groups_that_lock_each_other_out_are_both_stored(pair):
    """Each locks one evaluation, then wants the other's: the server ends one, which is run again."""
    names = [(await pair[0].create()).name[12:] for _ in range(2)]
    both = threading.Barrier(2)
    tries = []

    def crossing(first, second):
        def run(transaction):
            tries.append(first)
            store.load(transaction.connection, first, to_change=True)
            if len(tries) <= 2:
                both.wait(LIMIT)
            record = store.load(transaction.connection, second, to_change=True)
            transaction.append_event(record.tenant, record.seq, 0, 0, b"")

        return run

    one = pair[0].service.database.write(crossing(*names))
    other = pair[1].service.database.write(crossing(*reversed(names)))
    await asyncio.wait_for(asyncio.gather(one, other), LIMIT)
    assert len(tries) == 3
    assert [event.position for event in await pair[0].events()] == [1, 2, 3, 4]


async def test_an_inspection_outlives_the_start_of_another_process_but_not_its_own(tmp_path, databases, clock):
    folders = [tmp_path / name for name in "abc"]
    databases.share(*folders)
    wanted = inspections.Wanted("t", "c", inspection.INSPECTION_KIND_SELF_TEST, "", ())
    states = "SELECT state, reason FROM inspection"
    async with storage(folders[0], clock=clock) as first:
        await first.register()
        following = first.service.inspections.run(wanted)
        coming = asyncio.create_task(anext(following))
        await asyncio.wait_for(present(first), LIMIT)
        async with storage(folders[1], clock=clock) as second:
            [given] = await asyncio.wait_for(second.service.inspections.lease("ex-1", told(), 10.0), LIMIT)
            assert not await second.service.inspections.report("ex-1", given.inspection_id, [])
            assert tuple(await reading(second, states)) == (inspections.RUNNING, "")
            coming.cancel()
            await asyncio.wait([coming])
            await reading(second, states)

    def left_behind(transaction):
        transaction.execute(text(f"UPDATE inspection SET state = {inspections.RUNNING}, reason = ''"))

    async with storage(folders[1], clock=clock) as second:
        await second.service.database.write(left_behind)
    async with storage(folders[2], clock=clock) as third:
        assert tuple(await reading(third, states)) == (inspections.LOST, "storage was started anew")


async def present(world):
    """Waits until a process has shown the others that it is there."""
    number = world.service.database.process
    locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {number}"
    while not (await reading(world, locks))[0]:  # noqa: ASYNC110  # only the server knows
        await asyncio.sleep(0.05)


def test_processes_that_start_together_make_the_schema_once(tmp_path, databases):
    databases.url(tmp_path, empty=True)
    backends = [databases.backend(tmp_path) for _ in range(3)]
    failures = []

    def prepares(backend):
        try:
            state.prepare(backend)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=prepares, args=(backend,)) for backend in backends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with backends[0].reader.connect() as connection:
        assert connection.execute(text("SELECT position FROM log_head")).scalars().all() == [0]
    for backend in backends:
        backend.dispose()


async def test_the_time_is_the_servers(tmp_path, databases, monkeypatch):
    clock = DatabaseClock()
    clock.told(0)  # as far off as can be
    backend = choose(databases.url(tmp_path), tmp_path, clock=clock)
    group_commit.GroupCommit(backend, 1, lambda: False).load()
    assert abs(clock.now() - SystemClock().now()) < 5_000_000
    backend.dispose()


def test_an_announcement_is_bounded_and_what_makes_no_sense_is_passed_over():
    class Told:
        queued_change = 3
        notices = Notices(work=True, finished=["x" * 36] * 10_000, stops=[Stop("e", "r", 1, 2)], appended=7)

    text_ = announcements.encoded(Told, 5)
    assert len(text_) <= announcements.MAX_BYTES
    heard = announcements.decoded(text_)
    assert (heard.process, heard.queued_change, heard.complete, heard.notices.work) == (5, 3, False, True)
    Told.notices.finished = ["x"]
    heard = announcements.decoded(announcements.encoded(Told, 5))
    assert (heard.complete, heard.notices.finished, heard.notices.stops) == (True, ["x"], [Stop("e", "r", 1, 2)])
    for nonsense in ("", "{}", "[]", "1", '{"process": "x"}', "\x00"):
        assert announcements.decoded(nonsense) is None
