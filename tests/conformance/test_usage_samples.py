"""What a run uses is sampled while it runs, as the host's kernel counts it, and never more often than said"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from crucible_executor.cgroups.hierarchy import mounts
from crucible_executor.engines.base import Engine, Sandbox
from crucible_executor.model import Killed, Outcome, Program
from crucible_executor.sampling import FIRST_INTERVAL_S, Sample
from tests.conformance.harness import ENVIRONMENT, LIMITS, Recorder, processes_of, python, run, sandbox_class
from tests.conformance.promises import Promise, needs, only

MIB = 1 << 20
CPU_THEN_MEMORY = """
import time
while time.process_time() < 0.7: pass
print('burnt', flush=True)
kept = bytearray(48 << 20)
print('kept', flush=True)
time.sleep(60)
"""
SLEEPING_SAMPLES = 5


@dataclass(frozen=True)
class Truth:
    """What the files of a cgroup said, in seconds, bytes and tasks."""

    cpu: float
    memory: int
    file_cache: int
    """The part of `memory` that is cache of the host's files: it grows and falls as the host likes."""
    tasks: int
    said: bytes
    """What the program had printed, as far as it had arrived."""


@dataclass
class Judge(Recorder):
    """Reads the same counters at each sample by itself, in the cgroup in which the host shows the sandbox."""

    sandbox: Sandbox | None = None
    truth: list[Truth] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    slept: asyncio.Event = field(default_factory=asyncio.Event)

    def sampled(self, sample: Sample) -> None:
        super().sampled(sample)
        if not self.folders and self.sandbox is not None:
            self.folders = folders(processes_of(self.sandbox)[0].partition(" ")[0])
        self.truth.append(truth(self.folders, self.stdout))
        if sum(b"kept" in there.said for there in self.truth) >= SLEEPING_SAMPLES:
            self.slept.set()


def folders(pid: str) -> dict[str, Path]:
    """The cgroup of a process, by controller; all of v2 under the empty name."""
    v1, v2 = mounts(Path("/proc/self/mountinfo"))
    found: dict[str, Path] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            mount = v1.get(name) if name else v2
            if mount is not None:
                found[name] = mount / path.lstrip("/")
    return found


def truth(at: dict[str, Path], said: bytes) -> Truth:
    if "memory" in at:
        cpu = int((at["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        memory, tasks = at["memory"] / "memory.usage_in_bytes", at["pids"] / "pids.current"
    else:
        first = (at[""] / "cpu.stat").read_text().splitlines()[0]
        cpu = int(first.removeprefix("usage_usec ")) / 1e6
        memory, tasks = at[""] / "memory.current", at[""] / "pids.current"
    stat = dict(line.split() for line in memory.with_name("memory.stat").read_text().splitlines())
    prefix = "total_" if "memory" in at else ""  # v1 tells of a cgroup without those below it as well
    file_cache = int(stat[f"{prefix}active_file"]) + int(stat[f"{prefix}inactive_file"])
    return Truth(cpu, int(memory.read_text()), file_cache, int(tasks.read_text()), said)


def busy(samples: list[Sample]) -> float:
    """CPUs that were busy on average from the first of these samples to the last."""
    used = samples[-1].counters.cpu_time - samples[0].counters.cpu_time
    return used / (samples[-1].since_start - samples[0].since_start)


async def judged(engine: Engine, program: Program) -> tuple[Judge, Outcome]:
    """Runs a program that is killed as soon as it has slept for some samples, and what was seen until then."""
    sandbox = await engine.create(sandbox_class(LIMITS, program))
    judge = Judge(sandbox=sandbox)
    try:
        run = asyncio.ensure_future(sandbox.start(program, LIMITS, judge))
        await asyncio.wait([run, slept := asyncio.ensure_future(judge.slept.wait())], return_when="FIRST_COMPLETED")
        slept.cancel()
        await sandbox.kill()
        outcome = await run
    finally:
        await sandbox.destroy()
    return judge, outcome


@needs(Promise.SAMPLES)
async def test_samples_show_cpu_and_then_memory_as_the_host_counts_them(engine: Engine):
    judge, outcome = await judged(engine, python(CPU_THEN_MEMORY))
    assert outcome.termination == Killed(), judge.stderr
    samples, usage = [one.counters for one in judge.samples], outcome.usage
    said = [there.said for there in judge.truth]
    # The last sample without the program's word may have been taken while that word was on its way, and what comes
    # after the last that is needed while the program was killed.
    burning = slice(sum(b"burnt" not in one for one in said) - 1)
    kept = sum(b"kept" not in one for one in said)
    sleeping = slice(kept, kept + SLEEPING_SAMPLES)
    assert len(samples[burning]) >= 4
    for counted, there in zip(samples[: sleeping.stop], judge.truth, strict=False):  # read a moment later
        assert 0 <= there.cpu - counted.cpu_time.total_seconds() < 0.1
        assert abs(there.memory - counted.memory_bytes) < 8 * MIB
        assert abs(there.tasks - counted.tasks) <= 4
        assert counted.tasks >= 1
    assert busy(judge.samples[burning]) > 3 * busy(judge.samples[sleeping])
    own = [counted.memory_bytes - there.file_cache for counted, there in zip(samples, judge.truth, strict=True)]
    everything = "\n".join(f"{one} {there}" for one, there in zip(judge.samples, judge.truth, strict=True))
    assert min(own[sleeping]) - max(own[burning]) > 40 * MIB, everything
    assert samples[-1].cpu_time <= usage.sandbox_cpu
    assert usage.peak_memory_bytes is None or max(one.memory_bytes for one in samples) <= usage.peak_memory_bytes


@needs(Promise.SAMPLES)
async def test_the_first_look_comes_after_100_ms_and_each_is_counted(engine: Engine):
    result = await run(engine, python("import time; time.sleep(0.35)"))
    times = [one.since_start.total_seconds() for one in result.sink.samples]
    assert result.outcome.usage.samples == len(times) >= 1
    assert all(after - before >= 0.9 * FIRST_INTERVAL_S for before, after in pairwise([0.0, *times]))
    assert times[-1] <= result.outcome.usage.wall_time.total_seconds()


@needs(Promise.SAMPLES)
async def test_a_run_that_ends_at_once_is_not_looked_at(engine: Engine):
    result = await run(engine, Program(("/bin/true",), (), dict(ENVIRONMENT), b""))
    assert result.outcome.usage.samples == len(result.sink.samples)
    assert not result.sink.samples or result.outcome.usage.wall_time.total_seconds() > FIRST_INTERVAL_S


@only("subprocess", why="the others have a cgroup")
async def test_an_engine_without_a_cgroup_says_that_nothing_was_sampled(engine: Engine):
    result = await run(engine, python("import time; time.sleep(0.3)"))
    assert (result.outcome.usage.samples, result.sink.samples) == (None, [])
