"""`python -m crucible_storage.queue_simulation`: a day of load through the real queue, by a virtual clock.

Nothing but time is simulated: the rows lie in SQLite, and `queue.Queue` picks them. What was waited and who had how
many slots is measured and held against what `queue` and `fairness` state. The exit code is 1 when that was exceeded.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import accumulate

from sqlalchemy import create_engine, insert
from sqlalchemy.engine import Connection
from sqlalchemy.pool import StaticPool

from crucible_storage import fairness, models
from crucible_storage.clock import micros
from crucible_storage.lifecycle import STARTING
from crucible_storage.queue import Queue, lane_of
from crucible_storage.simulated_load import DAY, LONGEST_RUN, POLICY, SECOND, SHORT, START, Job, Load, arrivals

TICK = SECOND // 4
MAX_DEVIATION = 0.1
MIN_JAIN = 0.99
MIN_DUE = 0.02  # of the slot time that was shared: of less, single runs make the figure


class _Backlog:
    """The slot time, in seconds, of what of one tenant waits, by its place in the order: sums in logarithmic time."""

    def __init__(self, jobs: list[Job]) -> None:
        for place, job in enumerate(sorted(jobs, key=lambda job: (job.rank, job.seq)), 1):
            job.place = place
        self._sums = [0.0] * (len(jobs) + 1)

    def add(self, job: Job, sign: int) -> None:
        place = job.place
        while place < len(self._sums):
            self._sums[place] += sign * job.length / SECOND
            place += place & -place

    def ahead_of(self, job: Job) -> float:
        place, total = job.place - 1, 0.0
        while place > 0:
            total += self._sums[place]
            place -= place & -place
        return total


@dataclass(slots=True)
class TenantFigures:
    """What one tenant had.

    Attributes:
        had: seconds of slots while work of it had been waiting for a minute without a pause.
        due: what its weight says of the slots that those had of whom that is so. One that had as much under way as its
            quota allows is not among them.
        longest_dry: the longest time without anything under way while work waited, in seconds.
    """

    evaluations: int = 0
    longest_wait: float = 0.0
    had: float = 0.0
    due: float = 0.0
    longest_dry: float = 0.0

    @property
    def share(self) -> float:
        """Of what was due, 1 is exact; of a tenant that never waited, 1."""
        return self.had / self.due if self.due else 1.0


@dataclass(slots=True)
class Figures:
    """What was measured; times in seconds.

    Attributes:
        waits: by priority, in order.
        of_bound: the largest part of its stated longest wait that an evaluation waited, by priority.
        overtaken: by how much later created evaluations of the tenant went first at most, by priority.
    """

    load: Load
    tenants: dict[str, TenantFigures] = field(default_factory=dict)
    waits: dict[int, list[float]] = field(default_factory=dict)
    of_bound: dict[int, float] = field(default_factory=dict)
    overtaken: dict[int, float] = field(default_factory=dict)
    picks: int = 0

    @property
    def sharing(self) -> list[str]:
        """The tenants of whom a share can be measured: those without a quota of running that waited for long."""
        all_ = sum(one.due for one in self.tenants.values())
        long = {one.name for one in self.load.tenants if not one.max_running}
        return [name for name, one in self.tenants.items() if name in long and one.due > MIN_DUE * all_]

    @property
    def jain(self) -> float:
        """Jain's index of the shares of `sharing`: 1 when all had what was due to them."""
        shares = [self.tenants[name].share for name in self.sharing]
        return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))

    @property
    def longest_dry(self) -> float:
        """What `fairness` states for the tenant of the least weight."""
        others = self.load.weights - min(one.weight for one in self.load.tenants)
        return fairness.HISTORY * others / self.load.slots + LONGEST_RUN

    def exceeded(self) -> list[str]:
        """What was stated and not kept."""
        found = []
        for priority in self.waits:
            if self.of_bound[priority] > 1:
                found.append(f"priority {priority}: {self.of_bound[priority]:.2f} of the stated longest wait")
            if self.overtaken[priority] > (100 - priority) * POLICY.ageing.total_seconds():
                found.append(f"priority {priority}: overtaken by what came {self.overtaken[priority]:.0f} s later")
        for name, one in self.tenants.items():
            if name in self.sharing and abs(one.share - 1) > MAX_DEVIATION:
                found.append(f"{name}: {one.share:.3f} of the slots that were due to it")
            if one.longest_dry > self.longest_dry:
                found.append(f"{name}: {one.longest_dry:.0f} s with work and without a slot")
        if self.jain < MIN_JAIN:
            found.append(f"Jain's index of the shares is {self.jain:.4f}")
        return found


@dataclass(frozen=True, slots=True)
class _Everything:
    engines: frozenset[str] = frozenset({"gvisor"})
    runtimes: frozenset[str] = frozenset({"python"})


@dataclass(slots=True)
class _Transaction:
    connection: Connection
    counts: dict[tuple[str, int], int]
    shared: bool = False


class _Simulation:
    def __init__(self, load: Load, jobs: list[Job], connection: Connection) -> None:
        self._load = load
        self._jobs = jobs
        self._by_seq = {job.seq: job for job in jobs}
        self._connection = connection
        self._queue = Queue()
        self._running: dict[tuple[str, int], int] = defaultdict(int)
        self._waiting: dict[str, int] = defaultdict(int)
        self._dry_since: dict[str, int] = {}
        self._waiting_since: dict[str, int] = {}
        self._ends: list[tuple[int, int]] = []
        self._weights = {one.name: one.weight for one in load.tenants}
        self._limits = {one.name: one.max_running for one in load.tenants}
        self._figures = Figures(load, {one.name: TenantFigures() for one in load.tenants})
        by_tenant: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            by_tenant[job.tenant].append(job)
        self._backlogs = {name: _Backlog(own) for name, own in by_tenant.items()}
        # When nothing that comes may overtake an evaluation any more, what is ahead of it is counted.
        self._fixed = sorted(jobs, key=lambda job: _fixed_at(job), reverse=True)

    def run(self) -> Figures:
        coming = list(reversed(self._jobs))
        now = START
        while coming or self._ends or any(self._waiting.values()):
            self._end(now)
            self._come(coming, now)
            self._count_ahead(now)
            self._lease(now)
            after = self._next(coming, now)
            self._account(now, after)
            now = after
        self._judge()
        return self._figures

    def _next(self, coming: list[Job], now: int) -> int:
        times = [self._ends[0][0]] if self._ends else []
        if coming:
            times.append(coming[-1].created)
        if self._fixed:
            times.append(_fixed_at(self._fixed[-1]))
        return max(now + TICK, (min(times, default=now) + TICK - 1) // TICK * TICK)

    def _end(self, now: int) -> None:
        ended = []
        while self._ends and self._ends[0][0] <= now:
            seq = heappop(self._ends)[1]
            self._running[self._by_seq[seq].tenant, STARTING] -= 1
            ended.append((seq,))
        if ended:
            self._connection.exec_driver_sql("DELETE FROM evaluation WHERE seq = ?", ended)

    def _come(self, coming: list[Job], now: int) -> None:
        rows = []
        while coming and coming[-1].created <= now:
            job = coming.pop()
            self._waiting[job.tenant] += 1
            self._backlogs[job.tenant].add(job, 1)
            rows.append(_row(job))
        if rows:
            self._connection.execute(insert(models.evaluation), rows)

    def _count_ahead(self, now: int) -> None:
        while self._fixed and _fixed_at(self._fixed[-1]) <= now:
            job = self._fixed.pop()
            if not job.leased:
                job.ahead = self._backlogs[job.tenant].ahead_of(job)

    def _lease(self, now: int) -> None:
        free = self._load.slots - len(self._ends)
        if not free or not any(self._waiting.values()):
            return
        self._figures.picks += 1
        given = []
        for waiting in self._queue.pick(_Transaction(self._connection, self._running), _Everything(), now):
            given.append((waiting.seq,))
            if len(given) == free:
                break
        for (seq,) in given:
            job = self._by_seq[seq]
            job.leased = now
            self._waiting[job.tenant] -= 1
            self._backlogs[job.tenant].add(job, -1)
            self._running[job.tenant, STARTING] += 1
            heappush(self._ends, (now + job.length, seq))
        if given:
            self._connection.exec_driver_sql("UPDATE evaluation SET state = 2 WHERE seq = ?", given)

    def _account(self, now: int, after: int) -> None:
        """Notes who had how many slots from `now` to `after`, and what the weights of those who share them say."""
        span = (after - now) / SECOND
        running = {name: self._running[name, STARTING] for name in self._weights}
        sharing = [
            name for name in self._weights if self._waiting[name] and not 0 < self._limits[name] <= running[name]
        ]
        shared = sum(running[name] for name in sharing)
        weights = sum(self._weights[name] for name in sharing)
        for name in sharing:
            self._figures.tenants[name].had += running[name] * span
            self._figures.tenants[name].due += shared * self._weights[name] / weights * span
        for name in self._weights:
            if self._waiting[name] and not running[name]:
                dry = (after - self._dry_since.setdefault(name, now)) / SECOND
                self._figures.tenants[name].longest_dry = max(self._figures.tenants[name].longest_dry, dry)
            else:
                self._dry_since.pop(name, None)

    def _shares(self, name: str, now: int, running: int) -> bool:
        """Whether work of a tenant has been waiting for as long as slots take to change hands."""
        if not self._waiting[name] or 0 < self._limits[name] <= running:
            self._waiting_since.pop(name, None)
            return False
        return now - self._waiting_since.setdefault(name, now) >= LONGEST_RUN * SECOND

    def _judge(self) -> None:
        figures = self._figures
        waits: dict[int, list[float]] = defaultdict(list)
        for job in self._jobs:
            one = figures.tenants[job.tenant]
            one.evaluations += 1
            one.longest_wait = max(one.longest_wait, job.waited)
            waits[job.priority].append(job.waited)
            part = job.waited / self._longest_wait(job)
            figures.of_bound[job.priority] = max(figures.of_bound.get(job.priority, 0.0), part)
        figures.waits = {priority: sorted(waits[priority]) for priority in sorted(waits, reverse=True)}
        figures.overtaken = dict.fromkeys(figures.waits, 0.0)
        for job, later in self._overtaken():
            figures.overtaken[job.priority] = max(figures.overtaken[job.priority], later)

    def _longest_wait(self, job: Job) -> float:
        """As stated in `queue`: what ageing allows others, then what is ahead at the speed of the tenant's share."""
        share = self._load.slots * self._weights[job.tenant] / self._load.weights
        if limit := self._limits[job.tenant]:
            share = min(share, limit)
        # A share may come late by what `fairness` states, once at the beginning and once at the end of a wait.
        return (_fixed_at(job) - job.created) / SECOND + job.ahead / share + 2 * self._figures.longest_dry

    def _overtaken(self) -> Iterator[tuple[Job, float]]:
        """Each evaluation with how much later something was created that its tenant was given before it."""
        for name in self._backlogs:
            own = sorted((job for job in self._jobs if job.tenant == name), key=lambda job: job.leased)
            latest = accumulate((job.created for job in own), max)
            for job, created in zip(own, latest, strict=True):
                yield job, (created - job.created) / SECOND


def _fixed_at(job: Job) -> int:
    return job.created + (100 - job.priority) * micros(POLICY.ageing)


def _row(job: Job) -> dict[str, object]:
    constant: dict[str, object] = dict.fromkeys(("creator", "runtime", "engine", "labels"), "")
    constant |= dict.fromkeys(("run_spec_size", "output_limit", "version", "attempt", "epoch"), 0)
    constant |= dict.fromkeys(("stdout_bytes", "stderr_bytes", "behaviour_updates"), 0)
    constant |= dict.fromkeys(("spec_sha256", "run_spec_sha256", "limits"), b"")
    own = {"seq": job.seq, "id": str(job.seq), "tenant": job.tenant, "priority": job.priority, "rank": job.rank}
    lane = lane_of(job.tenant, "gvisor", "python")
    return constant | own | {"lane": lane, "create_time": job.created, "state": 1}


def simulate(load: Load, seed: int) -> Figures:
    """Runs a load through the queue, and measures."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    tables = [models.evaluation, models.evaluation_count, models.tenant, models.queue_pause]
    try:
        with engine.begin() as connection:
            models.metadata.create_all(connection, tables)
            quotas = [
                {"tenant": one.name, "weight": one.weight, "max_running": one.max_running, "create_time": START}
                for one in load.tenants
            ]
            unset = dict.fromkeys(("max_queued", "evaluations_per_day", "cpu_seconds_per_day", "max_stored_bytes"), 0)
            connection.execute(insert(models.tenant), [quota | unset | {"max_priority": 100} for quota in quotas])
            return _Simulation(load, arrivals(load, seed), connection).run()
    finally:
        engine.dispose()


def table(figures: Figures, seed: int) -> str:
    """The figures for people."""
    total = sum(len(waits) for waits in figures.waits.values())
    lines = [
        f"{total} evaluations in {figures.load.hours:g} h, {figures.load.slots} slots, {figures.picks} picks",
        f"seed {seed}",
        "",
        "priority  evaluations   median wait   99 %   longest   longest / stated   overtaken by at most (stated)",
    ]
    for priority, waits in figures.waits.items():
        median, late = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
        stated = (100 - priority) * POLICY.ageing.total_seconds() / 60
        lines.append(
            f"{priority:8d}  {len(waits):11d}  {median / 60:8.1f} min {late / 60:6.1f} {waits[-1] / 60:9.1f}"
            f"   {figures.of_bound[priority]:16.2f}   {figures.overtaken[priority] / 60:.1f} min ({stated:.0f})"
        )
    lines += ["", "tenant    weight  evaluations   longest wait   share had / due   longest without a slot (stated)"]
    for one in figures.load.tenants:
        own = figures.tenants[one.name]
        share = f"{own.share:.3f}" if one.name in figures.sharing else "-"
        lines.append(
            f"{one.name:9s} {one.weight:6d}  {own.evaluations:11d}   {own.longest_wait / 60:8.1f} min"
            f"   {share:>15s}   {own.longest_dry:.1f} s ({figures.longest_dry:.0f})"
        )
    lines += ["", f"Jain's index of the shares: {figures.jain:.4f}"]
    return "\n".join([*lines, *(f"EXCEEDED: {one}" for one in figures.exceeded())])


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m crucible_storage.queue_simulation", description=__doc__)
    parser.add_argument("--short", action="store_true", help="half an hour of load instead of a day")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    figures = simulate(SHORT if chosen.short else DAY, chosen.seed)
    sys.stdout.write(table(figures, chosen.seed) + "\n")
    return 1 if figures.exceeded() else 0


if __name__ == "__main__":
    sys.exit(main())
