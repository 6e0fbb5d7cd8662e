"""The `subprocess` engine: a plain child process, no isolation at all. Only behind the executor's `--unsafe`.

It exists to try Crucible without root and to measure the control plane alone. It enforces wall time, output and open
files, and `crucible-tend`, the reaper of all the program's descendants, ends what the program leaves behind, daemons
included. What it cannot: nothing keeps a program from the executor's own files, nor from killing `crucible-tend`, which
runs as the same user; what such a program has detached before outlives it. The program's `/workspace` is its working
folder, at another path. Where the executor dies, `crucible-tend` ends the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
from pathlib import Path

from crucible_executor import init_protocol, leftovers, limit_hits
from crucible_executor.engines.base import Capabilities, Engine, EngineUnavailableError, Sandbox, Sink
from crucible_executor.host_pipes import PipeReader, pipe_from_child
from crucible_executor.host_process import HostProcess
from crucible_executor.init_protocol import ProtocolError, Report, ReportKind, ReportReader
from crucible_executor.model import (
    Exited,
    Isolation,
    Killed,
    Limit,
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
from crucible_executor.supervision import Supervision

_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_PATIENCE_S = 2.0
_ENFORCED = frozenset({Limit.WALL_TIME, Limit.OUTPUT, Limit.OPEN_FILES})


class SubprocessEngine(Engine):
    """Runs each program as a child process.

    Args:
        tend: the built `crucible-tend`.
        run_dir: a folder of its own; one folder per program is made there.
    """

    def __init__(self, tend: Path, run_dir: Path) -> None:
        self._tend = tend
        self._run_dir = run_dir
        self._alive: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What this engine promises: next to nothing."""
        hidden = frozenset({Limit.OPEN_FILES})
        return Capabilities("subprocess", os.uname().release, Isolation.NONE, _ENFORCED, hidden)

    async def check(self) -> None:
        """Makes the folder, looks for its tender, and runs the self-test."""
        self._prepare()
        if not os.access(self._tend, os.X_OK):
            raise EngineUnavailableError(f"{self._tend} is missing or not executable: run `make setup`.")
        await engine_test.prove(self)

    def _prepare(self) -> None:
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise EngineUnavailableError(f"Cannot make the folder {self._run_dir}: {error.strerror}.") from error

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """Makes the program's folder. The image is ignored: the program sees the host."""
        del sandbox_class
        self._prepare()
        name = f"s{secrets.token_hex(8)}"
        folder = self._run_dir / name
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise EngineUnavailableError(f"Cannot make the folder {folder}: {error.strerror}.") from error
        self._alive.add(name)
        return SubprocessSandbox(self._tend, folder, self._alive)

    async def sweep(self) -> int:
        """Ends what still works in a program's folder, and removes the folder."""
        return await leftovers.sweep_folders(self._run_dir, self._alive)


class SubprocessSandbox(Sandbox):
    """A folder and, once started, a child process with its descendants."""

    def __init__(self, tend: Path, folder: Path, alive: set[str]) -> None:
        self._tend = tend
        self._folder = folder
        self._alive = alive
        self._process: HostProcess | None = None
        self._reports: PipeReader | None = None
        self._reader = ReportReader()
        self._seen: dict[ReportKind, Report] = {}
        self._run: Supervision | None = None
        self._used = self._killed = self._destroyed = False

    @property
    def id(self) -> str:
        """The name of its folder."""
        return self._folder.name

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """Runs the program in its folder, with its environment and nothing else of the executor's."""
        if self._used or self._destroyed:
            raise RuntimeError(f"Sandbox {self.id} takes one program, once.")
        self._used = True
        init_protocol.check_program(program)
        run = self._run = Supervision(limits, sink)
        run.begin()
        if self._killed:
            run.end(Killed())
        else:
            self._spawn(program, limits, run, sink)
        try:
            cause = await run.over
            await run.files_of_ended(cause, self._stop)
            await self._end()
            drained = await run.drain()
            artifacts = await run.artifacts(
                started=ReportKind.STARTED in self._seen, gone=isinstance(self._termination(cause), Exited | Signalled)
            )
        except asyncio.CancelledError:
            await asyncio.shield(self.kill())
            raise
        finally:
            run.close()
        if not drained:
            cause = SandboxFailed("A process that left the program's descendants still holds its output.")
        last = self._seen.get(ReportKind.GONE)
        cpu = None if last is None else last.user_cpu + last.system_cpu
        hidden = limit_hits.unobserved(_ENFORCED, limits, ())
        usage = Usage(run.wall_time, cpu, None, None)
        return Outcome(self._termination(cause), (), usage, unobserved=hidden, artifacts=artifacts)

    def _spawn(self, program: Program, limits: Limits, run: Supervision, sink: Sink) -> None:
        try:
            for file in program.files:
                path = self._folder / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.content)
            with contextlib.ExitStack() as given:
                self._spawn_with(given, program, limits, run, sink)
        except OSError as error:
            run.end(SandboxFailed(f"the program could not be started: {error}."))

    def _spawn_with(
        self, given: contextlib.ExitStack, program: Program, limits: Limits, run: Supervision, sink: Sink
    ) -> None:
        stdin = _content(given, program.stdin)
        ends: dict[Stream, int] = {}
        for stream in Stream:
            read_end, ends[stream] = pipe_from_child(given)
            run.read_output(read_end, stream)
        reports, give_reports = pipe_from_child(given)
        self._reports = PipeReader(reports, lambda data: self._reported(data, run, sink))
        process = self._process = HostProcess(
            self._argv(program, limits, give_reports),
            stdin=stdin,
            stdout=ends[Stream.STDOUT],
            stderr=ends[Stream.STDERR],
            env=program.env,
            cwd=self._folder,
            pass_fds=(give_reports,),
        )
        process.exited.add_done_callback(lambda _: run.end(None))

    def _argv(self, program: Program, limits: Limits, report_fd: int) -> tuple[str, ...]:
        found = shutil.which(program.command[0], path=program.env.get("PATH", _DEFAULT_PATH)) or program.command[0]
        files = init_protocol.MAX_LEFT_FILES if limits.artifact_bytes else 0
        numbers = (os.getpid(), report_fd, limits.open_files, files, limits.artifact_bytes)
        return (str(self._tend), *map(str, numbers), "--", found, *program.command[1:])

    def _reported(self, data: bytes, run: Supervision, sink: Sink) -> asyncio.Future[None] | None:
        try:
            for report in self._reader.feed(data):
                self._seen[report.kind] = report
                if report.kind is ReportKind.STARTED:
                    sink.started()
                elif report.kind is ReportKind.LEFT:
                    self._reader.files = run.left()
        except ProtocolError as error:
            run.end(SandboxFailed(str(error)))
        return run.flush()

    def _termination(self, cause: Termination | None) -> Termination:
        ended, refused = self._seen.get(ReportKind.ENDED), self._seen.get(ReportKind.REFUSED)
        if cause is not None:
            return cause
        if ended is not None:
            return Signalled(ended.b & 0x7F) if ended.signalled else Exited(ended.b & 0xFF)
        if refused is not None:
            return SandboxFailed(init_protocol.describe_refusal(refused))
        return SandboxFailed("crucible-tend ended without a word; the program may have killed it.")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGINT)

    async def _end(self) -> None:
        if self._process is not None:
            if ReportKind.LEFT in self._seen:  # all else has ended, and nothing more of the files is wanted
                self._process.signal(signal.SIGKILL)
            # crucible-tend ends all descendants, then itself; unless the program has stopped it for good.
            self._process.signal(signal.SIGTERM)
            self._process.signal(signal.SIGCONT)
            await asyncio.wait([self._process.exited], timeout=_PATIENCE_S)
            self._process.signal(signal.SIGKILL)
            await asyncio.shield(self._process.exited)
        if self._reports is not None:
            await asyncio.wait([self._reports.finished], timeout=5)

    async def kill(self) -> None:
        """Ends the program and its descendants; see `Sandbox.kill`."""
        self._killed = True
        if self._run is not None:
            self._run.end(Killed())
        await self._end()

    async def destroy(self) -> None:
        """Ends the program and removes its folder; see `Sandbox.destroy`."""
        if self._destroyed:
            return
        await self.kill()
        self._destroyed = True
        if self._reports is not None:
            self._reports.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._alive.discard(self.id)


def _content(given: contextlib.ExitStack, content: bytes) -> int:
    """A file in memory with the program's stdin, at its start."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    given.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
