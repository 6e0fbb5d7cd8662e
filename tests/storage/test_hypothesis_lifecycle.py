"""Any order of calls, losses, reports that come twice, late or swapped, clocks, restarts: what must hold, holds.

`make test` runs it for some seconds; HYPOTHESIS_PROFILE=chaos for minutes.
"""

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible.storage.v1 import work_service_pb2 as work
from crucible_rpc import signing
from crucible_rpc.errors import FailedPreconditionError, NotFoundError
from crucible_storage.integrity.check import check
from crucible_storage.lifecycle import TERMINAL
from tests.storage import world as w
from tests.storage.world import FENCE, FakeClock, exited, finished, killed, output, report, started, storage

pytestmark = pytest.mark.slow

MEMORY = Path("/dev/shm")  # durability is not what this tests
CHAOS = os.environ.get("HYPOTHESIS_PROFILE") == "chaos"
VERIFIER = signing.Verifier.of(w.RECORDS.public_pem)
EXECUTORS = ("ex-1", "ex-2", "ex-3")
GRACE = w.POLICY.orphan_grace // timedelta(microseconds=1)
TERMINATIONS = (
    exited(0),
    exited(3),
    killed(),
    killed(ex.KILL_CAUSE_PERMIT_EXPIRED),
    ex.RunTermination(sandbox_failed=ex.SandboxFailed(reason="broken")),
    ex.RunTermination(lost=ex.Lost(detail="gone")),
    ex.RunTermination(limit_exceeded=pb.LimitExceeded(limit=pb.LIMIT_WALL_TIME)),
)
LENGTHS = st.sampled_from([timedelta(seconds=number) for number in (0.7, 5, 11, 14.9)] + [FENCE, timedelta(minutes=2)])
STEPS = st.sampled_from([timedelta(seconds=number) for number in (-86_400, -20, -3, 3, 20, 3600)])
NUMBERS = st.integers(0, 50)


class Lifecycle(RuleBasedStateMachine):
    """Holds, outside storage and by a clock that nobody sets, when a run may last be alive.

    An executor ends a run `orphan_grace` after the last renewal. Storage's wall clock steps at any moment.
    """

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.clock = FakeClock()
        self.open()
        self.names = []
        self.assignments = []  # (executor, assignment)
        self.alive_until = {}  # run id to the last steady time at which its sandbox may live
        self.delayed = []  # (executor, report) that did not arrive yet
        self.accepted = []  # (executor, report) that storage took
        self.ended = {}  # name to the evaluation as it was when first seen terminal
        self.deleted = set()
        self.versions = {}

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def open(self):
        self.stack = AsyncExitStack()
        folder = Path(self.folder.name) / "state"
        self.world = self.run(self.stack.enter_async_context(storage(folder, clock=self.clock)))
        self.sweeper = self.world.sweeper
        for name in EXECUTORS:
            self.run(self.world.register(executor_id=name))

    def teardown(self):
        try:
            self.check_the_log()
            self.run(self.stack.aclose())
            self.check_the_database()
        finally:
            self.loop.close()
            self.folder.cleanup()

    def steady(self):
        return int(self.clock.monotonic() * 1e6)

    def pick(self, number):
        return self.assignments[number % len(self.assignments)]

    def send(self, executor, one, late):
        """A report that arrives now, or is on its way for a while; answers whether it was taken."""
        if late:
            self.delayed.append((executor, one))
            return False
        before = self.find(one.lease.run_id)
        refused = self.run(self.world.report(one, executor_id=executor))
        if refused:
            return False
        self.accepted.append((executor, one))
        if before is not None:
            self.fence(one, executor, before)
        return True

    def fence(self, one, executor, before):
        """A report that changed something was of the lease that was held."""
        after = self.find(one.lease.run_id)
        if after is not None and after.version != before.version:
            run_id = f"{before.name.removeprefix('evaluations/')}.{before.attempt}"
            assert one.lease.run_id == run_id, "a report of an earlier attempt changed the evaluation"
            assert one.lease.epoch == max(
                held.epoch for _, held in self.assignments if held.evaluation == before.name
            ), "a stale epoch changed the evaluation"
            assert int(before.state) not in TERMINAL

    def find(self, run_id):
        name = f"evaluations/{run_id.partition('.')[0]}"
        return None if name in self.deleted else self.run(self.world.get(name))

    @initialize()
    def two_of_three_are_leased(self):
        for _ in range(3):
            self.create()
        self.lease("ex-1", 2)

    @rule()
    def create(self):
        if len(self.names) < 5:
            number = len(self.names)
            made = self.run(self.world.create(request_id=f"r-{number}", labels={"number": str(number)}))
            assert self.run(self.world.create(request_id=f"r-{number}", labels={"number": str(number)})) == made
            self.names.append(made.name)

    @rule(executor=st.sampled_from(EXECUTORS), count=st.integers(1, 3))
    def lease(self, executor, count):
        for assignment in self.run(self.world.lease(count, executor_id=executor)):
            living = [
                run
                for run, until in self.alive_until.items()
                if run.startswith(assignment.run_id[:36]) and until > self.steady()
            ]
            assert living == [], f"{assignment.run_id} was leased while {living} may be alive"
            earlier = [one for _, one in self.assignments if one.evaluation == assignment.evaluation]
            assert all(one.epoch < assignment.epoch for one in earlier)
            self.assignments.append((executor, assignment))
            self.alive_until[assignment.run_id] = self.steady() + GRACE

    @precondition(lambda self: self.assignments)
    @rule(number=NUMBERS)
    def renew(self, number):
        executor, assignment = self.pick(number)
        lost, _ = self.run(self.world.renew(assignment, executor_id=executor))
        if not lost:
            self.alive_until[assignment.run_id] = self.steady() + GRACE

    @precondition(lambda self: self.assignments)
    @rule(number=NUMBERS, offset=st.integers(0, 3), late=st.booleans())
    def run_goes_on(self, number, offset, late):
        executor, assignment = self.pick(number)
        self.send(executor, report(assignment, started(), output(b"abc"[offset:], offset)), late)

    @precondition(lambda self: self.assignments)
    @rule(number=NUMBERS, termination=st.sampled_from(TERMINATIONS), late=st.booleans())
    def run_ends(self, number, termination, late):
        executor, assignment = self.pick(number)
        evaluation = self.find(assignment.run_id)
        kept = 0 if evaluation is None else evaluation.stdout.bytes_kept
        end = finished(assignment, termination, stdout=b"abc"[:kept], executor_id=executor)
        self.alive_until[assignment.run_id] = 0  # an honest executor signs when the sandbox is gone
        self.send(executor, report(assignment, end), late)

    @precondition(lambda self: self.assignments)
    @rule(number=NUMBERS, permanent=st.booleans(), failed_attempt=st.booleans())
    def run_is_refused(self, number, permanent, failed_attempt):
        executor, assignment = self.pick(number)
        refused = work.Refused(reason="no", permanent=permanent, failed_attempt=failed_attempt)
        taken = self.send(executor, report(assignment, refused=refused), late=False)
        if taken and assignment == self.latest(assignment):
            self.alive_until[assignment.run_id] = 0

    @precondition(lambda self: self.assignments)
    @rule(number=NUMBERS, gone=st.booleans(), late=st.booleans())
    def run_is_lost(self, number, gone, late):
        executor, assignment = self.pick(number)
        if gone:
            self.alive_until[assignment.run_id] = 0
        lost = work.RunLost(reason="lost", confirmed_gone=gone)
        self.send(executor, report(assignment, lost=lost), late)

    @precondition(lambda self: self.delayed)
    @rule(number=NUMBERS)
    def a_delayed_report_arrives_in_any_order(self, number):
        self.send(*self.delayed.pop(number % len(self.delayed)), late=False)

    @precondition(lambda self: self.accepted)
    @rule(number=NUMBERS)
    def a_report_arrives_again(self, number):
        executor, one = self.accepted[number % len(self.accepted)]
        before = self.find(one.lease.run_id)
        self.send(executor, one, late=False)
        after = self.find(one.lease.run_id)
        if one.WhichOneof("outcome") is None and before is not None:
            assert after == before, "a report that came twice changed something twice"

    @rule(liar=st.sampled_from(EXECUTORS), number=NUMBERS)
    @precondition(lambda self: self.assignments)
    def another_executor_writes_under_a_lease_that_is_not_its_own(self, liar, number):
        executor, assignment = self.pick(number)
        if liar != executor:
            assert self.run(self.world.report(report(assignment, started()), executor_id=liar)) != []

    @precondition(lambda self: self.names)
    @rule(number=NUMBERS)
    def cancel(self, number):
        name = self.names[number % len(self.names)]
        if name not in self.deleted:
            self.run(self.world.cancel(self.run(self.world.get(name))))

    @precondition(lambda self: self.names)
    @rule(number=NUMBERS)
    def delete(self, number):
        name = self.names[number % len(self.names)]
        ended = name in self.deleted or int(self.run(self.world.get(name)).state) in TERMINAL
        deletion = self.world.service.deletion.delete(name.removeprefix("evaluations/"), "key", "")
        if ended:
            self.run(deletion)
            self.deleted.add(name)
            with pytest.raises(NotFoundError):
                self.run(self.world.get(name))
        else:
            with pytest.raises(FailedPreconditionError):
                self.run(deletion)

    @rule(length=LENGTHS)
    def time_passes(self, length):
        self.clock.advance(length)
        self.run(self.sweeper.look())

    @rule(step=STEPS)
    def the_wall_clock_is_set(self, step):
        self.clock.wall += step // timedelta(microseconds=1)

    @rule(step=STEPS)
    def nobody_is_heard_of_for_a_fence(self, step):
        """No lease is kept for ever, however the clock is set meanwhile."""
        self.run(self.sweeper.look())
        self.the_wall_clock_is_set(step)
        self.clock.advance(FENCE + timedelta(milliseconds=1))
        self.run(self.sweeper.look())
        held = [one for name in EXECUTORS for one in self.run(self.world.renewable(name))]
        assert held == []

    @rule()
    def storage_starts_again(self):
        self.run(self.stack.aclose())
        self.open()

    @rule(length=LENGTHS, executor=st.sampled_from(EXECUTORS))
    def time_passes_and_all_that_may_is_leased_after_the_backoff(self, length, executor):
        self.time_passes(length)
        self.clock.advance(timedelta(seconds=1.3))
        self.lease(executor, 4)

    def latest(self, assignment):
        return [one for _, one in self.assignments if one.evaluation == assignment.evaluation][-1]

    @invariant()
    def what_ended_never_changes_and_attempts_are_bounded(self):
        for name in set(self.names) - self.deleted:
            evaluation = self.run(self.world.get(name))
            assert evaluation.version >= self.versions.get(name, 0)
            self.versions[name] = evaluation.version
            assert evaluation.HasField("termination") == (int(evaluation.state) in TERMINAL)
            if name in self.ended:
                assert evaluation == self.ended[name]
            elif int(evaluation.state) in TERMINAL:
                self.ended[name] = evaluation
            assert evaluation.attempt <= w.POLICY.max_attempts
            failed = [one.attempt for one in evaluation.failed_attempts]
            assert failed == list(range(1, len(failed) + 1)), "a further attempt without a recorded failure"
            assert evaluation.attempt - 1 <= len(failed) <= evaluation.attempt

    @invariant()
    def at_most_one_lease_of_an_evaluation_is_held(self):
        held = [one for name in EXECUTORS for one in self.run(self.world.renewable(name))]
        assert len({run_id[:36] for run_id in held}) == len(held)

    def check_the_log(self):
        """The log has no gap, each attempt started at most once, and it tells the same as the evaluations."""
        events = self.run(self.world.events())
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        for name in set(self.names) - self.deleted:
            evaluation = self.run(self.world.get(name))
            own = [event for event in events if event.evaluation == name]
            told = [event.state_changed for event in own if event.WhichOneof("kind") == "state_changed"]
            assert told[-1].state == evaluation.state
            assert told[-1].termination == evaluation.termination
            assert [one.version for one in told] == sorted({one.version for one in told})
            assert sum(int(one.state) in TERMINAL for one in told) <= 1
            starts = [event.attempt for event in own if event.state_changed.state == pb.EVALUATION_STATE_RUNNING]
            assert len(starts) == len(set(starts)), "an attempt was started twice"

    def check_the_database(self):
        """The fold of the events is the row, the counts are right, the signed records verify."""
        backend = w.DATABASES.backend(Path(self.folder.name) / "state", self.clock)
        with backend.reader.connect() as connection, connection.begin():
            verdict = check(connection, VERIFIER)
        backend.dispose()
        assert verdict.findings.shown == []
        assert verdict.progress.evaluations == len(self.names)
        assert verdict.progress.deleted == len(self.deleted)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=1500 if CHAOS else 20,
    stateful_step_count=60 if CHAOS else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
if CHAOS:
    TestLifecycle = pytest.mark.timeout(1800)(TestLifecycle)


@pytest.mark.postgresql
@pytest.mark.usefixtures("on_postgresql")
class TestLifecycleOnPostgreSql(Lifecycle.TestCase):
    """Fewer, for each needs a database of its own: what differs is below the rules."""

    settings = settings(max_examples=6, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
