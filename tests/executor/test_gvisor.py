"""The gvisor engine where the conformance suite does not look: its faults, a tree as image, hostile bytes to init."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import struct
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from crucible_executor import cgroups
from crucible_executor.behaviour import Update
from crucible_executor.engines import gvisor
from crucible_executor.engines.base import EngineUnavailableError
from crucible_executor.engines.gvisor import GvisorEngine, GvisorPaths, GvisorSandbox
from crucible_executor.images import ImageStore
from crucible_executor.init_protocol import ReportKind
from crucible_executor.model import Exited, Limits, Program, SandboxClass, Stream
from crucible_executor.sampling import Sample
from crucible_executor.spool import Spool

pytestmark = pytest.mark.root

CACHE = Path(os.environ.get("CRUCIBLE_CACHE", "/var/cache/crucible"))
ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(timedelta(seconds=20), None, 1, 64 << 20, 16, 64, 1 << 20, 1 << 20, None)
CLASS = SandboxClass("python", 64 << 20, 1 << 20, None, 1, 16)


@pytest.fixture(scope="module")
def init_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = subprocess.run(
        [ROOT / "executor/init/build.sh", tmp_path_factory.mktemp("init")], check=True, capture_output=True, text=True
    )
    return Path(built.stdout.strip())


@pytest.fixture
def paths(init_dir: Path) -> GvisorPaths:
    runsc = sorted((CACHE / "runsc").glob("*/runsc"))[-1]
    run_dir = Path("/dev/shm") / f"crucible-test-{uuid.uuid4().hex[:12]}"
    return GvisorPaths(runsc, init_dir / "crucible-init", init_dir / "crucible-launch", run_dir)


class Output:
    def __init__(self) -> None:
        self.data = {Stream.STDOUT: b"", Stream.STDERR: b""}

    def started(self) -> None:
        pass

    def output(self, stream: Stream, data: bytes) -> None:
        self.data[stream] += data

    def ending(self) -> None:
        pass

    def tried(self, update: Update) -> None:
        pass

    def sampled(self, sample: Sample) -> None:
        pass

    def spool(self) -> Spool:
        raise NotImplementedError


@pytest.fixture
async def make(paths: GvisorPaths) -> AsyncIterator[object]:
    """Makes engines on the test's own folder and cgroups; afterwards nothing may be left there."""
    tree = cgroups.detect(paths.run_dir.name)

    def engine(images: Path = CACHE / "images", **changed: Path) -> GvisorEngine:
        return GvisorEngine(dataclasses.replace(paths, **changed), ImageStore(images), tree)

    yield engine
    abandoned = await engine().sweep()
    tree.discard()
    for folder in (paths.run_dir / "empty", paths.run_dir):
        if folder.exists():
            folder.rmdir()
    assert abandoned == 0


async def trial(engine: GvisorEngine, *command: str) -> tuple[object, bytes]:
    sandbox = await engine.create(CLASS)
    output = Output()
    try:
        outcome = await sandbox.start(Program(command, (), {"PATH": "/bin:/usr/bin"}, b""), LIMITS, output)
    finally:
        await sandbox.destroy()
    return outcome.termination, output.data[Stream.STDOUT]


async def test_image_as_a_tree_runs_too(make, tmp_path: Path):
    original = ImageStore(CACHE / "images").resolve("python")
    (tmp_path / "rootfs").symlink_to(original.rootfs)
    (tmp_path / "python.json").write_text(json.dumps({"digest": original.digest, "rootfs": "rootfs"}))
    engine = make(images=tmp_path)
    assert await trial(engine, "head", "-c", "5", "/proc/mounts") == (Exited(0), b"none ")
    assert await trial(engine, "touch", "/x") == (Exited(1), b"")


@pytest.mark.parametrize("missing", ["runsc", "init", "launcher"])
async def test_missing_program_is_named(make, missing: str):
    with pytest.raises(EngineUnavailableError, match="/nowhere"):
        await make(**{missing: Path("/nowhere")}).check()


async def test_runsc_that_fails_is_quoted_and_leaves_nothing(make, tmp_path: Path):
    broken = tmp_path / "runsc"
    broken.write_text("#!/bin/sh\necho 'the kernel is too old' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(EngineUnavailableError, match="the kernel is too old"):
        await make(runsc=broken).create(CLASS)


async def test_sandbox_that_has_too_little_memory_to_boot_says_so(make):
    with pytest.raises(EngineUnavailableError):
        await make().create(dataclasses.replace(CLASS, memory_bytes=-(26 << 20)))


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def privileges(pid: int) -> tuple[str, ...]:
    lines = (line.partition(":") for line in proc(pid, "status").splitlines())
    status = {name: value.split() for name, _, value in lines}
    return (status["Uid"][1], status["CapEff"][0], status["NoNewPrivs"][0], status["Seccomp"][0])


async def test_sentry_and_its_helpers_are_nobody_without_capabilities(make, paths: GvisorPaths):
    """All but the `runsc run` that waits for them; told by the host."""
    sandbox = await make().create(CLASS)
    try:
        told = {pid: privileges(pid) for pid in sandbox.cgroup.pids()}
        privileged = [pid for pid, facts in told.items() if facts != ("65534", "0" * 16, "1", "2")]
        argv = [proc(pid, "cmdline").split("\0")[0] for pid in privileged]
        assert argv == [str(paths.runsc)]
        assert {proc(pid, "oom_score_adj") for pid in told} == {"1000\n"}
        assert len(told) > 1
    finally:
        await sandbox.destroy()


async def test_a_program_within_its_process_limit_cannot_end_its_sandbox(make, monkeypatch: pytest.MonkeyPatch):
    """Each process takes more than one task on the host, and a sentry that is refused a task dies."""
    monkeypatch.setattr(gvisor, "SENTRY_TASKS", 40)  # so that 100 processes show what else 1000 would
    code = "import os, time\nfor _ in range(95):\n    if os.fork() == 0: time.sleep(60)\nprint('all')"
    bounds = {"memory_bytes": 1 << 30, "processes": 100}
    sandbox = await make().create(dataclasses.replace(CLASS, **bounds))
    output = Output()
    try:
        program = Program(("/usr/bin/python3", "-c", code), (), {}, b"")
        outcome = await sandbox.start(program, dataclasses.replace(LIMITS, **bounds), output)
    finally:
        await sandbox.destroy()
    assert (outcome.termination, output.data[Stream.STDOUT], outcome.limit_hits) == (Exited(0), b"all\n", ())


async def test_inodes_and_unknown_images_are_refused(make):
    with pytest.raises(EngineUnavailableError, match="inodes"):
        await make().create(dataclasses.replace(CLASS, disk_inodes=100))
    with pytest.raises(EngineUnavailableError, match="make images"):
        await make().create(dataclasses.replace(CLASS, image_digest="sha256:" + "0" * 64))


async def test_cancelled_create_leaves_nothing(make):
    engine = make()
    for delay in (0, 0, 0.001, 0.002, 0.004, 0.008, 0.02, 0.05):  # at any point of the boot, before its cgroup too
        creating = asyncio.create_task(engine.create(CLASS))
        await asyncio.sleep(delay)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(creating, 10)
    assert await engine.sweep() == 0


def head(argc: int = 1, envc: int = 0, files: int = 0, stdin: int = 0, magic: bytes = b"CRUINIT2") -> bytes:
    return struct.pack("<8sIIIIIIQQ", magic, argc, envc, files, 8, 16, 0, 0, stdin)


def text(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


ARGV = text(b"/bin/true")
HOSTILE = {
    "wrong magic": head(magic=b"HELLO!!!"),
    "no argument": head(argc=0),
    "too many arguments": head(argc=2**32 - 1),
    "too many variables": head(envc=2**32 - 1),
    "endless string": head() + struct.pack("<I", 2**32 - 1),
    "NUL in an argument": head() + text(b"a\0b"),
    "too many files": head(files=2**32 - 1) + ARGV,
    "absolute path": head(files=1) + ARGV + text(b"/tmp/x"),
    "way out": head(files=1) + ARGV + text(b"a/../../tmp/x"),
    "empty path": head(files=1) + ARGV + text(b""),
    "NUL in a path": head(files=1) + ARGV + text(b"a\0b"),
    "long path": head(files=1) + ARGV + text(b"a/" * 3000),
    "huge file": head(files=1) + ARGV + text(b"a") + struct.pack("<Q", 2**63),
    "huge stdin": head(stdin=2**63) + ARGV,
    "no end": head() + ARGV + b"MORE",
    "file twice": head(files=2) + ARGV + (text(b"a") + struct.pack("<Q", 0)) * 2,
    "file as a folder": head(files=2) + ARGV + text(b"a") + struct.pack("<Q", 0) + text(b"a/b") + struct.pack("<Q", 0),
    "larger than the disk": head(files=1) + ARGV + text(b"a") + struct.pack("<Q", 2 << 20) + b"x" * (2 << 20),
}


HOLD = {"magic": b"CRUHOLD2"}
TRUE = text(b"/bin/true")
HOSTILE_HOLDS = {
    "with files": head(files=1, **HOLD) + TRUE + text(b"main.py") + b"END!",
    "with stdin": head(stdin=1, **HOLD) + TRUE + text(b"main.py") + b"END!",
    "no end": head(**HOLD) + TRUE + text(b"main.py") + b"MORE",
    "in a folder": head(**HOLD) + TRUE + text(b"a/main.py") + b"END!",
    "way out": head(**HOLD) + TRUE + text(b"../tmp/main.py") + b"END!",
    "the folder itself": head(**HOLD) + TRUE + text(b".") + b"END!",
    "endless name": head(**HOLD) + TRUE + struct.pack("<I", 2**32 - 1),
    "no such interpreter": head(**HOLD) + text(b"/bin/nowhere") + text(b"main.py") + b"END!",
    "does not wait": head(**HOLD) + TRUE + text(b"main.py") + b"END!",
}


async def refused_by_init(engine: GvisorEngine, data: bytes) -> bool:
    sandbox = await engine.create(CLASS)
    assert isinstance(sandbox, GvisorSandbox)
    try:
        assert sandbox._control is not None
        assert sandbox._reports is not None
        sandbox._control.write([data])
        await asyncio.wait_for(sandbox._reports.finished, 20)
        return set(sandbox._seen) == {ReportKind.READY, ReportKind.REFUSED}
    finally:
        await sandbox.destroy()


async def test_init_refuses_every_malformed_frame(make):
    engine = make()
    assert {name: await refused_by_init(engine, data) for name, data in HOSTILE.items()} == dict.fromkeys(HOSTILE, True)


async def test_init_refuses_every_malformed_interpreter_and_one_that_does_not_wait(make):
    engine = make()
    told = {name: await refused_by_init(engine, data) for name, data in HOSTILE_HOLDS.items()}
    assert told == dict.fromkeys(HOSTILE_HOLDS, True)


async def test_init_ends_when_the_executor_lets_go_before_or_within_a_frame(make):
    engine = make()
    for data in (b"", head()[:10], head(argc=2) + ARGV):
        sandbox = await engine.create(CLASS)
        assert isinstance(sandbox, GvisorSandbox)
        try:
            assert sandbox._control is not None
            assert sandbox._process is not None
            sandbox._control.write([data])
            sandbox._control.close()
            await asyncio.wait_for(asyncio.shield(sandbox._process.exited), 20)
            assert sandbox.cgroup.pids() == []
        finally:
            await sandbox.destroy()


def test_init_does_nothing_outside_a_sandbox(init_dir: Path):
    """Its last act is to kill everything it can reach: as any process but PID 1 it must refuse."""
    assert subprocess.run([init_dir / "crucible-init"], stdin=subprocess.DEVNULL, check=False).returncode == 3


def test_launcher_starts_nothing_without_its_cgroup_or_its_parent(init_dir: Path, tmp_path: Path):
    launch = str(init_dir / "crucible-launch")
    witness = tmp_path / "witness"
    for arguments in (
        [str(os.getpid()), "/sys/fs/cgroup/nowhere/cgroup.procs", "--"],
        ["1", "/dev/null", "--"],
        ["none", "/dev/null", "--"],
        [],
    ):
        done = subprocess.run([launch, *arguments, "/bin/touch", str(witness)], capture_output=True, check=False)
        assert (done.returncode, done.stderr[:16]) == (111, b"crucible-launch:")
    assert not witness.exists()


BARRIERS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
MEMBARRIER, QUERY, GLOBAL, PRIVATE, REGISTER_PRIVATE = {"x86_64": 324, "aarch64": 283}[os.uname().machine], 0, 1, 8, 16
call = lambda command: libc.syscall(MEMBARRIER, command, 0, 0)
print(call(QUERY) & (GLOBAL | PRIVATE | REGISTER_PRIVATE), call(REGISTER_PRIVATE), call(GLOBAL), call(PRIVATE))
"""


def test_launcher_spares_runsc_a_registration_that_nobody_uses(init_dir: Path):
    launch = [str(init_dir / "crucible-launch"), str(os.getpid()), "/dev/null", "--"]
    done = subprocess.run([*launch, sys.executable, "-c", BARRIERS], capture_output=True, check=True)
    assert done.stdout == b"25 0 0 -1\n"  # answered, not done: the barrier itself is refused


async def test_a_program_has_every_memory_barrier_all_the_same(make):
    assert await trial(make(), "python3", "-c", BARRIERS) == (Exited(0), b"25 0 0 0\n")


def test_building_twice_gives_the_same_folder(init_dir: Path):
    again = subprocess.run(
        [ROOT / "executor/init/build.sh", init_dir.parent], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert Path(again) == init_dir
    assert (init_dir.parent / "current").resolve() == init_dir.resolve()
    assert sorted(path.name for path in init_dir.iterdir()) == ["crucible-init", "crucible-launch", "crucible-tend"]
