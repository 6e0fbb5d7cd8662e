"""Runs programs in a sandbox of the engine under test, and looks at the host from outside."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from crucible_executor import ahead
from crucible_executor.behaviour import Action, Observation, Sight, Update
from crucible_executor.engines.base import Engine, Sandbox
from crucible_executor.model import File, Limits, Outcome, Program, SandboxClass, Stream
from crucible_executor.sampling import Sample
from crucible_executor.spool import Spool

PYTHON = "/usr/bin/python3"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
LIMITS = Limits(
    wall_time=timedelta(seconds=20),
    cpu_time=None,
    cpus=1,
    memory_bytes=128 << 20,
    processes=32,
    open_files=64,
    output_bytes=1 << 20,
    disk_bytes=8 << 20,
    disk_inodes=None,
)
BOOT_AND_SLACK_S = 30.0


def limits(**changed: object) -> Limits:
    """The suite's usual limits with some changed."""
    return dataclasses.replace(LIMITS, **changed)


def python(
    code: str,
    *,
    args: tuple[str, ...] = (),
    files: Mapping[str, bytes] | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Program:
    """A Python program in `/workspace/main.py`."""
    contents = {"main.py": code.encode(), **(files or {})}
    return Program(
        command=(PYTHON, "main.py", *args),
        files=tuple(File(path, content) for path, content in contents.items()),
        env=dict(ENVIRONMENT if env is None else env),
        stdin=stdin,
    )


@dataclass
class Recorder:
    """A sink that keeps everything and lets a test wait for it."""

    stdout: bytes = b""
    stderr: bytes = b""
    starts: int = 0
    updates: list[Update] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    files: Path | None = None
    spools: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def started(self) -> None:
        self.starts += 1
        self._changed.set()

    def output(self, stream: Stream, data: bytes) -> None:
        if stream is Stream.STDOUT:
            self.stdout += data
        else:
            self.stderr += data
        self._changed.set()

    def ending(self) -> None:
        pass

    def tried(self, update: Update) -> None:
        self.updates.append(update)
        self._changed.set()

    def sampled(self, sample: Sample) -> None:
        self.samples.append(sample)

    def spool(self) -> Spool:
        assert self.files is not None
        self.spools += 1
        return Spool(self.files, 1 << 30)

    async def until_told(self, action: Action, example: str) -> Sight:
        """Waits until an update tells of it."""
        async with asyncio.timeout(BOOT_AND_SLACK_S):
            while True:
                for sight in (one for update in self.updates for one in update.sights):
                    if (sight.action, sight.example) == (action, example):
                        return sight
                self._changed.clear()
                await self._changed.wait()

    async def until_not_all_is_seen(self) -> Update:
        """Waits until an update says so."""
        async with asyncio.timeout(BOOT_AND_SLACK_S):
            while not self.updates or self.updates[-1].observation is Observation.OBSERVED:
                self._changed.clear()
                await self._changed.wait()
        return self.updates[-1]

    async def until_printed(self, text: bytes) -> None:
        """Waits until stdout holds `text`."""
        async with asyncio.timeout(BOOT_AND_SLACK_S):
            while text not in self.stdout:
                self._changed.clear()
                await self._changed.wait()


@dataclass
class Result:
    """A run that has ended."""

    outcome: Outcome
    sink: Recorder

    @property
    def termination(self) -> object:
        return self.outcome.termination

    @property
    def stdout(self) -> bytes:
        return self.sink.stdout

    @property
    def stderr(self) -> bytes:
        return self.sink.stderr


def sandbox_class(bounds: Limits, program: Program | None = None) -> SandboxClass:
    """The class that a program with these limits needs; without the program, nothing can wait for it but the init."""
    interpreter = None
    if program is not None and program.command[0] == PYTHON and len(program.command) > 1:
        interpreter = ahead.interpreter(program, bounds, entrypoint=program.command[1], reads_whole_file=True)
    return SandboxClass(
        image_digest="python",
        memory_bytes=bounds.memory_bytes,
        disk_bytes=bounds.disk_bytes,
        disk_inodes=bounds.disk_inodes,
        cpus=bounds.cpus,
        processes=bounds.processes,
        interpreter=interpreter,
    )


async def run(engine: Engine, program: Program, bounds: Limits = LIMITS, files: Path | None = None) -> Result:
    """Runs one program from creation to removal; what it leaves goes to `files`."""
    sandbox = await engine.create(sandbox_class(bounds, program))
    sink = Recorder(files=files)
    try:
        outcome = await sandbox.start(program, bounds, sink)
        assert processes_of(sandbox) == []
    finally:
        await sandbox.destroy()
    return Result(outcome, sink)


def processes_of(sandbox: Sandbox) -> list[str]:
    """Everything alive on the host that belongs to a sandbox: by its id in cgroup, argv or working folder.

    Docker's own helpers beside a container (its shim, a runtime on its way to delete it) are not the sandbox's.
    """
    return [one for one in processes_named(sandbox.id) if not _helps_docker(one.partition(" ")[0], sandbox.id)]


def processes_named(name: str) -> list[str]:
    """`<pid> <argv>` of each process whose cgroup, argv or working folder holds `name`."""
    pids = [entry.name for entry in os.scandir("/proc") if entry.name.isdigit() and int(entry.name) != os.getpid()]
    return [f"{pid} {_text(Path('/proc', pid, 'cmdline'))}" for pid in pids if _belongs(Path("/proc", pid), name)]


def _helps_docker(pid: str, name: str) -> bool:
    argv = _text(Path("/proc", pid, "cmdline"))
    if not argv:  # gone meanwhile
        return True
    helper = (
        argv.partition(" ")[0].rpartition("/")[2] in ("containerd-shim-runc-v2", "runc") or "/runtime-runc/" in argv
    )
    return helper and name not in _text(Path("/proc", pid, "cgroup"))


def _belongs(process: Path, name: str) -> bool:
    argv = _text(process / "cmdline")
    if not argv:  # a zombie, or a thread of the kernel
        return False
    try:
        folder = str((process / "cwd").readlink())
    except OSError:
        folder = ""
    return name in argv or name in folder or name in _text(process / "cgroup")


def _text(file: Path) -> str:
    try:
        return file.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:  # gone meanwhile
        return ""


async def eventually(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    """Waits until `condition()` is true: for what only the kernel knows, where no event can be had."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  # the kernel tells nobody
            await asyncio.sleep(0.01)
