"""Five harmless programs, and what each sees beside what the host sees of it meanwhile.

For people who want to look (`crucible verify --demonstrate`). Nothing is attacked and nothing is judged here.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible_executor.behaviour import Update
from crucible_executor.cgroups import Cgroup
from crucible_executor.engines.base import Engine
from crucible_executor.model import File, Outcome, Program, SandboxClass, Stream
from crucible_executor.sampling import Sample
from crucible_executor.spool import Spool
from crucible_executor.verify.attempts.prelude import program
from crucible_executor.verify.bait import Bait
from crucible_executor.verify.model import LIMITS, bounds
from crucible_executor.verify.suite import Ground, group_of, to_the_end
from crucible_executor.verify.watch import MARK, Watch

_PATIENCE_SECONDS = 30.0
_MOST_BYTES = 64 << 10
_MOST_CHARACTERS = 400
_MOST_PROCESSES = 8
_WIDTH = 46
_LABEL = 22
_MEBIBYTE = 1 << 20

_SAY = """
def show(**seen):
    os.write(1, json.dumps(seen).encode() + b"\\n")
    time.sleep(60)
"""

_PROCESSES = """
def name(pid):
    return f"{pid} " + (tried(read, f"/proc/{pid}/comm") or b"?").decode(errors="replace").strip()
show(processes=", ".join(name(pid) for pid in sorted(pids())), itself=str(os.getpid()))
"""

_NETWORK = """
def reach(host):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        try:
            s.connect((host, AIM["port"]))
            return "connected"
        except OSError as error:
            return error.strerror or "no answer"
routes = (tried(read, "/proc/net/route") or b"").decode(errors="replace").splitlines()[1:]
host = AIM["host_addresses"][0]
show(interfaces=", ".join(name for _, name in socket.if_nameindex()) or "none", routes=str(len(routes)),
     **{"a call to the host": f"{host}: {reach(host)}", "a call to 127.0.0.1": reach("127.0.0.1")})
"""

_LIMITS = """
import resource
def count(action):
    made = 0
    while made < AIM["many"] and tried(action) is not None:
        made += 1
    return made
def fork():
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    return child
held = []
files = count(lambda: held.append(os.open("/dev/null", os.O_RDONLY)) or True)
while held:
    os.close(held.pop())
written = 0
with open("fill", "wb", buffering=0) as file:
    while written < 64 << 20 and (wrote := tried(file.write, bytes(1 << 20))):
        written += wrote
os.unlink("fill")
processes = count(fork)
cpus = len(os.sched_getaffinity(0))
show(processes=f"{processes} children, then refused", cpus=f"{cpus} to be seen",
     **{"open files": f"{files} more, then refused", "disk": f"{written >> 20} MiB in /workspace, then full"})
"""

_ROOT = """
def write(folder):
    try:
        with open(os.path.join(folder, AIM["root_name"]), "w") as file:
            file.write(TOKEN)
        return "written"
    except OSError as error:
        return error.strerror
show(**{f"a file in {folder}": write(folder) for folder in ("/", "/etc", "/usr/bin", "/workspace")},
     user=f"uid {os.getuid()}, gid {os.getgid()}")
"""

_PRIVILEGES = """
wanted = ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
lines = read("/proc/self/status").decode().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
def become():
    try:
        os.setuid(0)
        return "done"
    except OSError as error:
        return error.strerror
show(privileges=", ".join(f"{key} {status.get(key, '?').split()[0]}" for key in wanted), **{"setuid(0)": become()})
"""


@dataclass(frozen=True)
class Row:
    """One thing, as the program saw it and as the host saw it; empty where that side has nothing to see."""

    what: str
    program: str
    host: str


@dataclass(frozen=True)
class Look:
    """One demonstration."""

    name: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Scene:
    """What the host looks at while the program lives."""

    bait: Bait
    watch: Watch
    group: Cgroup | None
    ground: Ground

    def knob(self, *names: str) -> str:
        """The first of these files of its cgroup that there is."""
        folders = () if self.group is None else self.group.folders
        for path in (folder / name for name in names for folder in folders):
            if path.exists():
                return path.read_text().strip()
        return "?"


def _processes(scene: _Scene) -> dict[str, str]:
    members = sorted(scene.watch.members())
    everybody = sum(1 for one in Path("/proc").iterdir() if one.name.isdigit())
    return {
        "processes": _list([f"{pid} {_status(pid, 'Name')}" for pid in members]),
        "itself": f"{len(members)} processes belong to it, {everybody - len(members)} do not",
    }


def _network(scene: _Scene) -> dict[str, str]:
    names = scene.bait.place.inside("net", lambda: [name for _, name in socket.if_nameindex()])
    heard = "; ".join(sorted(set(scene.bait.heard()))) or "nothing came to the listener"
    apart = {_namespace(pid) for pid in scene.watch.members()} - {_namespace(os.getpid()), ""}
    return {
        "interfaces": ", ".join(names),
        "routes": "a network namespace of its own" if apart else "the host's own network",
        "a call to the host": heard,
    }


def _limits(scene: _Scene) -> dict[str, str]:
    memory = scene.knob("memory.max", "memory.limit_in_bytes")
    peak = 0 if scene.group is None else (scene.group.peak_memory_bytes() or 0)
    quota = scene.knob("cpu.max", "cpu.cfs_quota_us").split()[0]
    return {
        "processes": f"{scene.knob('pids.current')} tasks in its cgroup, {scene.knob('pids.max')} allowed, "
        f"limit {LIMITS.processes}",
        "memory": f"{peak // _MEBIBYTE} MiB at most so far, {int(memory) // _MEBIBYTE} MiB allowed",
        "cpus": f"{quota} us of each 100000 us",
        "open files": f"limit {LIMITS.open_files}",
        "disk": f"limit {LIMITS.disk_bytes // _MEBIBYTE} MiB, in memory that its cgroup counts",
    }


def _root(scene: _Scene) -> dict[str, str]:
    name = scene.bait.root_name

    def look(folder: str) -> str:
        found = any((image / folder.strip("/") / name).exists() for image in scene.ground.images())
        return "the image has the file" if found else "the image has no such file"

    return {f"a file in {folder}": look(folder) for folder in ("/", "/etc", "/usr/bin", "/workspace")}


def _privileges(scene: _Scene) -> dict[str, str]:
    wanted = ("Uid", "CapEff", "NoNewPrivs", "Seccomp")
    told = [
        f"{_status(pid, 'Name')}: " + ", ".join(f"{key} {_status(pid, key)}" for key in wanted)
        for pid in sorted(scene.watch.members())
    ]
    return {"privileges": _list(list(dict.fromkeys(told)), "; ")}


_LOOKS: tuple[tuple[str, str, Callable[[_Scene], dict[str, str]]], ...] = (
    ("processes", _PROCESSES, _processes),
    ("network", _NETWORK, _network),
    ("limits", _LIMITS, _limits),
    ("read-only root", _ROOT, _root),
    ("capabilities", _PRIVILEGES, _privileges),
)


async def run(engine: Engine, ground: Ground) -> list[Look]:
    """All of them, one after the other, over an engine that was checked."""
    return [await _look(name, code, host, engine, ground) for name, code, host in _LOOKS]


async def _look(name: str, code: str, host: Callable[[_Scene], dict[str, str]], engine: Engine, ground: Ground) -> Look:
    bait = Bait(secrets.token_hex(8), ground.bait, ground.place, victims=False)
    try:
        # Memory for all the children that are made until one is refused.
        limits = bounds(wall_time=timedelta(seconds=2 * _PATIENCE_SECONDS), memory_bytes=512 * _MEBIBYTE)
        sandbox = await engine.create(
            SandboxClass(
                "python", limits.memory_bytes, limits.disk_bytes, limits.disk_inodes, limits.cpus, limits.processes
            )
        )
        said = _Said()
        made = Program(
            ("/usr/bin/python3", "main.py"),
            (File("main.py", program(_SAY + code)), File("aim.json", json.dumps(bait.aim([], [])).encode())),
            {"PATH": "/usr/bin:/bin", MARK: bait.token},
            b"",
        )
        running = asyncio.ensure_future(sandbox.start(made, limits, said))
        try:
            await asyncio.wait(
                [running, asyncio.ensure_future(said.line.wait())],
                timeout=_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED,
            )  # fmt: skip
            ours = next((one for one in ground.tree.existing() if one.name == sandbox.id), None)
            group = ours or group_of(sandbox.id)
            watch = Watch(sandbox.id, bait.token, ground.place, group, [], of_daemon=ours is None)
            return Look(name, _rows(said.told(), host(_Scene(bait, watch, group, ground)), running))
        finally:
            await to_the_end(sandbox.kill())
            await asyncio.wait([running])
            await to_the_end(sandbox.destroy())
    finally:
        bait.close()


class _Said:
    """A sink: keeps the first line of stdout, which is all that the programs say."""

    def __init__(self) -> None:
        self._kept = b""
        self.line = asyncio.Event()

    def started(self) -> None:
        """Of no interest."""

    def output(self, stream: Stream, data: bytes) -> None:
        if stream is Stream.STDOUT:
            self._kept += data[: _MOST_BYTES - len(self._kept)]
            if b"\n" in self._kept:
                self.line.set()

    def ending(self) -> None:
        """Of no interest."""

    def tried(self, update: Update) -> None:
        """Of no interest."""

    def sampled(self, sample: Sample) -> None:
        """Of no interest."""

    def spool(self) -> Spool:
        """Never asked for: its programs' limits ask for no files."""
        raise NotImplementedError

    def told(self) -> dict[str, str]:
        """What it says that it saw; empty when it said nothing that can be read."""
        try:
            said = json.loads(self._kept.partition(b"\n")[0])
        except ValueError:
            return {}
        return {_plain(str(key)): _plain(str(value)) for key, value in said.items()} if isinstance(said, dict) else {}


def _rows(program: dict[str, str], host: dict[str, str], running: asyncio.Future[Outcome]) -> tuple[Row, ...]:
    if not program:
        ended = f"nothing; it ended: {running.result().termination}" if running.done() else "nothing in time"
        program = {"the program": _plain(ended)}
    return tuple(Row(what, program.get(what, ""), host.get(what, "")) for what in dict.fromkeys([*program, *host]))


def table(engine: str, looks: list[Look]) -> str:
    """What was seen, side by side."""
    lines = [f"{engine}: what a program sees, and what the host sees of it meanwhile"]
    for look in looks:
        lines += ["", look.name, f"  {'':{_LABEL}}{'the program':{_WIDTH}}  the host"]
        for row in look.rows:
            left, right = (textwrap.wrap(text, _WIDTH - 2) or ["-"] for text in (row.program, row.host))
            for index in range(max(len(left), len(right))):
                ours, theirs = (side[index] if index < len(side) else "" for side in (left, right))
                lines.append(f"  {row.what if index == 0 else '':{_LABEL}}{ours:{_WIDTH}}  {theirs}".rstrip())
    return "\n".join(lines)


def as_json(engine: str, looks: list[Look]) -> str:
    """The same as one JSON object."""
    rows = {
        look.name: [{"what": row.what, "program": row.program, "host": row.host} for row in look.rows] for look in looks
    }
    return json.dumps({"engine": engine, "looks": rows}, indent=2)


def _status(pid: int, key: str) -> str:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:  # gone meanwhile
        return "gone"
    found = next((line.split(":\t", 1)[1] for line in lines if line.startswith(f"{key}:\t")), "?")
    return _plain(found.split()[0] if found.split() else "?")


def _namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return ""


def _list(entries: list[str], separator: str = ", ") -> str:
    shown = entries[:_MOST_PROCESSES]
    more = len(entries) - len(shown)
    return separator.join(shown + ([f"and {more} more"] if more else [])) or "none"


def _plain(text: str) -> str:
    """Without anything that a terminal could take for its own."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)[:_MOST_CHARACTERS]
