"""The `gvisor` engine: runsc from an OCI bundle, one `runsc run` per sandbox, without Docker.

What enforces what, measured with runsc 20260527:

- memory, CPUs and CPU time: a cgroup of our own around everything that belongs to the sandbox (runsc, the sentry, its
  stub processes, with an image as a tree also its gofer). The guest's memory, tmpfs included, is a memory file of the
  sentry and charged there. `SENTRY_MEMORY_BYTES` are added to the limit for the sentry itself.
- processes (and threads): RLIMIT_NPROC of the program's uid, which this sentry enforces on every clone; the host's pids
  limit, which also counts the sentry's threads, is only a second wall, far behind it (`TASKS_PER_PROCESS`).
- isolation: the sentry runs as nobody without capabilities in its own user, mount, pid and network namespaces, behind
  seccomp; with an image as one EROFS file it has no process beside it that opens files of the host.
- open files: RLIMIT_NOFILE. Disk: `size=` of the sentry's tmpfs at `/workspace`, `/tmp` and `/dev/shm`, each. Inodes:
  runsc hands its tmpfs no `nr_inodes` of the bundle (`tmpfsAllowedData`), so that limit is not declared.
- wall time and output: this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Hashable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from crucible_executor import ahead, bundle, init_protocol, leftovers, limit_hits
from crucible_executor.behaviour import Behaviour
from crucible_executor.cgroups import Bounds, Cgroup, CgroupsUnavailableError, CgroupTree
from crucible_executor.engines.base import (
    Capabilities,
    EngineUnavailableError,
    HoldableEngine,
    HoldableSandbox,
    Sink,
)
from crucible_executor.host_pipes import PipeReader, PipeWriter, pipe_from_child, pipe_to_child
from crucible_executor.host_process import HostProcess
from crucible_executor.images import Image, ImageNotFoundError, ImageStore
from crucible_executor.init_protocol import ProtocolError, Report, ReportKind, ReportReader
from crucible_executor.model import (
    Exited,
    Interpreter,
    Isolation,
    Killed,
    Limit,
    LimitExceeded,
    LimitHit,
    Limits,
    Outcome,
    Program,
    SandboxClass,
    SandboxFailed,
    Signalled,
    Stream,
    Termination,
    Usage,
)
from crucible_executor.selftest import engine as engine_test
from crucible_executor.selftest.model import Check
from crucible_executor.supervision import Supervision
from crucible_executor.tracing.tracer import UNTRACED, Tracer, Tracing

SENTRY_MEMORY_BYTES = 32 << 20
"""Added to a class's memory limit for runsc itself, which uses 12 MiB while its init waits."""

SENTRY_TASKS = 512
"""What the host's pids cgroup allows for runsc's own threads. A sentry that is refused one dies, with its program."""

TASKS_PER_PROCESS = 3
"""What it allows for each process of the program: systrap needs two, a stub process and a thread in it (measured)."""

T = TypeVar("T", Limits, Interpreter)

VERSION_LIMIT_S = 20.0
"""For `runsc --version`."""

_MAX_FIRST_WORDS = 1000
_BOOT_LIMIT = timedelta(seconds=30)
_FLAGS = ("--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=none", "--directfs=false")
_ENFORCED = frozenset(Limit) - {Limit.DISK_INODES}


@dataclasses.dataclass(frozen=True)
class GvisorPaths:
    """Where things are. `run_dir` holds one folder per sandbox and should be a tmpfs; nobody else may use it."""

    runsc: Path
    init: Path
    launcher: Path
    run_dir: Path


class GvisorEngine(HoldableEngine):
    """Runs each program in a gVisor sandbox of its own. Needs root.

    Args:
        paths: see there.
        images: root file systems.
        cgroups: our part of the machine's.
        tracer: watches what programs try.
    """

    def __init__(self, paths: GvisorPaths, images: ImageStore, cgroups: CgroupTree, tracer: Tracing = UNTRACED) -> None:
        self._tracer = tracer
        self._paths = paths
        self._images = images
        self._cgroups = cgroups
        self._version = "unknown"
        self._prepared = False
        self._alive: dict[str, GvisorSandbox] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What this engine promises; its version is known after `check`."""
        hidden = {Limit.OPEN_FILES} if self._tracer.watches else {Limit.OPEN_FILES, Limit.PROCESSES}
        return Capabilities("gvisor", self._version, Isolation.USER_KERNEL, _ENFORCED, frozenset(hidden), traced=True)

    async def check(self) -> None:
        """Prepares folder, cgroups and images, and runs the self-test."""
        self._prepare()
        self._version = await asyncio.to_thread(self._runsc_version)  # one that hangs must not hold up other runs
        names = self._images.names()
        if not names:
            raise EngineUnavailableError("There is no image to run a sandbox on: run `make images`.")
        for name in names:
            with contextlib.suppress(OSError):  # the tree itself serves as well
                await self._pack(name)
        await engine_test.prove(self)

    def self_test(self) -> Sequence[Check]:
        """See `Engine.self_test`."""
        return engine_test.checks(self, traced=isinstance(self._tracer, Tracer))

    async def _pack(self, name: str) -> None:
        try:
            await self._images.pack(name)
        except ImageNotFoundError as error:
            raise EngineUnavailableError(str(error)) from error

    def _prepare(self) -> None:
        if os.geteuid() != 0:
            raise EngineUnavailableError(
                "The gvisor engine needs root (cgroups and namespaces): run the executor as root."
            )
        for file in (self._paths.runsc, self._paths.init, self._paths.launcher):
            if not os.access(file, os.X_OK):
                raise EngineUnavailableError(f"{file} is missing or not executable: run `make setup`.")
        try:
            self._paths.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self._paths.run_dir / "empty").mkdir(exist_ok=True)
            self._cgroups.prepare()
        except (CgroupsUnavailableError, OSError) as error:
            raise EngineUnavailableError(str(error)) from error
        self._prepared = True

    def _runsc_version(self) -> str:
        """What runsc says; one built from its Go module says nothing, then the name of its folder."""
        try:
            shown = subprocess.run(
                [self._paths.runsc, "--version"],
                capture_output=True, text=True, timeout=VERSION_LIMIT_S, check=True, env={},
            ).stdout  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise EngineUnavailableError(f"{self._paths.runsc} does not run: {error}. Run `make setup`.") from error
        said = shown.partition("\n")[0].removeprefix("runsc version ").strip()
        return self._paths.runsc.resolve().parent.name if said in ("", "VERSION_MISSING") else said

    def fixed_at_boot(self, sandbox_class: SandboxClass) -> Hashable:
        """The image and the size of the disks: what the bundle says."""
        try:
            digest = self._images.resolve(sandbox_class.image_digest).digest
        except ImageNotFoundError as error:
            raise EngineUnavailableError(str(error)) from error
        return digest, sandbox_class.disk_bytes, sandbox_class.disk_inodes

    async def create(self, sandbox_class: SandboxClass) -> GvisorSandbox:
        """Boots a sandbox up to its init, which then waits for its program.

        `sandbox_class.image_digest` may also be an image's name.
        """
        if not self._prepared:
            self._prepare()
        if sandbox_class.disk_inodes is not None:
            raise EngineUnavailableError("The gvisor engine cannot limit inodes: leave disk_inodes unset.")
        try:
            image = self._images.resolve(sandbox_class.image_digest)
            sandbox = GvisorSandbox(self._paths, image, sandbox_class, self._cgroups, self._alive, self._tracer)
        except (ImageNotFoundError, CgroupsUnavailableError, OSError) as error:
            raise EngineUnavailableError(str(error)) from error
        try:
            await sandbox.boot()
        except BaseException as error:
            await asyncio.shield(sandbox.destroy())
            if isinstance(error, OSError):
                raise EngineUnavailableError(f"The sandbox could not be started: {error}.") from error
            raise
        return sandbox

    async def sweep(self) -> int:
        """Ends and removes every sandbox in our folder and cgroups that this process does not hold."""
        return await leftovers.sweep(self._paths.run_dir, self._cgroups, set(self._alive))


class GvisorSandbox(HoldableSandbox):
    """One `runsc run`, from boot to removal."""

    def __init__(
        self,
        paths: GvisorPaths,
        image: Image,
        sandbox_class: SandboxClass,
        cgroups: CgroupTree,
        alive: dict[str, GvisorSandbox],
        tracer: Tracing = UNTRACED,
    ) -> None:
        """Makes folder and cgroup; no process yet.

        Raises:
            OSError: the folder could not be made.
            CgroupsUnavailableError: the cgroup could not be made.
        """
        self._id = f"s{secrets.token_hex(8)}"
        self._paths = paths
        self._alive = alive
        self._folder = paths.run_dir / self._id
        self._memory_bytes = sandbox_class.memory_bytes
        self._interpreter: Interpreter | None = None
        self._control: PipeWriter | None = None
        self._reports: PipeReader | None = None
        self._process: HostProcess | None = None
        self._output_fds: dict[Stream, int] = {}
        self._reader = ReportReader()
        self._seen: dict[ReportKind, Report] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._run: Supervision | None = None
        self._sink: Sink | None = None
        self._used = self._killed = self._gone = self._destroyed = False
        self._folder.mkdir(mode=0o700)
        self._tracer = tracer
        self._trace = tracer.open(self._folder)
        try:
            (self._folder / "config.json").write_bytes(
                bundle.config(image, sandbox_class, empty_root=paths.run_dir / "empty")
            )
            self._cgroup: Cgroup = cgroups.create(self._id, _bounds(sandbox_class))
        except BaseException:
            self._trace.close()
            shutil.rmtree(self._folder)
            raise
        alive[self._id] = self

    @property
    def id(self) -> str:
        """The name of its cgroup and folder, and part of the argv of its runsc."""
        return self._id

    @property
    def cgroup(self) -> Cgroup:
        """What is known of it from outside."""
        return self._cgroup

    async def boot(self) -> None:
        """Starts runsc and waits until the init inside waits for its program.

        Raises:
            EngineUnavailableError: it did not get that far; says what runsc said.
            OSError: no process or pipe could be made.
        """
        self._spawn()
        if not await self._until_ready() and not self._killed:
            raise EngineUnavailableError(f"The sandbox did not start: {self._explain()}")

    async def _until_ready(self) -> bool:
        assert self._process is not None  # noqa: S101  # for the type checker
        either: list[asyncio.Future[Any]] = [self._ready, self._process.exited]
        await asyncio.wait(either, timeout=_BOOT_LIMIT.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        return self._ready.done()

    @property
    def ended(self) -> asyncio.Future[int]:
        """See `HoldableSandbox.ended`."""
        assert self._process is not None  # noqa: S101  # boot has been called
        return self._process.exited

    async def hold(self, interpreter: Interpreter | None) -> None:
        """See `HoldableSandbox.hold`."""
        assert self._control is not None  # noqa: S101
        if not self._cgroup.can_freeze:
            raise EngineUnavailableError("This machine has no cgroup freezer: mount it, or set POOL_SIZE=0.")
        if interpreter is not None:
            self._interpreter = interpreter
            self._ready = asyncio.get_running_loop().create_future()
            self._control.write(init_protocol.encode_interpreter(_counted(interpreter)))
            if not await self._until_ready():
                why = f"{self._explain()}{self._first_words()}"
                raise EngineUnavailableError(f"{interpreter.command[0]} does not wait for a program: {why}")
        try:
            self._cgroup.freeze()
        except OSError as error:
            raise EngineUnavailableError(f"The sandbox could not be frozen: {error}.") from error

    def take(self, sandbox_class: SandboxClass) -> None:
        """See `HoldableSandbox.take`."""
        if self._killed or self._used or self.ended.done():
            raise EngineUnavailableError(f"The sandbox ended while it waited: {self._explain()}")
        if self._tracer.lost(self._trace):
            raise EngineUnavailableError(
                "The trace of the sandbox was lost while it waited: its run would not be observed."
            )
        try:
            self._cgroup.bound(_bounds(sandbox_class))
        except OSError as error:
            raise EngineUnavailableError(f"The limits of a waiting sandbox could not be set: {error}.") from error
        self._memory_bytes = sandbox_class.memory_bytes
        self._cgroup.thaw()

    def memory_bytes(self) -> int:
        """See `HoldableSandbox.memory_bytes`."""
        return self._cgroup.memory_bytes()

    def _spawn(self) -> None:
        with contextlib.ExitStack() as given:  # what only runsc keeps
            ours, control = pipe_to_child(given)
            self._control = PipeWriter(ours)
            ours, reports = pipe_from_child(given)
            self._reports = PipeReader(ours, self._reported)
            self._output_fds[Stream.STDOUT], stdout = pipe_from_child(given)
            self._output_fds[Stream.STDERR], stderr = pipe_from_child(given)
            init = _opened(given, self._paths.init, os.O_RDONLY)
            log = _opened(given, self._folder / "runsc.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            passed = {
                init_protocol.REPORT_FD: reports,
                init_protocol.STDOUT_FD: stdout,
                init_protocol.STDERR_FD: stderr,
            }
            self._process = HostProcess(
                [
                    str(self._paths.launcher), str(os.getpid()), *map(str, self._cgroup.procs_files), "--",
                    str(self._paths.runsc), f"--root={self._folder}", *_FLAGS, *self._trace.flags,
                    "run", f"--bundle={self._folder}", f"--exec-fd={init}",
                    *(f"--pass-fd={ours}:{inside}" for inside, ours in passed.items()), self._id,
                ],
                stdin=control, stdout=log, stderr=log, env={}, pass_fds=(init, *passed.values()),
            )  # fmt: skip

    def _reported(self, data: bytes) -> asyncio.Future[None] | None:
        try:
            for report in self._reader.feed(data):
                self._seen[report.kind] = report
                self._heard(report.kind)
        except ProtocolError as error:
            if self._run is not None:
                self._run.end(SandboxFailed(str(error)))
        return None if self._run is None else self._run.flush()

    def _heard(self, kind: ReportKind) -> None:
        if kind is ReportKind.READY and not self._ready.done():
            self._ready.set_result(None)
        elif kind is ReportKind.STARTED and self._sink is not None:
            self._sink.started()
            self._trace.expected()
        elif kind is ReportKind.LEFT and self._run is not None:
            self._reader.files = self._run.left()
        elif kind in (ReportKind.GONE, ReportKind.REFUSED) and self._run is not None:
            self._run.end(None)

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """Runs the program; see `Sandbox.start`. `limits.cpus` is applied from here on, not to the boot."""
        if self._used or self._destroyed:
            raise RuntimeError(f"Sandbox {self._id} takes one program, once.")
        self._used = True
        if self._interpreter is not None and not ahead.serves(self._interpreter, program, limits):
            raise RuntimeError(f"Sandbox {self._id} holds an interpreter for another kind of program.")
        frame = init_protocol.encode(program, _counted(limits))
        run = self._run = Supervision(limits, sink)
        self._sink = sink
        self._trace.begin(sink.tried)
        for stream in list(self._output_fds):
            run.read_output(self._output_fds.pop(stream), stream)
        assert self._process is not None  # noqa: S101
        assert self._control is not None  # noqa: S101
        assert self._reports is not None  # noqa: S101
        if not self._killed:
            self._cgroup.limit_cpus(limits.cpus)
        run.begin(self._cgroup.cpu_time, self._cgroup.oom_kills, self._cgroup.counters)
        if self._killed:
            run.end(Killed())
        self._reports.finished.add_done_callback(lambda _: run.end(None))
        self._process.exited.add_done_callback(lambda _: run.end(None))
        control = self._control
        control.write(frame)
        try:
            cause = await run.over
            await run.files_of_ended(cause, lambda: control.write([init_protocol.STOP]))
            self._trace.over()
            await self._end_processes()
            drained = await run.drain()
            behaviour = await self._trace.behaviour()
            artifacts = await run.artifacts(
                started=ReportKind.STARTED in self._seen, gone=ReportKind.GONE in self._seen
            )
        except asyncio.CancelledError:
            await asyncio.shield(self.kill())
            raise
        finally:
            run.close()
        if not drained:
            cause = SandboxFailed("The output of the sandbox did not end with its processes.")
        return dataclasses.replace(self._outcome(cause, run, limits, behaviour), artifacts=artifacts)

    async def _end_processes(self) -> None:
        """Ends everything and reads the init's last words, which lie in the pipe by then."""
        if self._gone:
            return
        if self._process is not None:
            self._process.signal(signal.SIGKILL)  # it may not have joined its cgroups yet, and must not do so now
        await self._cgroup.kill()
        if self._process is not None:
            await asyncio.shield(self._process.exited)
            await self._cgroup.kill()  # what it did in between; usually nothing
        self._gone = True  # nothing else ever joins
        if self._reports is not None and not self._reports.finished.done():
            await asyncio.wait([self._reports.finished], timeout=5)

    def _outcome(self, cause: Termination | None, run: Supervision, limits: Limits, behaviour: Behaviour) -> Outcome:
        ended = self._seen.get(ReportKind.ENDED)
        oom_kills = self._cgroup.oom_kills()
        termination: Termination
        if oom_kills and not isinstance(cause, Killed):
            termination = LimitExceeded(Limit.MEMORY, self._memory_evidence(oom_kills))
        elif cause is not None:
            termination = cause
        elif ended is not None:
            termination = Signalled(ended.b & 0x7F) if ended.signalled else Exited(ended.b & 0xFF)
        else:
            termination = SandboxFailed(self._explain())
        hits = tuple(self._limit_hits(limits, behaviour))
        seen = {hit.limit for hit in hits} | ({Limit.DISK} if self._last_report() else set())
        if limit_hits.trace_is_whole(behaviour):
            seen.add(Limit.PROCESSES)
        hidden = limit_hits.unobserved(_ENFORCED, limits, seen)
        return Outcome(termination, hits, self._usage(run), behaviour, hidden)

    def _memory_evidence(self, oom_kills: int) -> str:
        limit = self._memory_bytes + SENTRY_MEMORY_BYTES
        return (
            f"the kernel's OOM killer ended {oom_kills} process(es) of the sandbox's cgroup at {limit} bytes "
            f"({self._memory_bytes} for the program, {SENTRY_MEMORY_BYTES} for the sandbox itself)"
        )

    def _last_report(self) -> Report | None:
        return self._seen.get(ReportKind.GONE) or self._seen.get(ReportKind.ENDED)

    def _limit_hits(self, limits: Limits, behaviour: Behaviour) -> Iterator[LimitHit]:
        yield from limit_hits.by_init(self._last_report(), limits)
        yield from limit_hits.by_trace(behaviour)
        yield from limit_hits.by_cgroup(self._cgroup.refused_tasks())

    def _usage(self, run: Supervision) -> Usage:
        sandbox_cpu = self._cgroup.cpu_time()
        last = self._last_report()
        # The init's word, but never more than the cgroup saw.
        program_cpu = None if last is None else min(last.user_cpu + last.system_cpu, sandbox_cpu)
        return Usage(run.wall_time, program_cpu, sandbox_cpu, self._cgroup.peak_memory_bytes(), run.samples)

    def _explain(self) -> str:
        """Why there is no word from the program: the init's refusal, the OOM killer, or what runsc said."""
        oom_kills = self._cgroup.oom_kills()
        if oom_kills:  # it may have ended one process, and the init saw no more than that it ended
            return self._memory_evidence(oom_kills)
        refused = self._seen.get(ReportKind.REFUSED)
        if refused is not None:
            return init_protocol.describe_refusal(refused)
        refused_tasks = self._cgroup.refused_tasks()
        if refused_tasks:
            return f"the host's pids limit refused the sandbox {refused_tasks} thread(s), and it ended."
        with contextlib.suppress(OSError), (self._folder / "runsc.log").open("rb") as log:
            said = log.read(2000).decode(errors="replace").strip()
            if said:
                return f"runsc said: {said}"
        return "the sandbox died without a word."

    def _first_words(self) -> str:
        """What an interpreter wrote before there was a program, bounded; empty when it wrote nothing."""
        try:
            os.set_blocking(self._output_fds[Stream.STDERR], False)
            said = os.read(self._output_fds[Stream.STDERR], _MAX_FIRST_WORDS).decode(errors="replace").strip()
        except OSError:
            return ""
        return f" It wrote {said!r}." if said else ""

    async def kill(self) -> None:
        """Ends every process of the sandbox; see `Sandbox.kill`."""
        self._killed = True
        if self._run is not None:
            self._run.end(Killed())
        await self._end_processes()

    async def destroy(self) -> None:
        """Removes everything of it from the host; see `Sandbox.destroy`."""
        if not self._destroyed:
            await self.kill()
        self._destroyed = True
        for fd in self._output_fds.values():
            os.close(fd)
        self._output_fds.clear()
        if self._control is not None:
            self._control.close()
        if self._reports is not None:
            self._reports.close()
        self._trace.close()
        await self._cgroup.remove()
        _remove(self._folder)
        self._alive.pop(self._id, None)


def _bounds(sandbox_class: SandboxClass) -> Bounds:
    tasks = TASKS_PER_PROCESS * sandbox_class.processes + SENTRY_TASKS
    return Bounds(sandbox_class.memory_bytes + SENTRY_MEMORY_BYTES, tasks)


def _counted(limits: T) -> T:
    """This sentry does not count the program's first process, which changed its uid after it was made."""
    return dataclasses.replace(limits, processes=limits.processes - 1)


def _remove(folder: Path) -> None:
    """Removes a sandbox's folder, in which runsc and we left a few files."""
    try:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(given: contextlib.ExitStack, path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    given.callback(os.close, fd)
    return fd
