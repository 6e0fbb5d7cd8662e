"""Runs the attempts in sandboxes of an engine, and judges each from outside."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from crucible_executor import cgroups
from crucible_executor.behaviour import Update
from crucible_executor.cgroups import Cgroup, CgroupsUnavailableError, CgroupTree
from crucible_executor.engines.base import Engine, EngineUnavailableError, Sandbox
from crucible_executor.model import File, Limits, Outcome, Program, SandboxClass, Stream
from crucible_executor.sampling import Sample
from crucible_executor.spool import Spool
from crucible_executor.tracing.tracer import Tracer, Tracing
from crucible_executor.verify import judges
from crucible_executor.verify.attempts.prelude import program
from crucible_executor.verify.bait import Bait
from crucible_executor.verify.judges import Margins, Scene
from crucible_executor.verify.model import BEGAN, LIMITS, Attempt, Finding, Verdict
from crucible_executor.verify.namespaces import Place
from crucible_executor.verify.watch import MARK, Watch

WIDTH = 2
"""Attempts at once."""

EXECUTOR_SECRET = "CRUCIBLE_VERIFY_CANARY"  # noqa: S105  # a variable's name
"""In the suite's own environment: a canary."""

TOLD_BY = {
    "the release of the host's kernel": "host-kernel",
    "the host's boot id": "boot-id",
    "the name of the executor's folder or cgroup": "host-paths",
}
"""Secrets of the host, by what they are, each with the attempt that is about it."""

_KEPT_BYTES = 8 << 20
_IMAGE = "python"
_PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class Ground:
    """Where the suite works: folders, namespaces and cgroups of its own.

    Attributes:
        name: random, and part of the run folder's and the cgroups' names: a canary itself.
        bait: the folder for baits.
        runs: the engine's run folder.
        rootfs: the image's tree.
        images: the trees that the roots of sandboxes are made of, now.
        tree: its cgroups.
        place: its own namespaces.
    """

    name: str
    bait: Path
    runs: Path
    rootfs: Path
    images: Callable[[], Sequence[Path]]
    tree: CgroupTree
    place: Place

    def secrets(self, bait: Bait) -> dict[str, str]:
        """Everything that no program may know, by what it is."""
        known = {
            "the canary file's secret": bait.secrets.file,
            "a secret of another process's environment": bait.secrets.environment,
            "a secret of another process's arguments": bait.secrets.argument,
            "the name of a socket of the host": bait.secrets.socket_name,
            "what another run left": bait.secrets.shared,
            "the name of the executor's folder or cgroup": self.name,
            "the release of the host's kernel": os.uname().release,
            "a secret of the executor's environment": os.environ[EXECUTOR_SECRET],
            "the host's name": judges.place_names(bait)[0],
        }
        boot_id = Path("/proc/sys/kernel/random/boot_id")
        if boot_id.exists():
            known["the host's boot id"] = boot_id.read_text().strip()
        return known


class _Taken:
    """A sink: keeps some, counts all."""

    def __init__(self) -> None:
        self.kept = {stream: bytearray() for stream in Stream}
        self.total = dict.fromkeys(Stream, 0)
        self.has_started = asyncio.Event()

    def started(self) -> None:
        self.has_started.set()

    def output(self, stream: Stream, data: bytes) -> None:
        self.total[stream] += len(data)
        kept = self.kept[stream]
        kept += data[: _KEPT_BYTES - len(kept)]

    def ending(self) -> None:
        """Of no interest."""

    def tried(self, update: Update) -> None:
        """What a trace says proves nothing here."""

    def sampled(self, sample: Sample) -> None:
        """Of no interest."""

    def spool(self) -> Spool:
        """Never asked for: its programs' limits ask for no files."""
        raise NotImplementedError


class Suite:
    """The attempts over one engine.

    Args:
        engine: must have been checked.
        ground: see there.
        margins: what the engine's own parts may take.
        less: the attempts that the engine need not contain, each with the reason.
        tracer: what watches the engine's sandboxes.
    """

    def __init__(
        self, engine: Engine, ground: Ground, margins: Margins, less: Mapping[str, str], tracer: Tracing
    ) -> None:
        self._engine = engine
        self._ground = ground
        self._margins = margins
        self._less = less
        self._tracer = tracer
        self._neighbour_secret = f"cn-{secrets.token_hex(12)}"

    async def run(self, attempts: Iterable[Attempt], tell: Callable[[Finding], None]) -> list[Finding]:
        """Runs them, `WIDTH` at a time, beside a neighbour that has secrets; in their order.

        Args:
            attempts: what to try.
            tell: called with each finding as it comes.
        """
        chosen = list(attempts)
        found: dict[str, Finding] = {}
        waiting = iter(chosen)

        async def lane() -> None:
            for attempt in waiting:
                found[attempt.name] = await self._one(attempt)
                tell(found[attempt.name])

        async with self._neighbour(), asyncio.TaskGroup() as group:
            for _ in range(WIDTH):
                group.create_task(lane())
        return [found[attempt.name] for attempt in chosen]

    @contextlib.asynccontextmanager
    async def _neighbour(self) -> AsyncIterator[None]:
        """Another run of the same engine, with a secret in its arguments, environment and files."""
        secret = self._neighbour_secret
        folders = ("/tmp", "/dev/shm", ".")  # noqa: S108  # the sandbox's own
        code = (
            "import os, socket, sys, time\n"
            f"for folder in {list(folders)!r}:\n"
            "    open(folder + '/answer.txt', 'w').write(os.environ['ANSWER'])\n"
            "s = socket.socket(socket.AF_UNIX); s.bind('\\0' + sys.argv[1]); s.listen()\ntime.sleep(1100)\n"
        )
        made = Program(
            ("/usr/bin/python3", "main.py", secret), (File("main.py", code.encode()),), {"ANSWER": secret}, b""
        )
        sandbox = await self._engine.create(_sandbox_class(LIMITS))
        taken = _Taken()
        running = asyncio.create_task(sandbox.start(made, _long(LIMITS), taken))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await taken.has_started.wait()
            yield
        finally:
            await to_the_end(sandbox.kill())
            await asyncio.wait([running])
            await to_the_end(sandbox.destroy())

    @property
    def _readers(self) -> list[int]:
        """The process that reads the traces, where there is one."""
        pid = self._tracer.reader_pid if isinstance(self._tracer, Tracer) else None
        return [] if pid is None else [pid]

    async def _one(self, attempt: Attempt) -> Finding:
        began = time.monotonic()
        why_not = self._less.get(attempt.name, "")
        try:
            if attempt.needs_trace and not self._readers:
                verdict, evidence = Verdict.NOT_RUN, "nothing traces the sandbox"
            else:
                verdict, evidence = await self._judged(attempt)
        except (EngineUnavailableError, OSError) as error:
            verdict, evidence = Verdict.NOT_RUN, f"the suite could not run it: {error}"
        return Finding(attempt, verdict, evidence, time.monotonic() - began, not why_not, why_not)

    async def _judged(self, attempt: Attempt) -> tuple[Verdict, str]:
        for _ in range(judges.TRIES):
            verdict, evidence, missed = await self._tried(attempt)
            if verdict is not Verdict.CONTAINED or not missed:
                return verdict, evidence
        return Verdict.NOT_RUN, missed

    async def _tried(self, attempt: Attempt) -> tuple[Verdict, str, str]:
        token = secrets.token_hex(8)
        bait = Bait(token, self._ground.bait, self._ground.place, victims=True)
        try:
            bait.arm()
            sandbox = await self._engine.create(_sandbox_class(attempt.limits))
            try:
                return await self._in(sandbox, attempt, bait)
            finally:
                await to_the_end(sandbox.destroy())
        finally:
            bait.close()

    async def _in(self, sandbox: Sandbox, attempt: Attempt, bait: Bait) -> tuple[Verdict, str, str]:
        readers = self._readers
        aim = bait.aim(bait.victim_pids, readers)
        ours = next((one for one in self._ground.tree.existing() if one.name == sandbox.id), None)
        watch = Watch(
            sandbox.id, bait.token, self._ground.place, ours or group_of(sandbox.id), [*bait.victim_pids, *readers],
            of_daemon=ours is None,
        )  # fmt: skip
        # What an engine does not promise to hide counts only where it is asked for, or it would hide all the rest.
        open_here = {what for what, owner in TOLD_BY.items() if owner in self._less and owner != attempt.name}
        known = self._ground.secrets(bait) | {"another run's secret": self._neighbour_secret}
        known = {what: secret for what, secret in known.items() if what not in open_here}
        images = self._ground.images()
        scene = Scene(
            attempt, bait, watch, known, self._margins, images, judges.kernel_state(), judges.place_names(bait)
        )
        taken = _Taken()
        made = attempt_program(attempt, aim, bait.token)
        began = time.monotonic()
        outcome = await self._watched(sandbox, made, attempt.limits, taken, watch)
        scene.seconds = time.monotonic() - began
        watch.look()
        scene.left = watch.alive()
        scene.stdout, scene.stderr = bytes(taken.kept[Stream.STDOUT]), bytes(taken.kept[Stream.STDERR])
        scene.received = (taken.total[Stream.STDOUT], taken.total[Stream.STDERR])
        scene.termination = None if outcome is None else outcome.termination
        scene.behaviour = None if outcome is None else outcome.behaviour
        found = judges.breaches(scene, (*attempt.judges, *judges.ALWAYS))
        if found:
            return Verdict.VULNERABLE, "; ".join(found[:4]), ""
        if not attempt.ran(scene.termination, scene.stderr, bait.token):
            began_text = "it began" if BEGAN in scene.stderr else "it never began"
            return Verdict.NOT_RUN, f"it did not reach its end: {began_text}, {scene.termination}", ""
        looked = ", ".join(dict.fromkeys((*attempt.judges, *judges.ALWAYS)))
        return Verdict.CONTAINED, f"nothing seen by {looked}", judges.missed(attempt, watch)

    @staticmethod
    async def _watched(sandbox: Sandbox, made: Program, limits: Limits, taken: _Taken, watch: Watch) -> Outcome | None:
        running = asyncio.ensure_future(sandbox.start(made, limits, taken))
        try:
            async with asyncio.timeout(limits.wall_time.total_seconds() + _PATIENCE_SECONDS):
                await watch.until(running)
        except TimeoutError:  # the engine itself has no end for it; the judges say what that means
            await sandbox.kill()
        except asyncio.CancelledError:
            await to_the_end(sandbox.kill())
            raise
        finally:
            await asyncio.wait([running], timeout=_PATIENCE_SECONDS)
        return running.result() if running.done() else None


async def to_the_end(work: Coroutine[Any, Any, object]) -> None:
    """Awaits what must not be left half done: a cancellation is passed on only afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def group_of(name: str) -> Cgroup | None:
    """The cgroup that a daemon made for the sandbox of this name, found by a process in it."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, CgroupsUnavailableError):  # gone meanwhile, or another's
                if name in Path(entry.path, "cgroup").read_text():
                    return cgroups.of_process(int(entry.name), name)
    return None


def attempt_program(attempt: Attempt, aim: dict[str, object], token: str) -> Program:
    """The program of an attempt, with what it is told."""
    files = (File("main.py", program(attempt.code)), File("aim.json", json.dumps(aim).encode()))
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", MARK: token}
    return Program(("/usr/bin/python3", "main.py"), files, environment, b"")


def _sandbox_class(limits: Limits) -> SandboxClass:
    return SandboxClass(
        _IMAGE, limits.memory_bytes, limits.disk_bytes, limits.disk_inodes, limits.cpus, limits.processes
    )


def _long(limits: Limits) -> Limits:
    return dataclasses.replace(limits, wall_time=timedelta(minutes=20))
