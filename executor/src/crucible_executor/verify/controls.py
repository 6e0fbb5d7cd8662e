"""Positive controls: each attempt once without its sandbox, its weakness planted, where its judge must see it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import re
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from crucible_executor.cgroups import Bounds, Cgroup
from crucible_executor.model import Exited, SandboxFailed, Signalled, Termination
from crucible_executor.verify import control_trace, judges
from crucible_executor.verify.bait import Bait
from crucible_executor.verify.judges import Margins, Scene
from crucible_executor.verify.model import BEGAN, Attempt, Control, ControlFinding, ControlVerdict
from crucible_executor.verify.namespaces import Place, bring_up_loopback
from crucible_executor.verify.suite import EXECUTOR_SECRET, WIDTH, Ground, attempt_program
from crucible_executor.verify.watch import LOOK_SECONDS, Watch

_LIMIT_SECONDS = 25.0
_AFTERWARDS_SECONDS = 0.7
_KEPT_BYTES = 32 << 20


class CellError(Exception):
    """A control could not be run; the text says why."""


async def run(
    attempts: Iterable[Attempt], ground: Ground, tell: Callable[[ControlFinding], None]
) -> list[ControlFinding]:
    """Runs every attempt's control, `WIDTH` at a time; in their order.

    Args:
        attempts: whose judges to prove.
        ground: see there.
        tell: called with each finding as it comes.
    """
    chosen = list(attempts)
    found: dict[str, ControlFinding] = {}
    waiting = iter(chosen)
    stop = threading.Event()

    async def lane() -> None:
        for attempt in waiting:
            found[attempt.name] = await asyncio.to_thread(_one, attempt, ground, stop)
            tell(found[attempt.name])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(WIDTH):
                group.create_task(lane())
    finally:
        stop.set()  # a cancelled call does not end its thread
    return [found[attempt.name] for attempt in chosen]


def _one(attempt: Attempt, ground: Ground, stop: threading.Event) -> ControlFinding:
    began = time.monotonic()
    if attempt.control is None:
        return ControlFinding(attempt, ControlVerdict.CONTROL_NOT_RUN, attempt.no_control, 0.0)
    try:
        verdict, evidence = _proved(attempt, attempt.control, ground, stop)
    except (CellError, OSError) as error:
        verdict, evidence = ControlVerdict.CONTROL_NOT_RUN, f"its cell failed: {error}"
    return ControlFinding(attempt, verdict, evidence, time.monotonic() - began)


def _proved(attempt: Attempt, control: Control, ground: Ground, stop: threading.Event) -> tuple[ControlVerdict, str]:
    for _ in range(judges.TRIES):
        seen, missed = _breaches(attempt, control, ground, stop)
        if seen:
            return ControlVerdict.VULNERABLE, "; ".join(seen[:3])
        if not missed:
            return ControlVerdict.BLIND, "the judge saw nothing of the planted weakness"
    return ControlVerdict.CONTROL_NOT_RUN, missed


def _breaches(attempt: Attempt, control: Control, ground: Ground, stop: threading.Event) -> tuple[list[str], str]:
    token = secrets.token_hex(8)
    group = ground.tree.create(f"{ground.name}-{token}", Bounds(control.memory_bytes, control.tasks))
    try:
        _prefer(group)
        cell = _Cell(group, stop)
        try:
            with contextlib.ExitStack() as cleanup:
                cell.first = cell.first_line()["pid"]
                place = Place(cell.first)
                cleanup.callback(place.close)
                place.inside("net", bring_up_loopback)
                bait = Bait(token, ground.bait, place, victims=False)
                cleanup.callback(bait.close)
                return _judge(cell, attempt, control, bait, ground)
        finally:
            cell.close()
    finally:
        asyncio.run(_discard(group))


def _prefer(group: Cgroup) -> None:
    """Gives a cell, and the folder that all cells are in, nearly all the CPU time that it asks for.

    Else a busy machine would hold a control back as a limit does, and a judge of CPU time could not tell the two apart.
    """
    for folder in {*group.folders, *(one.parent for one in group.folders)}:
        for name, most in (("cpu.shares", "262144"), ("cpu.weight", "10000")):
            if (folder / name).exists():
                (folder / name).write_text(most)


async def _discard(group: Cgroup) -> None:
    await group.kill()
    await group.remove()


def _judge(cell: _Cell, attempt: Attempt, control: Control, bait: Bait, ground: Ground) -> tuple[list[str], str]:
    root = ground.bait / f"root-{bait.token}"
    inner = cell.ask({
        "control": dataclasses.asdict(control), "folder": str(bait.folder), "rootfs": str(ground.rootfs),
        "root": str(root), "shared": bait.secrets.shared, "victim_command": bait.victim_command(),
        "victim_environment": bait.victim_environment(),
    })["victims"]  # fmt: skip
    victims = _children(bait.place.pid)
    bait.arm()
    watch = Watch(cell.group.name, bait.token, bait.place, cell.group, victims)
    scene = Scene(
        attempt, bait, watch, ground.secrets(bait), Margins(), (), judges.kernel_state(), judges.place_names(bait)
    )
    made = attempt_program(attempt, bait.aim(inner, inner), bait.token)
    files = {file.path: base64.b64encode(file.content).decode() for file in made.files}
    began = time.monotonic()
    inherited = {EXECUTOR_SECRET: os.environ[EXECUTOR_SECRET]} if control.inherited_environment else {}
    cell.tell({"files": files, "env": made.env | inherited})
    limit = attempt.limits.wall_time.total_seconds() + 1 if control.no_deadline else _LIMIT_SECONDS
    said = cell.until_ended(watch, limit)
    scene.termination = None if said is None else _ended(said["ended"])
    scene.behaviour = control_trace.record(control, [] if said is None else said["trace"])
    scene.seconds = time.monotonic() - began
    watch.look()
    if control.no_deadline or not control.reap:
        scene.left = watch.alive(apart={*cell.own, *victims})
        time.sleep(0 if control.no_deadline else _AFTERWARDS_SECONDS)  # for what it goes on to do
    cell.close()
    scene.stdout, scene.stderr, scene.received = cell.outputs(lossy=control.lossy)
    with contextlib.suppress(OSError):
        root.rmdir()
    mark = BEGAN + bait.token.encode()
    if mark not in scene.stderr and mark not in scene.stdout:
        raise CellError(f"the program never began: {scene.stderr[-300:].decode(errors='replace')}")
    return judges.breaches(scene, attempt.judges), judges.missed(attempt, watch)


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def _ended(said: list[Any]) -> Termination:
    kind, value = said
    if kind == "exited":
        return Exited(value)
    return Signalled(value) if kind == "signalled" else SandboxFailed(str(value))


class _Cell:
    """The suite's side of a cell (`cell.py`)."""

    def __init__(self, group: Cgroup, stop: threading.Event) -> None:
        self.group = group
        self.first = 0
        self._stop = stop
        self._reports, given = os.pipe()
        self._pending = b""
        try:
            command = [sys.executable, "-I", "-m", "crucible_executor.verify.cell", str(given)]
            self._process = subprocess.Popen(
                [*command, *map(str, group.procs_files)], env={}, cwd="/", pass_fds=(given,), start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(given)
        self._closed = False
        self._taken = [bytearray(), bytearray()]
        self._total = [0, 0]
        self._readers = [
            threading.Thread(target=self._take, args=(index, stream), daemon=True)
            for index, stream in enumerate((self._process.stdout, self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def own(self) -> tuple[int, int]:
        """Its own processes, which no program made: the supervisor and PID 1."""
        return self._process.pid, self.first

    def _take(self, index: int, stream: IO[bytes]) -> None:
        while data := os.read(stream.fileno(), 65536):
            self._total[index] += len(data)
            self._taken[index] += data[: _KEPT_BYTES - len(self._taken[index])]

    def tell(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101  # for the type checker
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def ask(self, what: dict[str, Any]) -> dict[str, Any]:
        self.tell(what)
        return self.first_line()

    def first_line(self, limit: float = _LIMIT_SECONDS) -> dict[str, Any]:
        """The next thing that the cell says.

        Raises:
            CellError: it says nothing in time, or that it failed.
        """
        deadline = time.monotonic() + limit
        while (said := self._line(max(0.0, deadline - time.monotonic()))) is None:
            if time.monotonic() >= deadline:
                raise CellError("no word from it in time")
        return said

    def _line(self, wait: float) -> dict[str, Any] | None:
        if b"\n" not in self._pending and select.select([self._reports], [], [], wait)[0]:
            data = os.read(self._reports, 65536)
            if not data:
                raise CellError("it ended without a word")
            self._pending += data
        line, separator, rest = self._pending.partition(b"\n")
        if not separator:
            return None
        self._pending = rest
        said: dict[str, Any] = json.loads(line)
        if "failed" in said:
            raise CellError(said["failed"])
        return said

    def until_ended(self, watch: Watch, limit: float) -> dict[str, Any] | None:
        """Looks until the program has ended, and returns what is said of it; None when it has not by `limit` s."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and not self._stop.is_set():
            watch.look()
            said = self._line(LOOK_SECONDS)
            if said is not None:
                return said
        return None

    def outputs(self, *, lossy: bool) -> tuple[bytes, bytes, tuple[int, int]]:
        """What it wrote, and how much; after `close`. A lossy record drops what a terminal would not show."""
        out, err = (bytes(one) for one in self._taken)
        if lossy:
            out, err = (re.sub(rb"\x1b\[?[0-9;]*[A-Za-z]?|\0", b"", one) for one in (out, err))
        return out, err, (self._total[0], self._total[1])

    def close(self) -> None:
        """Ends everything in it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        asyncio.run(self.group.kill())
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(timeout=5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        os.close(self._reports)
