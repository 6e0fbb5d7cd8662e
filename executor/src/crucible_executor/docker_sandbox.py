"""One container as a sandbox: its life, from creation to removal, and what is read of it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from crucible_executor import cgroups, init_protocol, limit_hits
from crucible_executor.cgroups import Cgroup, OomWatch
from crucible_executor.docker_config import Kind, container_config
from crucible_executor.dockerd import CALL_S, AttachedStream, Daemon, DaemonError, MissingError
from crucible_executor.engines.base import EngineUnavailableError, Sandbox, Sink
from crucible_executor.host_disks import HostDisks
from crucible_executor.host_pipes import PipeReader, PipeWriter
from crucible_executor.init_protocol import Channel, FrameReader, ProtocolError, Report, ReportKind, ReportReader
from crucible_executor.model import (
    Exited,
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
from crucible_executor.supervision import Supervision

_log = logging.getLogger(__name__)

_BOOT_LIMIT = timedelta(seconds=30)
_STREAMS = {Channel.STDOUT: Stream.STDOUT, Channel.STDERR: Stream.STDERR}


async def remove(daemon: Daemon, container: str, limit_s: float = CALL_S) -> None:
    """Ends and removes a container; nothing when there is none."""
    with contextlib.suppress(MissingError):
        await daemon.call(
            "The container could not be removed",
            lambda client: client.remove_container(container, v=True, force=True),
            limit_s,
        )


class DockerSandbox(Sandbox):
    """One container, from creation to removal.

    Attributes:
        destroy_limit_s: how long `destroy` waits for a daemon that hangs.
    """

    destroy_limit_s = 15.0

    def __init__(
        self, kind: Kind, daemon: Daemon, sandbox_class: SandboxClass, alive: dict[str, DockerSandbox]
    ) -> None:
        """Nothing is made yet."""
        self._name = f"crucible-{secrets.token_hex(8)}"
        self._kind = kind
        self._daemon = daemon
        self._class = sandbox_class
        self._alive = alive
        self._container = ""
        self._cgroup: Cgroup | None = None
        self._ooms: OomWatch | None = None
        self._counters: _Counters | None = None
        self._disks: HostDisks | None = None
        self._control: PipeWriter | None = None
        self._attached: PipeReader | None = None
        self._stream = AttachedStream(self._arrived)
        self._frames = FrameReader()
        self._reader = ReportReader()
        self._seen: dict[ReportKind, Report] = {}
        self._booted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._run: Supervision | None = None
        self._sink: Sink | None = None
        self._used = self._killed = self._destroyed = False
        alive[self._name] = self

    @property
    def id(self) -> str:
        """The container's id, part of its cgroup's path."""
        return self._container

    async def boot(self, image: str, labels: dict[str, str]) -> None:
        """Creates, attaches, starts, and waits until the init inside waits for its program.

        Raises:
            MissingError: the daemon has lost the image.
            DaemonError: the daemon refused or does not answer.
            CgroupsUnavailableError: the container's cgroup cannot be found from here.
            OSError: its cgroup cannot be watched.
            EngineUnavailableError: the container ended before its init was up.
        """
        config = container_config(self._kind, image, self._class, labels)
        made = await self._daemon.call(
            "The container could not be created",
            lambda client: client.create_container_from_config(config, self._name),
        )
        self._container = str(made["Id"])
        connection = await self._daemon.attach(self._container)
        self._control = PipeWriter(os.dup(connection.fileno()))
        self._attached = PipeReader(connection.detach(), self._received)
        await self._daemon.call("The container could not be started", lambda client: client.start(self._container))
        either: list[asyncio.Future[Any]] = [self._booted, self._attached.finished]
        await asyncio.wait(either, timeout=_BOOT_LIMIT.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        if ReportKind.READY not in self._seen:
            raise EngineUnavailableError(f"The container did not start: {await self._explain()}")
        state = (await self._inspect())["State"]
        self._cgroup = cgroups.of_process(int(state["Pid"]), self._container)
        self._ooms = self._cgroup.watch_oom()
        self._cgroup.limit_tasks(self._kind.tasks(self._class))
        if self._kind.shares_kernel:
            self._disks = HostDisks(int(state["Pid"]))

    async def _inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._daemon.call(
            "The container could not be looked at", lambda client: client.inspect_container(self._container)
        )
        return found

    def _received(self, data: bytes) -> asyncio.Future[None] | None:
        self._stream.feed(data)
        return None if self._run is None else self._run.flush()

    def _arrived(self, data: bytes) -> None:
        try:
            for channel, part in self._frames.feed(data):
                if channel is not Channel.REPORTS:
                    if self._run is not None:
                        self._run.output(_STREAMS[channel], part)
                    continue
                for report in self._reader.feed(part):
                    self._seen[report.kind] = report
                    self._heard(report.kind)
        except ProtocolError as error:
            if self._run is not None:
                self._run.end(SandboxFailed(str(error)))
            if self._attached is not None:
                self._attached.close()

    def _heard(self, kind: ReportKind) -> None:
        if kind is ReportKind.READY and not self._booted.done():
            self._booted.set_result(None)
        elif kind is ReportKind.STARTED and self._sink is not None:
            self._sink.started()
        elif kind is ReportKind.LEFT and self._run is not None:
            self._reader.files = self._run.left()
        elif kind is ReportKind.GONE and self._run is not None:
            self._count()
            self._run.end(None)

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """Sends the program to the init and waits for its end; see `Sandbox.start`."""
        if self._used or self._destroyed:
            raise RuntimeError(f"Sandbox {self.id} takes one program, once.")
        self._used = True
        # This sentry does not count the program itself, whose uid changed after it was forked.
        processes = init_protocol.UNCHANGED if self._kind.shares_kernel else limits.processes - 1
        frame = init_protocol.encode(program, dataclasses.replace(limits, processes=processes))
        run = self._run = Supervision(limits, sink)
        self._sink = sink
        assert self._cgroup is not None  # noqa: S101  # for the type checker
        assert self._control is not None  # noqa: S101
        assert self._attached is not None  # noqa: S101
        run.begin(self._cgroup.cpu_time, self._cgroup.oom_kills, self._cgroup.counters)
        if self._killed:
            run.end(Killed())
        self._attached.finished.add_done_callback(lambda _: run.end(None))
        control = self._control
        control.write(frame)
        try:
            cause = await run.over
            await run.files_of_ended(cause, lambda: control.write([init_protocol.STOP]))
            await self._end_processes()
            drained = await self._drain()
            out_of_memory = await self._out_of_memory(cause)
            artifacts = await run.artifacts(
                started=ReportKind.STARTED in self._seen, gone=ReportKind.GONE in self._seen
            )
        except asyncio.CancelledError:
            await asyncio.shield(self.kill())
            raise
        finally:
            run.close()
        if not drained:
            cause = SandboxFailed("dockerd did not pass on all of the container's output.")
        termination = self._termination(cause, out_of_memory) or SandboxFailed(await self._explain())
        hits = tuple(self._limit_hits(limits))
        seen = {hit.limit for hit in hits} | self._seen_limits()
        hidden = limit_hits.unobserved(self._kind.enforces, limits, seen)
        return Outcome(termination, hits, self._usage(run), unobserved=hidden, artifacts=artifacts)

    def _count(self) -> None:
        """Reads the cgroup's counters, as long as there is one; they only grow."""
        if self._cgroup is not None and self._cgroup.exists:
            counted = _Counters(
                self._cgroup.oom_kills(),
                self._cgroup.refused_tasks(),
                self._cgroup.cpu_time(),
                self._cgroup.peak_memory_bytes(),
            )
            if self._cgroup.exists:
                self._counters = counted

    async def _end_processes(self) -> None:
        """Ends everything from here: Docker then only has to notice."""
        self._count()
        if self._cgroup is not None:
            await self._cgroup.kill()

    async def _drain(self) -> bool:
        """Waits for the rest of what the container said; all output comes before GONE."""
        if ReportKind.GONE in self._seen or self._attached is None:
            return True
        _, unfinished = await asyncio.wait([self._attached.finished], timeout=5)
        return not unfinished

    async def _out_of_memory(self, cause: Termination | None) -> str:
        """Who, but for the cgroup's counters, says that the OOM killer came; empty: nobody, or it is known already.

        A container that it ended as a whole may take its cgroup along before the counters can be read.
        """
        if self._counters is not None or isinstance(cause, Killed):
            return ""
        if self._ooms is not None and await self._ooms.struck():
            return "its cgroup's OOM event"
        if cause is not None or ReportKind.GONE in self._seen:
            return ""
        try:
            await self._daemon.call("The container did not end", lambda client: client.wait(self._container), 10)
            return "Docker's OOMKilled" if (await self._inspect())["State"]["OOMKilled"] else ""
        except DaemonError as error:
            _log.warning("dockerd does not say how a container ended: %s", error)
            return ""

    def _termination(self, cause: Termination | None, out_of_memory: str) -> Termination | None:
        ended = self._seen.get(ReportKind.ENDED)
        oom_kills = self._counters.oom_kills if self._counters else 0
        if (oom_kills or out_of_memory) and not isinstance(cause, Killed):
            return LimitExceeded(Limit.MEMORY, self._memory_evidence(oom_kills, out_of_memory))
        if cause is not None:
            return cause
        if ended is not None:
            return Signalled(ended.b & 0x7F) if ended.signalled else Exited(ended.b & 0xFF)
        return None

    def _memory_evidence(self, oom_kills: int, out_of_memory: str) -> str:
        limit = self._class.memory_bytes + self._kind.own_memory_bytes
        killed = (
            f"{oom_kills} process(es) of the container's cgroup" if oom_kills else f"the container ({out_of_memory})"
        )
        return (
            f"the kernel's OOM killer ended {killed} at {limit} bytes "
            f"({self._class.memory_bytes} for the program, {self._kind.own_memory_bytes} for the sandbox itself)"
        )

    def _limit_hits(self, limits: Limits) -> Iterator[LimitHit]:
        if self._disks is not None:
            yield from limit_hits.by_file_systems(self._disks.states(), limits)
        else:
            yield from limit_hits.by_init(self._last_report(), limits)
        if self._counters is not None:
            yield from limit_hits.by_cgroup(self._counters.refused_tasks)

    def _seen_limits(self) -> set[Limit]:
        """The limits of which a hit would have been seen."""
        seen = {Limit.PROCESSES} if self._kind.shares_kernel and self._counters is not None else set()
        if self._disks is not None or self._last_report() is not None:
            seen |= {Limit.DISK, Limit.DISK_INODES}
        return seen

    def _last_report(self) -> Report | None:
        return self._seen.get(ReportKind.GONE) or self._seen.get(ReportKind.ENDED)

    def _usage(self, run: Supervision) -> Usage:
        last = self._last_report()
        told = None if last is None else last.user_cpu + last.system_cpu
        if self._counters is None:
            return Usage(run.wall_time, told, None, None, run.samples)
        # The init's word, but never more than the cgroup saw.
        program_cpu = None if told is None else min(told, self._counters.cpu_time)
        used = self._counters
        return Usage(run.wall_time, program_cpu, used.cpu_time, used.peak_memory_bytes, run.samples)

    async def _explain(self) -> str:
        """Why there is no word from the program: the init's refusal, or what Docker and its runtime said."""
        refused = self._seen.get(ReportKind.REFUSED)
        if refused is not None:
            return init_protocol.describe_refusal(refused)
        said = self._stream.stderr.decode(errors="replace").strip()
        try:
            state = (await self._inspect())["State"]
        except DaemonError as error:
            return f"the container died without a word. {error}"
        return f"Docker said: {said or state.get('Error') or 'it ended with {}'.format(state.get('ExitCode'))}."

    async def kill(self) -> None:
        """Ends every process of the sandbox; see `Sandbox.kill`."""
        self._killed = True
        if self._run is not None:
            self._run.end(Killed())
        await self._end_processes()

    async def destroy(self) -> None:
        """Removes the container; see `Sandbox.destroy`. Where dockerd does not answer, the next sweep does."""
        if self._destroyed:
            return
        self._destroyed = True
        await self.kill()
        if self._control is not None:
            self._control.close()
        if self._attached is not None:
            self._attached.close()
        if self._disks is not None:
            self._disks.close()
        if self._ooms is not None:
            self._ooms.close()
        if not self._container:
            await self._daemon.settled()  # a call to create it may still be under way
        try:
            await remove(self._daemon, self._container or self._name, self.destroy_limit_s)
        except DaemonError as error:
            _log.warning("a container is left for the next start's sweep: %s", error)
        self._alive.pop(self._name, None)


@dataclasses.dataclass(frozen=True)
class _Counters:
    """What the cgroup said last."""

    oom_kills: int
    refused_tasks: int
    cpu_time: timedelta
    peak_memory_bytes: int | None
