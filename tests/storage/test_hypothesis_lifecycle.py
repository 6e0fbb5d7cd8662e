"""Any order of leases, reports, cancels, losses and time: what must always hold, holds."""

import asyncio
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
from crucible_storage.lifecycle import TERMINAL
from tests.storage import world as w
from tests.storage.world import FENCE, exited, finished, killed, output, report, started, storage

MEMORY = Path("/dev/shm")  # durability is not what this tests
EXECUTORS = ("ex-1", "ex-2")
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


class Lifecycle(RuleBasedStateMachine):
    """Holds, outside storage, when a run may last be alive: its executor ends it `orphan_grace` after a renewal."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.world = self.run(self.stack.enter_async_context(storage(Path(self.folder.name) / "state")))
        for name in EXECUTORS:
            self.run(self.world.register(executor_id=name))
        self.names = []
        self.assignments = []  # (executor, assignment)
        self.alive_until = {}  # run id to the last moment at which its sandbox may live
        self.ended = {}  # name to the evaluation as it was when first seen terminal
        self.versions = {}

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def teardown(self):
        self.check_the_log()
        self.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    def pick(self, number):
        return self.assignments[number % len(self.assignments)]

    @initialize()
    def two_of_three_are_leased(self):
        for _ in range(3):
            self.create()
        self.lease("ex-1", 2)

    @rule()
    def create(self):
        if len(self.names) < 4:
            self.names.append(self.run(self.world.create()).name)

    @rule(executor=st.sampled_from(EXECUTORS), count=st.integers(1, 3))
    def lease(self, executor, count):
        for assignment in self.run(self.world.lease(count, executor_id=executor)):
            now = self.world.clock.now()
            living = [
                run for run, until in self.alive_until.items() if run.startswith(assignment.run_id[:36]) and until > now
            ]
            assert living == [], f"{assignment.run_id} was leased while {living} may be alive"
            self.assignments.append((executor, assignment))
            self.alive_until[assignment.run_id] = now + w.POLICY.orphan_grace // timedelta(microseconds=1)

    @precondition(lambda self: self.assignments)
    @rule(number=st.integers(0, 50))
    def renew(self, number):
        executor, assignment = self.pick(number)
        lost, _ = self.run(self.world.renew(assignment, executor_id=executor))
        if not lost:
            grace = w.POLICY.orphan_grace // timedelta(microseconds=1)
            self.alive_until[assignment.run_id] = self.world.clock.now() + grace

    @precondition(lambda self: self.assignments)
    @rule(number=st.integers(0, 50), offset=st.integers(0, 3))
    def run_goes_on(self, number, offset):
        executor, assignment = self.pick(number)
        self.run(
            self.world.report(report(assignment, started(), output(b"abc"[offset:], offset)), executor_id=executor)
        )

    @precondition(lambda self: self.assignments)
    @rule(number=st.integers(0, 50), termination=st.sampled_from(TERMINATIONS))
    def run_ends(self, number, termination):
        executor, assignment = self.pick(number)
        evaluation = self.run(self.world.get(assignment))
        end = finished(assignment, termination, stdout=b"abc"[: evaluation.stdout.bytes_kept], executor_id=executor)
        self.alive_until[assignment.run_id] = 0  # an honest executor signs when the sandbox is gone
        self.run(self.world.report(report(assignment, end), executor_id=executor))

    @precondition(lambda self: self.assignments)
    @rule(number=st.integers(0, 50), permanent=st.booleans(), failed_attempt=st.booleans())
    def run_is_refused(self, number, permanent, failed_attempt):
        executor, assignment = self.pick(number)
        refused = work.Refused(reason="no", permanent=permanent, failed_attempt=failed_attempt)
        rejected = self.run(self.world.report(report(assignment, refused=refused), executor_id=executor))
        if not rejected and assignment == self.latest(assignment):
            self.alive_until[assignment.run_id] = 0

    @precondition(lambda self: self.assignments)
    @rule(number=st.integers(0, 50), gone=st.booleans())
    def run_is_lost(self, number, gone):
        executor, assignment = self.pick(number)
        if gone:
            self.alive_until[assignment.run_id] = 0
        lost = work.RunLost(reason="lost", confirmed_gone=gone)
        self.run(self.world.report(report(assignment, lost=lost), executor_id=executor))

    @precondition(lambda self: self.names)
    @rule(number=st.integers(0, 50))
    def cancel(self, number):
        self.run(self.world.cancel(self.run(self.world.get(self.names[number % len(self.names)]))))

    @rule(length=LENGTHS)
    def time_passes(self, length):
        self.world.clock.advance(length)
        self.run(self.world.sweep())

    @rule(length=LENGTHS, executor=st.sampled_from(EXECUTORS))
    def time_passes_and_all_that_may_is_leased_after_the_backoff(self, length, executor):
        self.time_passes(length)
        self.world.clock.advance(timedelta(seconds=1.3))
        self.lease(executor, 4)

    def latest(self, assignment):
        return [one for _, one in self.assignments if one.evaluation == assignment.evaluation][-1]

    @invariant()
    def what_ended_never_changes_and_attempts_are_bounded(self):
        for name in self.names:
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
        """The log has no gap and tells the same as the evaluations."""
        events = self.run(self.world.events())
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        for name in self.names:
            evaluation = self.run(self.world.get(name))
            own = [event for event in events if event.evaluation == name]
            told = [event.state_changed for event in own if event.WhichOneof("kind") == "state_changed"]
            assert told[-1].state == evaluation.state
            assert told[-1].termination == evaluation.termination
            assert [one.version for one in told] == sorted({one.version for one in told})
            assert sum(int(one.state) in TERMINAL for one in told) <= 1


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.usefixtures("on_postgresql")
class TestLifecycleOnPostgreSql(Lifecycle.TestCase):
    """Fewer, for each needs a database of its own: what differs is below the rules."""

    settings = settings(max_examples=6, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
