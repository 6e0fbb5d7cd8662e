"""What the gvisor engine adds to a bare `runsc run` of the same bundle, interleaved in one run. Needs root.

python -m tests.conformance.measure [RUNS]
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crucible_executor import bundle, cgroups
from crucible_executor.cgroups import Bounds, CgroupTree
from crucible_executor.engines.base import Engine
from crucible_executor.engines.gvisor import _FLAGS
from crucible_executor.engines.registry import ENGINES, Host
from crucible_executor.images import ImageStore
from crucible_executor.model import Exited, Program
from tests.conformance.harness import LIMITS, Recorder, sandbox_class

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"true": ("/bin/true",), "python": ("/usr/bin/python3", "-c", "print('hi')")}


@dataclasses.dataclass
class Bare:
    """`runsc run` and nothing else: no init, no cgroup, output into pipes."""

    host: Host
    folder: Path
    command: tuple[str, ...]

    def write(self) -> None:
        image = ImageStore(self.host.images).resolve("python")
        empty = self.folder / "empty"
        empty.mkdir(parents=True)
        document = json.loads(bundle.config(image, sandbox_class(LIMITS), empty_root=empty))
        document["process"] |= {"args": self.command, "env": ["PATH=/usr/bin:/bin"], "cwd": "/workspace"}
        document["process"]["user"] = {"uid": 65534, "gid": 65534}
        (self.folder / "config.json").write_text(json.dumps(document))

    def run(self) -> float:
        name = uuid.uuid4().hex
        before = time.perf_counter()
        subprocess.run(
            [self.host.runsc, f"--root={self.folder}/state", *_FLAGS, "run", f"--bundle={self.folder}", name],
            check=True, stdin=subprocess.DEVNULL, capture_output=True,
        )  # fmt: skip
        return time.perf_counter() - before


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def own_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def engine_run(engine: Engine, command: tuple[str, ...]) -> tuple[float, float]:
    before = time.perf_counter()
    sandbox = await engine.create(sandbox_class(LIMITS))
    outcome = await sandbox.start(Program(command, (), {"PATH": "/usr/bin:/bin"}, b""), LIMITS, Recorder())
    await sandbox.destroy()
    assert outcome.termination == Exited(0), outcome
    assert outcome.usage.sandbox_cpu is not None
    return time.perf_counter() - before, outcome.usage.sandbox_cpu.total_seconds()


def bare_cpu(bare: Bare, tree: CgroupTree, launcher: Path) -> float:
    """The CPU time of one bare run, counted as the engine's is: by a cgroup."""
    group = tree.create(uuid.uuid4().hex, Bounds(1 << 30, 4096))
    joined = dataclasses.replace(bare)
    command = [str(launcher), str(os.getpid()), *map(str, group.procs_files), "--", str(bare.host.runsc)]
    subprocess.run(
        [*command, f"--root={joined.folder}/state", *_FLAGS, "run", f"--bundle={joined.folder}", uuid.uuid4().hex],
        check=True, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    used = group.cpu_time().total_seconds()
    asyncio.run(group.remove())
    return used


def measure(runs: int, name: str, host: Host, engine: Engine, tree: CgroupTree, folder: Path) -> None:
    command = COMMANDS[name]
    bare = Bare(host, folder / name, command)
    bare.write()
    loop = asyncio.new_event_loop()
    bare_times, bare_cpus, engine_times, engine_cpus, own = [], [], [], [], 0.0
    bare.run()
    loop.run_until_complete(engine_run(engine, command))
    for _ in range(runs):
        bare_times.append(bare.run())
        bare_cpus.append(bare_cpu(bare, tree, host.init_dir / "crucible-launch"))
        before = own_cpu()
        taken, used = loop.run_until_complete(engine_run(engine, command))
        own += own_cpu() - before
        engine_times.append(taken)
        engine_cpus.append(used)
    print(f"{name}: one at a time, {runs} runs each, interleaved")
    print(
        f"  bare runsc run   median {statistics.median(bare_times) * 1e3:6.1f} ms   "
        f"CPU {statistics.mean(bare_cpus) * 1e3:6.1f} ms"
    )
    print(
        f"  gvisor engine    median {statistics.median(engine_times) * 1e3:6.1f} ms   "
        f"CPU {statistics.mean(engine_cpus) * 1e3:6.1f} ms + {own / runs * 1e3:.1f} ms in the executor"
    )
    wide(runs, bare, engine, command, loop)
    loop.close()


def wide(runs: int, bare: Bare, engine: Engine, command: tuple[str, ...], loop: asyncio.AbstractEventLoop) -> None:
    async def both() -> None:
        async def lane() -> None:
            for _ in range(runs):
                await engine_run(engine, command)

        await asyncio.gather(lane(), lane())

    rates: dict[str, list[float]] = {"bare runsc run": [], "gvisor engine": []}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            before = time.perf_counter()
            list(pool.map(lambda _: [bare.run() for _ in range(runs)], range(2)))
            rates["bare runsc run"].append(2 * runs / (time.perf_counter() - before))
            before = time.perf_counter()
            loop.run_until_complete(both())
            rates["gvisor engine"].append(2 * runs / (time.perf_counter() - before))
    print("  two at a time: " + ", ".join(f"{name} {statistics.mean(rate):.1f}/s" for name, rate in rates.items()))


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    unique = uuid.uuid4().hex[:8]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        built = subprocess.run([ROOT / "executor/init/build.sh", folder], check=True, capture_output=True, text=True)
        runsc = sorted((CACHE / "runsc").glob("*/runsc"))[-1]
        host = Host(
            runsc, Path(built.stdout.strip()), CACHE / "images", Path(folder) / "run", f"crucible-measure-{unique}"
        )
        engine = ENGINES["gvisor"](host)
        asyncio.run(engine.check())
        tree = cgroups.detect(host.cgroup)
        for name in COMMANDS:
            measure(runs, name, host, engine, tree, Path(folder))
        tree.discard()


if __name__ == "__main__":
    main()
