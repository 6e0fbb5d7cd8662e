"""The engines `docker` (runc) and `docker-gvisor` (runsc, registered with dockerd): a container per program.

Docker's own limits and flags carry the policy: root read-only, sized tmpfs, every capability dropped but the four that
the init needs, no_new_privs, Docker's seccomp profile, no network, no log, memory without swap. No path of the host is
mounted. What the daemon does not say early or exactly enough is read from the container's cgroup, beside the daemon.

- memory: Docker's limit; the OOM killer's count of the container's cgroup, or Docker's OOMKilled where the cgroup went
  with its last process. CPU time, peak memory and refused processes: the cgroup's counters.
- processes: with runc the cgroup's pids limit, exactly; the program's uid is shared by all containers, so RLIMIT_NPROC
  could not do it. With runsc the sentry enforces RLIMIT_NPROC, as in the gvisor engine.
- disk: the size of a tmpfs at `/workspace`, `/tmp` and `/dev/shm` each. Inodes: `nr_inodes`, which only runc knows.
- end: every process of the cgroup is killed from here, so that a daemon which hangs cannot keep a program alive.

A shared kernel (`docker`) also shows what gVisor hides: the host's kernel, its command line, its mounts' paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from crucible_executor import cgroups, init_protocol
from crucible_executor.cgroups import Cgroup, CgroupsUnavailableError
from crucible_executor.docker_images import INIT, DockerImages
from crucible_executor.dockerd import CALL_S, PING_S, AttachedStream, Daemon, DaemonError, MissingError
from crucible_executor.engines.base import Capabilities, Engine, EngineUnavailableError, Sandbox, Sink
from crucible_executor.host_pipes import PipeReader, PipeWriter
from crucible_executor.images import Image, ImageNotFoundError, ImageStore
from crucible_executor.init_protocol import Channel, FrameReader, ProtocolError, Report, ReportKind, ReportReader
from crucible_executor.model import (
    Exited,
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
from crucible_executor.supervision import Supervision

_log = logging.getLogger(__name__)

_BOOT_LIMIT = timedelta(seconds=30)
_OWNER_LABEL = "crucible"
_ENGINE_LABEL = "crucible.engine"
_STREAMS = {Channel.STDOUT: Stream.STDOUT, Channel.STDERR: Stream.STDERR}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What differs between the two engines.

    Attributes:
        runtime: Docker's name of the runtime.
        own_memory_bytes: added to a class's memory limit for what runs beside the program.
        tasks_per_process: what the host's pids limit allows for each process; systrap needs two (measured).
        own_tasks: added to that for what runs beside the program.
        boot_tasks: the least pids limit until the init waits.
        counts_by_cgroup: processes are bounded by the pids cgroup; else by RLIMIT_NPROC, of a kernel of its own.
    """

    name: str
    runtime: str
    isolation: Isolation
    enforces: frozenset[Limit]
    own_memory_bytes: int
    tasks_per_process: int
    own_tasks: int
    boot_tasks: int
    counts_by_cgroup: bool

    def tasks(self, sandbox_class: SandboxClass) -> int:
        """The host's pids limit while a program runs."""
        return self.tasks_per_process * sandbox_class.processes + self.own_tasks


_RUNC = Kind("docker", "runc", Isolation.CONTAINER, frozenset(Limit), 2 << 20, 1, 1, 64, counts_by_cgroup=True)
_RUNSC = Kind(
    "docker-gvisor",
    "runsc",
    Isolation.USER_KERNEL,
    frozenset(Limit) - {Limit.DISK_INODES},
    32 << 20,
    3,
    512,
    512,
    counts_by_cgroup=False,
)


class _Engine(Engine):
    def __init__(self, kind: Kind, docker_host: str, init: Path, images: ImageStore, owner: str) -> None:
        self._kind = kind
        self._daemon = Daemon(docker_host)
        self._images = images
        self._imported = DockerImages(self._daemon, init)
        self._labels = {_OWNER_LABEL: owner, _ENGINE_LABEL: kind.name}
        self._version = "unknown"
        self._not_swept = ""
        self._alive: dict[str, DockerSandbox] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What this engine promises; its version is known after `check`."""
        return Capabilities(self._kind.name, self._version, self._kind.isolation, self._kind.enforces)

    async def check(self) -> None:
        """Asks dockerd what it and the kernel can do, and runs the self-test."""
        if os.geteuid() != 0:
            raise EngineUnavailableError(f"The {self._kind.name} engine needs root (Docker's socket, cgroups).")
        try:
            self._daemon.socket_path  # noqa: B018  # says what is wrong with the setting
            await self._daemon.call("Docker cannot be used", lambda client: client.ping(), PING_S)
            info = await self._daemon.call("Docker cannot be used", lambda client: client.info())
        except DaemonError as error:
            raise EngineUnavailableError(str(error)) from error
        missing = self._not_swept or _missing(info, self._kind.runtime)
        if missing:
            raise EngineUnavailableError(missing)
        self._version = f"{info.get('ServerVersion', 'of no version')} ({self._kind.runtime})"
        if not self._images.names():
            raise EngineUnavailableError("There is no image to run a container on: run `make images`.")
        await engine_test.prove(self)

    async def create(self, sandbox_class: SandboxClass) -> Sandbox:
        """Boots a container up to its init, which then waits for its program."""
        if sandbox_class.disk_inodes is not None and Limit.DISK_INODES not in self._kind.enforces:
            raise EngineUnavailableError(f"The {self._kind.name} engine cannot limit inodes: leave disk_inodes unset.")
        try:
            image = self._images.resolve(sandbox_class.image_digest)
            for last_try in (False, True):
                try:
                    return await self._boot(image, sandbox_class)
                except MissingError:
                    self._imported.forget(image)
                    if last_try:
                        raise
        except (ImageNotFoundError, DaemonError, CgroupsUnavailableError, OSError) as error:
            raise EngineUnavailableError(str(error)) from error
        raise AssertionError("unreachable")

    async def _boot(self, image: Image, sandbox_class: SandboxClass) -> Sandbox:
        imported = await self._imported.ensure(image)
        sandbox = DockerSandbox(self._kind, self._daemon, sandbox_class, self._alive)
        try:
            await sandbox.boot(imported, self._labels)
        except BaseException:
            await asyncio.shield(sandbox.destroy())
            raise
        return sandbox

    async def sweep(self) -> int:
        """Removes every container with our labels that this process does not hold.

        Where dockerd does not answer, nothing can be swept; `check` then refuses this engine, and no other suffers.
        """
        self._not_swept = ""
        try:
            await self._daemon.call("Docker cannot be used", lambda client: client.ping(), PING_S)
        except DaemonError:
            return 0
        labels = [f"{key}={value}" for key, value in self._labels.items()]
        try:
            found = await self._daemon.call(
                "The containers could not be listed",
                lambda client: client.containers(all=True, filters={"label": labels}),
            )
            left = [one["Id"] for one in found if not any(name.lstrip("/") in self._alive for name in one["Names"])]
            for container in left:
                await _remove(self._daemon, container)
        except DaemonError as error:
            self._not_swept = f"What an earlier executor left cannot be removed. {error}"
            return 0
        return len(left)


class DockerEngine(_Engine):
    """Runs each program in a container of its own on the host's kernel."""

    def __init__(self, docker_host: str, init: Path, images: ImageStore, owner: str) -> None:
        """`owner` marks our containers: two executors on one machine take different ones."""
        super().__init__(_RUNC, docker_host, init, images, owner)


class DockerGvisorEngine(_Engine):
    """Runs each program in a container of its own on gVisor's kernel, by dockerd's runtime `runsc`."""

    def __init__(self, docker_host: str, init: Path, images: ImageStore, owner: str) -> None:
        """`owner` marks our containers: two executors on one machine take different ones."""
        super().__init__(_RUNSC, docker_host, init, images, owner)


def _missing(info: dict[str, Any], runtime: str) -> str:
    """What this daemon or its kernel lacks for our promises, as a sentence; empty when it has all."""
    if runtime not in info.get("Runtimes", {}):
        return (
            f"dockerd has no runtime {runtime!r}: add it to /etc/docker/daemon.json (`runtimes`, with the runtimeArgs "
            "`--network=none` and `--platform=systrap`) and restart dockerd."
        )
    needed = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPUs"}
    lacking = [what for key, what in needed.items() if not info.get(key)]
    if lacking:
        return f"Docker cannot limit {', '.join(lacking)} here: enable these cgroup controllers in the kernel."
    if not info.get("SwapLimit") and len(Path("/proc/swaps").read_text().splitlines()) > 1:
        return "Docker cannot limit swap here: switch swap off, or boot with swapaccount=1."
    if runtime == "runc" and not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        return "dockerd has no seccomp profile: use a kernel and a Docker with seccomp."
    return ""


async def _remove(daemon: Daemon, container: str, limit_s: float = CALL_S) -> None:
    """Ends and removes a container; nothing when there is none."""
    with contextlib.suppress(MissingError):
        await daemon.call(
            "The container could not be removed",
            lambda client: client.remove_container(container, v=True, force=True),
            limit_s,
        )


def container_config(kind: Kind, image: str, sandbox_class: SandboxClass, labels: dict[str, str]) -> dict[str, Any]:
    """What Docker is told to build around the init. Nothing in it comes from a request but numbers."""
    memory = sandbox_class.memory_bytes + kind.own_memory_bytes
    return {
        "Image": image,
        "Entrypoint": [INIT],
        "Cmd": [init_protocol.MULTIPLEXED],
        "User": "0:0",
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": labels,
        "OpenStdin": True,
        # The container's stdin ends with our connection, and with it the init: whatever becomes of this process.
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "HostConfig": {
            "Runtime": kind.runtime,
            "ReadonlyRootfs": True,
            "Tmpfs": _tmpfs(kind, sandbox_class),
            "ShmSize": sandbox_class.disk_bytes,
            "CapDrop": ["ALL"],
            # The init changes users, drops the bounding set, and kills what is left; a program gets none of it.
            "CapAdd": ["SETUID", "SETGID", "SETPCAP", "KILL"],
            "SecurityOpt": ["no-new-privileges"],
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": int(max(sandbox_class.cpus, 0.01) * 1e9),
            # The first that a host short of memory ends, as in the gvisor engine.
            "OomScoreAdj": 1000,
            "PidsLimit": max(kind.tasks(sandbox_class), kind.boot_tasks),
            "Ulimits": [
                {"Name": name, "Soft": value, "Hard": value}
                # No message queues: /dev/mqueue would be a disk without a limit.
                for name, value in (("core", 0), ("msgqueue", 0))
            ],
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "Init": False,
        },
    }


def _tmpfs(kind: Kind, sandbox_class: SandboxClass) -> dict[str, str]:
    options = f"rw,nosuid,nodev,exec,size={sandbox_class.disk_bytes}"
    if sandbox_class.disk_inodes is not None and Limit.DISK_INODES in kind.enforces:
        options += f",nr_inodes={sandbox_class.disk_inodes}"
    return {"/workspace": f"{options},mode=0755,uid=65534,gid=65534", "/tmp": f"{options},mode=1777"}  # noqa: S108


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
        self._counters: _Counters | None = None
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
        self._attached = PipeReader(connection.detach(), self._stream.feed)
        await self._daemon.call("The container could not be started", lambda client: client.start(self._container))
        either: list[asyncio.Future[Any]] = [self._booted, self._attached.finished]
        await asyncio.wait(either, timeout=_BOOT_LIMIT.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        if ReportKind.READY not in self._seen:
            raise EngineUnavailableError(f"The container did not start: {await self._explain()}")
        state = (await self._inspect())["State"]
        self._cgroup = cgroups.of_process(int(state["Pid"]), self._container)
        self._cgroup.limit_tasks(self._kind.tasks(self._class))

    async def _inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = await self._daemon.call(
            "The container could not be looked at", lambda client: client.inspect_container(self._container)
        )
        return found

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
        elif kind is ReportKind.GONE and self._run is not None:
            self._count()
            self._run.end(None)

    async def start(self, program: Program, limits: Limits, sink: Sink) -> Outcome:
        """Sends the program to the init and waits for its end; see `Sandbox.start`."""
        if self._used or self._destroyed:
            raise RuntimeError(f"Sandbox {self.id} takes one program, once.")
        self._used = True
        # This sentry does not count the program itself, whose uid changed after it was forked.
        processes = init_protocol.UNCHANGED if self._kind.counts_by_cgroup else limits.processes - 1
        frame = init_protocol.encode(program, dataclasses.replace(limits, processes=processes))
        run = self._run = Supervision(limits, sink)
        self._sink = sink
        assert self._cgroup is not None  # noqa: S101  # for the type checker
        assert self._control is not None  # noqa: S101
        assert self._attached is not None  # noqa: S101
        run.begin(self._cgroup.cpu_time, self._cgroup.oom_kills)
        if self._killed:
            run.end(Killed())
        self._attached.finished.add_done_callback(lambda _: run.end(None))
        self._control.write(frame)
        try:
            cause = await run.over
            await self._end_processes()
            drained = await self._drain()
            oom_killed = await self._oom_killed(cause)
        except asyncio.CancelledError:
            await asyncio.shield(self.kill())
            raise
        finally:
            run.close()
        if not drained:
            cause = SandboxFailed("dockerd did not pass on all of the container's output.")
        termination = self._termination(cause, oom_killed) or SandboxFailed(await self._explain())
        return Outcome(termination, tuple(self._limit_hits()), self._usage(run))

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

    async def _oom_killed(self, cause: Termination | None) -> bool:
        """Docker's word on the OOM killer, asked where the container died before its counters could be read."""
        if cause is not None or ReportKind.GONE in self._seen or (self._counters and self._counters.oom_kills):
            return False
        try:
            await self._daemon.call("The container did not end", lambda client: client.wait(self._container), 10)
            return bool((await self._inspect())["State"]["OOMKilled"])
        except DaemonError as error:
            _log.warning("dockerd does not say how a container ended: %s", error)
            return False

    def _termination(self, cause: Termination | None, oom_killed: bool) -> Termination | None:
        ended = self._seen.get(ReportKind.ENDED)
        oom_kills = self._counters.oom_kills if self._counters else 0
        if (oom_kills or oom_killed) and not isinstance(cause, Killed):
            return LimitExceeded(Limit.MEMORY, self._memory_evidence(oom_kills))
        if cause is not None:
            return cause
        if ended is not None:
            return Signalled(ended.b & 0x7F) if ended.signalled else Exited(ended.b & 0xFF)
        return None

    def _memory_evidence(self, oom_kills: int) -> str:
        limit = self._class.memory_bytes + self._kind.own_memory_bytes
        seen = (
            f"{oom_kills} process(es) of the container's cgroup" if oom_kills else "the container (Docker's OOMKilled)"
        )
        return (
            f"the kernel's OOM killer ended {seen} at {limit} bytes "
            f"({self._class.memory_bytes} for the program, {self._kind.own_memory_bytes} for the sandbox itself)"
        )

    def _limit_hits(self) -> Iterator[LimitHit]:
        last = self._seen.get(ReportKind.GONE) or self._seen.get(ReportKind.ENDED)
        if last is not None:
            for folder, full, inodes in (
                ("/workspace", last.workspace_full, last.workspace_inodes_full),
                ("/tmp", last.tmp_full, last.tmp_inodes_full),  # noqa: S108  # the sandbox's own
            ):
                if full:
                    yield LimitHit(Limit.DISK, "sandbox init", f"{folder} was full when the program ended")
                if inodes and self._class.disk_inodes is not None:
                    yield LimitHit(
                        Limit.DISK_INODES, "sandbox init", f"{folder} had no free inode at the program's end"
                    )
        if self._counters is not None and self._counters.refused_tasks:
            refused = f"{self._counters.refused_tasks} process(es) or thread(s) refused"
            yield LimitHit(Limit.PROCESSES, "host pids cgroup", refused)

    def _usage(self, run: Supervision) -> Usage:
        last = self._seen.get(ReportKind.GONE) or self._seen.get(ReportKind.ENDED)
        told = None if last is None else last.user_cpu + last.system_cpu
        if self._counters is None:
            return Usage(run.wall_time, told, None, None)
        # The init's word, but never more than the cgroup saw.
        program_cpu = None if told is None else min(told, self._counters.cpu_time)
        return Usage(run.wall_time, program_cpu, self._counters.cpu_time, self._counters.peak_memory_bytes)

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
        if not self._container:
            await self._daemon.settled()  # a call to create it may still be under way
        try:
            await _remove(self._daemon, self._container or self._name, self.destroy_limit_s)
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
