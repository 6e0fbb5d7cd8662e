"""What this machine needs to run Crucible, checked one by one. Set-up and doctor share the shell's part of the list."""

import contextlib
import http.client
import json
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from crucible_deploy import record, users
from crucible_deploy.images import ImageStore
from crucible_deploy.layout import PROCESSES, TRACE_READER, Layout
from crucible_deploy.paths import MARKER
from crucible_deploy.rootfs import PYTHON, RECIPES
from crucible_deploy.sandbox_check import SandboxError, start_sandbox
from crucible_deploy.tree_digest import UnfitTreeError

Status = Literal["ok", "todo", "fail"]

_V1_CONTROLLERS = frozenset({"memory", "cpu", "cpuacct", "pids"})
_MOST_DOCKER_BYTES = 4 << 20
_MOST_METRICS_BYTES = 4 << 20
_BREAKERS = re.compile(r'^crucible_executor_engine_breaker_open\{engine="([^"]+)"\} (\S+)$', re.MULTILINE)
_V2_CONTROLLERS = frozenset({"memory", "cpu", "pids"})


@dataclass(frozen=True)
class Check:
    """What was found of one thing.

    Attributes:
        name: the thing.
        status: `ok`; `todo`: `make setup` mends it; `fail`: it cannot.
        found: what is there.
        mend: what to do; empty when it is ok.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


def run_checks(layout: Layout) -> Iterator[Check]:
    """Checks everything, the cheap things first, and changes nothing; about two seconds.

    A sandbox is started only as root, and only when there is a runsc and an image to start it with.
    """
    machine = list(machine_checks(layout))
    yield from machine
    yield cgroups()
    image = image_check(layout)
    yield image
    fit = {check.name for check in (*machine, image) if check.status == "ok"}
    yield sandbox(layout, {"root", "runsc", "image"} - fit)
    yield docker()
    yield more_images(layout)
    if is_running(layout):
        yield engines(layout.admin_address("executor"))
    yield home(layout)
    yield users_check()
    yield ports(layout)


def machine_checks(layout: Layout) -> Iterator[Check]:
    """The list that set-up goes through before it changes anything (`machine_checks.sh`)."""
    environment = dict(os.environ) | {"CRUCIBLE_CACHE": str(layout.paths.cache), "CRUCIBLE_HOME": str(layout.home)}
    script = Path(__file__).with_name("machine_checks.sh")
    done = subprocess.run(
        ["/bin/sh", str(script)], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    for line in done.stdout.splitlines():
        status, name, found, mend = line.split("\t")
        yield Check(name, _status(status), found, mend)
    if done.returncode != 0:
        yield Check(
            "checks", "fail", f"{script.name} ended with {done.returncode}: {done.stderr.strip()[-200:]}", "report it"
        )


def _status(text: str) -> Status:
    return "ok" if text == "ok" else "todo" if text == "todo" else "fail"


def cgroups(mountinfo: Path = Path("/proc/self/mountinfo")) -> Check:
    """Whether the controllers that bound a sandbox are there, on cgroup v1 (also hybrid) or v2."""
    v1: set[str] = set()
    v2: set[str] = set()
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup":
            v1 |= _V1_CONTROLLERS & set(options.split(","))
        elif kind == "cgroup2":
            v2 |= _V2_CONTROLLERS & _controllers(Path(before.split()[4]))
    if v1 == _V1_CONTROLLERS:
        return Check("cgroups", "ok", "version 1: " + ", ".join(sorted(v1)))
    if v2 == _V2_CONTROLLERS:
        return Check("cgroups", "ok", "version 2: " + ", ".join(sorted(v2)))
    missing = sorted(_V1_CONTROLLERS - v1 if v1 else _V2_CONTROLLERS - v2)
    return Check(
        "cgroups",
        "fail",
        f"version {1 if v1 else 2} lacks {', '.join(missing)}",
        "mount /sys/fs/cgroup with these controllers; in a container, give it the host's cgroup namespace",
    )


def _controllers(mount: Path) -> set[str]:
    try:
        return set((mount / "cgroup.controllers").read_text().split())
    except OSError:
        return set()


def image_check(layout: Layout) -> Check:
    """Whether the root file system is there, made by the current recipe, and every byte of it as its digest says."""
    store = ImageStore(layout.paths.images)
    manifest = store.manifest(PYTHON.name)
    if manifest is None:
        return Check("image", "todo", f"no {PYTHON.name} image", "make setup")
    if manifest.recipe != PYTHON.digest:
        return Check("image", "todo", f"{PYTHON.name} is made by an older recipe", "make setup")
    try:
        store.verify(manifest)
    except (UnfitTreeError, OSError) as error:
        return Check("image", "fail", str(error), f"remove {store.rootfs(manifest).parent}, then make setup")
    return Check("image", "ok", f"Python {manifest.python}, {manifest.digest[:19]}…, every byte verified")


def more_images(layout: Layout) -> Check:
    """Which images there are beside the one that set-up builds; without them Crucible is as fit as with them."""
    store = ImageStore(layout.paths.images)
    found = [
        f"{name}: {'built' if store.manifest(name) else f'crucible images build {name}'}"
        for name in RECIPES
        if name != PYTHON.name
    ]
    return Check("more images", "ok", ", ".join(found))


def sandbox(layout: Layout, missing: set[str]) -> Check:
    """Whether a real sandbox starts, computes and ends."""
    if missing:
        return Check("sandbox", "todo", f"not tried for want of: {', '.join(sorted(missing))}", "mend these first")
    store = ImageStore(layout.paths.images)
    manifest = store.manifest(PYTHON.name)
    if manifest is None:
        return Check("sandbox", "todo", "the image is gone", "make setup")
    try:
        kernel = start_sandbox(layout.paths.runsc, store.rootfs(manifest))
    except (SandboxError, OSError) as error:
        return Check("sandbox", "fail", str(error), "see https://gvisor.dev/docs/user_guide/faq for what runsc needs")
    return Check("sandbox", "ok", f"started one; its kernel says {kernel}")


def docker(path: Path = Path("/var/run/docker.sock")) -> Check:
    """Which engines a Docker daemon adds here; without one Crucible is as fit as with it."""
    try:
        with _UnixConnection(path) as connection:
            connection.request("GET", "/info")
            info = json.loads(connection.getresponse().read(_MOST_DOCKER_BYTES))
        version, runtimes = str(info["ServerVersion"]), set(info["Runtimes"])
    except FileNotFoundError:
        return Check("docker", "ok", f"no {path}: the engines docker and docker-gvisor are not offered")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return Check("docker", "ok", f"{path} does not answer ({error}): docker and docker-gvisor are not offered")
    offered = [name for name, runtime in (("docker", "runc"), ("docker-gvisor", "runsc")) if runtime in runtimes]
    lacking = "" if "runsc" in runtimes else "; docker-gvisor needs a runtime named runsc in /etc/docker/daemon.json"
    return Check("docker", "ok", f"version {version}, for {', '.join(offered) or 'no engine'}{lacking}")


def engines(executor: str) -> Check:
    """Whether an engine of the running executor fails again and again; `executor` is its admin address."""
    try:
        with contextlib.closing(http.client.HTTPConnection(executor, timeout=3)) as connection:
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read(_MOST_METRICS_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return Check("engines", "fail", f"the executor's metrics cannot be read: {error}", "see crucible status")
    failing = [match[1] for match in _BREAKERS.finditer(metrics) if float(match[2])]
    if failing:
        mend = "see crucible status for the reason; it is tried again by itself"
        return Check("engines", "fail", f"{', '.join(failing)} failed again and again and is closed", mend)
    return Check("engines", "ok", "no engine of the running executor fails")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket, given up after some seconds."""

    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=3)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def home(layout: Layout) -> Check:
    """Whether the home is Crucible's, or can become so."""
    folder = layout.home
    if not folder.exists():
        return Check("home", "ok", f"{folder}, made by crucible up")
    try:
        foreign = not (folder / MARKER).is_file() and any(folder.iterdir())
    except OSError as error:
        return Check("home", "fail", f"{folder}: {error.strerror}", "run it as root")
    if foreign:
        return Check("home", "fail", f"{folder} was not made by Crucible", "set CRUCIBLE_HOME to a new folder")
    return Check("home", "ok", str(folder))


def users_check() -> Check:
    """Whether the processes' users are there, or will be made."""
    names = [users.PREFIX + process for process in (*PROCESSES, TRACE_READER) if process != "executor"]
    missing = [name for name in names if not _exists(name)]
    if missing:
        return Check("users", "ok", f"crucible up makes {', '.join(missing)}")
    return Check("users", "ok", ", ".join(names))


def _exists(name: str) -> bool:
    try:
        return pwd.getpwnam(name).pw_uid > 0
    except KeyError:
        return False


def ports(layout: Layout, running: Callable[[Layout], bool] | None = None) -> Check:
    """Whether the ports on loopback are free, or in use by Crucible itself."""
    taken = [str(port) for port in layout.ports() if not _is_free(port)]
    if not taken:
        return Check("ports", "ok", f"127.0.0.1: {', '.join(map(str, layout.ports()))} are free")
    if (running or is_running)(layout):
        return Check("ports", "ok", "in use by the running stack")
    return Check(
        "ports",
        "fail",
        f"127.0.0.1: {', '.join(taken)} in use by something else",
        "stop it, or set CRUCIBLE_PORT_OFFSET to move all ports by a number",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def is_running(layout: Layout) -> bool:
    """Whether the stack of this home runs; False too for somebody who may not know."""
    try:
        current = record.read(layout)
    except OSError:
        return False
    return current is not None and current.supervisor.alive


def as_json(checks: list[Check]) -> str:
    """The checks for a program: `{"fit": bool, "checks": [{"name", "status", "found", "mend"}, …]}`."""
    return json.dumps({"fit": is_fit(checks), "checks": [vars(check) for check in checks]}, indent=2)


def is_fit(checks: list[Check]) -> bool:
    """Whether the machine can run Crucible as it is."""
    return all(check.status == "ok" for check in checks)
