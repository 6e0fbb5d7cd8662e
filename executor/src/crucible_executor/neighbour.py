"""`python -m crucible_executor.neighbour`: how much of its throughput a program keeps beside one that hits its limits.

Needs root and an otherwise idle machine. A well-behaved program does small pieces of work for some seconds (computes,
writes a file, starts a process now and then) and says so for each; what comes out is counted here, on the host, by the
host's clock. Each of its runs beside a hog stands between two runs alone, so that a machine that changes its speed
changes both; the ratio is to their mean. Where others want the CPUs too, the hog takes its fair share of what the
program had, and the ratio tells of them: such a row is shown and not judged.

Exit code: 0 when every ratio is at least `PROMISED`; 1 when one is not; 3 when it could not be measured; 4 when the
machine was too busy to tell.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from crucible_executor import cgroups
from crucible_executor.behaviour import Update
from crucible_executor.cgroups import CgroupsUnavailableError
from crucible_executor.engines.base import Engine, EngineUnavailableError, Sandbox
from crucible_executor.engines.registry import ENGINES, UNSAFE, Host
from crucible_executor.model import Exited, File, Limits, Outcome, Program, SandboxClass, Stream
from crucible_executor.sampling import Sample
from crucible_executor.settings import Settings
from crucible_executor.spool import Spool
from crucible_rpc import settings

PROMISED = 0.85
"""The part of its throughput that a neighbour keeps at least."""

_CANNOT = 3
_TOO_BUSY = 4
_MOST_OTHERS_CPUS = 1 - PROMISED
_LIMITS = Limits(
    wall_time=timedelta(seconds=60),
    cpu_time=None,
    cpus=1.0,
    memory_bytes=256 << 20,
    processes=32,
    open_files=256,
    output_bytes=1 << 20,
    disk_bytes=64 << 20,
    disk_inodes=None,
)
_WORK = """
import hashlib, os, sys, time
end = time.monotonic() + float(sys.argv[1])
data, number = os.urandom(1 << 16), 0
os.write(1, b'.')
while time.monotonic() < end or number < 5:
    for _ in range(40):
        data = hashlib.sha256(data).digest() * 2048
    with open('/tmp/scratch', 'wb') as file:
        file.write(data)
    number += 1
    if number % 50 == 0:
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    os.write(1, b'.')
"""
HOGS = {
    "CPU": "while True: pass",
    "memory": "hog = []\nwhile True: hog.append(bytearray(b'x' * 4_000_000))",
    "processes": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "disk": (
        "while True:\n    try:\n        with open('/tmp/f', 'wb', buffering=0) as f:\n"
        "            while True: f.write(b'x' * 65536)\n    except OSError: pass"
    ),
    "open files": (
        "import os\nwhile True:\n    held = []\n    try:\n        while True: held.append(os.open('/dev/null', 0))\n"
        "    except OSError:\n        for one in held: os.close(one)"
    ),
}
"""Programs that hit one limit each, again and again; one that is ended by it is started again."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one limit did to the neighbour.

    Attributes:
        limit: which.
        alone: its pieces of work per second, median of the runs alone.
        beside: the same, beside the hog.
        ratio: median over the rounds of `beside` to the mean of the two runs alone around it.
        hogs: how many programs hit the limit meanwhile.
        others_cpus: CPUs that anything else on this machine used meanwhile, median.
        kept: whether that is what is promised; None: the machine was too busy to tell.
    """

    limit: str
    alone: float
    beside: float
    ratio: float
    hogs: int
    others_cpus: float
    kept: bool | None

    @classmethod
    def of(cls, limit: str, alone: float, beside: float, ratio: float, hogs: int, others_cpus: float) -> Row:
        """A row, judged. What others use beside both programs may all be missing to one of them."""
        spare = (os.cpu_count() or 1) - 2 * _LIMITS.cpus
        busy = others_cpus > max(0.0, spare) + _MOST_OTHERS_CPUS
        return cls(limit, alone, beside, ratio, hogs, others_cpus, None if busy else ratio >= PROMISED)


class _Count:
    """A sink that counts bytes and remembers when the first and the last came."""

    def __init__(self) -> None:
        self.bytes = 0
        self.first = self.last = 0.0

    def started(self) -> None:
        """Ignored."""

    def output(self, stream: Stream, data: bytes) -> None:
        """Counts."""
        del stream
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.bytes += len(data)

    def ending(self) -> None:
        """Ignored."""

    def tried(self, update: Update) -> None:
        """Ignored."""

    def sampled(self, sample: Sample) -> None:
        """Ignored."""

    def spool(self) -> Spool:
        """Never asked for: its programs' limits ask for no files."""
        raise NotImplementedError

    @property
    def per_second(self) -> float:
        """Pieces of work after the first, which only says that the program is up."""
        return (self.bytes - 1) / (self.last - self.first) if self.last > self.first else 0.0


async def rows(engine: Engine, *, rounds: int = 3, seconds: float = 4.0) -> list[Row]:
    """Measures each of `HOGS`.

    Args:
        engine: runs both; `check` has succeeded.
        rounds: how often each is measured.
        seconds: how long the neighbour works in each run.

    Raises:
        EngineUnavailableError: a run failed.
    """
    measured = []
    for limit, code in HOGS.items():
        alone, beside, ratios, others, hogs = [(await _work(engine, seconds))[0]], [], [], [], 0
        for _ in range(rounds):
            began, busy, own = time.monotonic(), _busy_cpu_s(), time.process_time()
            hog = _Hog(engine, code)
            async with hog:
                rate, cpu = await _work(engine, seconds)
            ours = cpu + hog.cpu_s + time.process_time() - own
            others.append(max(0.0, _busy_cpu_s() - busy - ours) / (time.monotonic() - began))
            beside.append(rate)
            hogs += hog.ran
            alone.append((await _work(engine, seconds))[0])
            ratios.append(beside[-1] / statistics.mean(alone[-2:]))
        before, with_hog, kept = (statistics.median(values) for values in (alone, beside, ratios))
        measured.append(Row.of(limit, before, with_hog, kept, hogs, statistics.median(others)))
    return measured


def _busy_cpu_s(stat: Path = Path("/proc/stat")) -> float:
    """Seconds that this machine's CPUs were busy since it started, summed."""
    fields = [int(value) for value in stat.read_text().partition("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


async def _work(engine: Engine, seconds: float) -> tuple[float, float]:
    """The neighbour's pieces of work per second, and the CPU seconds of its sandbox."""
    sink = _Count()
    sandbox = await engine.create(_sandbox_class())
    try:
        outcome = await sandbox.start(_program(_WORK, str(seconds)), _LIMITS, sink)
    finally:
        await sandbox.destroy()
    if outcome.termination != Exited(0) or not sink.per_second:
        raise EngineUnavailableError(
            f"The neighbour did not run to its end: {outcome.termination}, {sink.bytes} pieces of work seen."
        )
    return sink.per_second, _cpu_s(outcome)


def _cpu_s(outcome: Outcome) -> float:
    return outcome.usage.sandbox_cpu.total_seconds() if outcome.usage.sandbox_cpu is not None else 0.0


class _Hog:
    """One program after the other that hits a limit, for as long as the block lasts.

    Attributes:
        ran: how many.
        cpu_s: what their sandboxes used, in CPU seconds.
    """

    def __init__(self, engine: Engine, code: str) -> None:
        self._engine = engine
        self._code = code
        self._stopping = False
        self._sandbox: Sandbox | None = None
        self._up = asyncio.Event()
        self.ran = 0
        self.cpu_s = 0.0

    async def __aenter__(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())
        waiting = asyncio.ensure_future(self._up.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        if self._sandbox is not None:
            await self._sandbox.kill()
        await self._task

    async def _run(self) -> None:
        while not self._stopping:
            self._sandbox = await self._engine.create(_sandbox_class())
            self._up.set()
            try:
                outcome = await self._sandbox.start(_program(self._code), _LIMITS, _Count())
            finally:
                await self._sandbox.destroy()
            self.ran += 1
            self.cpu_s += _cpu_s(outcome)


def _program(code: str, *arguments: str) -> Program:
    command = ("/usr/bin/python3", "main.py", *arguments)
    return Program(command, (File("main.py", code.encode()),), {"PATH": "/usr/bin:/bin"}, b"")


def _sandbox_class() -> SandboxClass:
    return SandboxClass(
        "python", _LIMITS.memory_bytes, _LIMITS.disk_bytes, None, _LIMITS.cpus, processes=_LIMITS.processes
    )


_WORDS = {True: "yes", False: "NO", None: "too busy to tell"}


def table(measured: list[Row]) -> str:
    """For people, and as Markdown."""
    lines = [
        "| the other program hits | alone, per s | beside, per s | kept | as promised | such programs | others' CPUs |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.limit} | {one.alone:.1f} | {one.beside:.1f} | {one.ratio:.2f}x | {_WORDS[one.kept]} | {one.hogs} "
        f"| {one.others_cpus:.2f} |"
        for one in measured
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _own_place(given: Settings, engine: str) -> Iterator[Host]:
    """A run folder and cgroups of this command's own, removed afterwards."""
    name = f"crucible-neighbour-{uuid.uuid4().hex[:12]}"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/dev/shm"))  # a tmpfs, as in /run
    host = Host(given.runsc, given.init_dir, given.images_dir, folder, name, given.docker_host)
    try:
        yield host
    finally:
        asyncio.run(ENGINES[engine](host).sweep())
        cgroups.detect(name).discard()
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(engine: Engine, rounds: int, seconds: float) -> list[Row]:
    await engine.check()
    try:
        return await rows(engine, rounds=rounds, seconds=seconds)
    finally:
        await engine.close()


def main(arguments: list[str]) -> int:
    """Measures, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m crucible_executor.neighbour", description="See docs/ENGINES.md.")
    parser.add_argument("--engine", choices=sorted(set(ENGINES) - UNSAFE), default="gvisor")
    parser.add_argument("--rounds", type=int, default=3, help="how often each hog is measured")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long the neighbour works each time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("must be started as root", file=sys.stderr)  # noqa: T201  # a command's output
        return _CANNOT
    try:
        with _own_place(settings.load(Settings, prefix="CRUCIBLE_EXECUTOR_"), options.engine) as host:
            measured = asyncio.run(_measure(ENGINES[options.engine](host), options.rounds, options.seconds))
    except (EngineUnavailableError, CgroupsUnavailableError, OSError) as error:
        print(f"cannot be measured: {error}", file=sys.stderr)  # noqa: T201
        return _CANNOT
    print(json.dumps([dataclasses.asdict(one) for one in measured]) if options.json else table(measured))  # noqa: T201
    return _exit_code(measured)


def _exit_code(measured: list[Row]) -> int:
    if any(one.kept is False for one in measured):
        return 1
    return _TOO_BUSY if any(one.kept is None for one in measured) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
