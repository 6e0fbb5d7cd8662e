"""Where the running stack keeps things: the folders, files and ports of one home."""

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crucible_deploy.paths import DEFAULT_HOME, MARKER, Paths, mark

PROCESSES = ("storage", "monitor", "executor", "worker", "gateway")
"""In the order in which they start; each needs those before it."""

TRACE_READER = "trace"
"""The executor's child that reads traces: a user of its own, and no folder, key or port."""

_GRPC_PORTS = {"gateway": 8443, "storage": 9101, "monitor": 9102, "executor": 9103}
_ADMIN_PORTS = {"gateway": 9190, "storage": 9191, "monitor": 9192, "executor": 9193, "worker": 9194}


class LayoutError(Exception):
    """The home cannot be used; the text is one line that says what to do."""


@dataclass(frozen=True)
class Layout:
    """Folders, files and ports of the stack of one home.

    Attributes:
        paths: home and cache.
        port_offset: added to every port, so that several stacks can run beside each other; 0 to 50,000.
    """

    paths: Paths
    port_offset: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Layout":
        """What `CRUCIBLE_HOME`, `CRUCIBLE_CACHE` and `CRUCIBLE_PORT_OFFSET` name.

        Raises:
            LayoutError: one of them is malformed.
        """
        text = environment.get("CRUCIBLE_PORT_OFFSET") or "0"
        if not text.isascii() or not text.isdigit() or int(text) > 50_000:
            raise LayoutError(f"CRUCIBLE_PORT_OFFSET must be a whole number from 0 to 50000, not {text[:40]!r}")
        try:
            return cls(Paths.of(environment), int(text))
        except ValueError as error:
            raise LayoutError(str(error)) from None

    @property
    def home(self) -> Path:
        """The home, 0755 root."""
        return self.paths.home

    @property
    def database_file(self) -> Path:
        """Names storage's database, `postgresql://…`, where the operator wants one; 0600 root."""
        return self.home / "database.url"

    @property
    def artifacts_file(self) -> Path:
        """Names storage's bucket for artifacts, with its credentials, where the operator wants one; 0600 root."""
        return self.home / "artifacts.toml"

    @property
    def pki(self) -> Path:
        """The authority, the processes' certificates and the public halves of the signing keys."""
        return self.home / "pki"

    @property
    def envs(self) -> Path:
        """One root-owned environment per process."""
        return self.home / "envs"

    @property
    def log(self) -> Path:
        """One log per process, 0700 root."""
        return self.home / "log"

    @property
    def run(self) -> Path:
        """The supervisor's lock and record."""
        return self.home / "run"

    @property
    def client_file(self) -> Path:
        """Address, first admin key and authority for the client, 0600 root."""
        return self.home / "client.toml"

    @property
    def runtime(self) -> Path:
        """What dies with the machine, on tmpfs; each home has its own, so that no stack sweeps another's sandboxes."""
        if self.home == DEFAULT_HOME:
            return self.paths.run
        return self.paths.run.with_name(f"crucible-{self.instance}")

    @property
    def instance(self) -> str:
        """Short name of this home, for what lives outside it: `crucible` or 8 hex digits of the home's digest."""
        if self.home == DEFAULT_HOME:
            return "crucible"
        return hashlib.sha256(os.fsencode(self.home)).hexdigest()[:8]

    @property
    def sandboxes(self) -> Path:
        """The executor's folder for what sandboxes need while they live, 0700 root."""
        return self.runtime / "executor"

    @property
    def cgroup(self) -> str:
        """Name of the cgroup that holds those of the sandboxes, in each hierarchy."""
        return "crucible" if self.home == DEFAULT_HOME else f"crucible-{self.instance}"

    @property
    def trace_cgroup(self) -> str:
        """Name of the cgroup that holds that of the reader of traces, in each hierarchy."""
        return f"{self.cgroup}-trace"

    def state(self, process: str) -> Path:
        """A process's own folder, 0700, owned by its user."""
        return self.home / "state" / process

    def environment(self, process: str) -> Path:
        """A process's Python environment."""
        return self.envs / process

    def log_file(self, process: str) -> Path:
        """A process's log."""
        return self.log / f"{process}.log"

    def address(self, process: str) -> str:
        """Where a process serves gRPC, on loopback."""
        return f"127.0.0.1:{_GRPC_PORTS[process] + self.port_offset}"

    def admin_address(self, process: str) -> str:
        """Where a process serves health and metrics as plain HTTP, on loopback."""
        return f"127.0.0.1:{_ADMIN_PORTS[process] + self.port_offset}"

    def ports(self) -> list[int]:
        """Every port that the stack listens on."""
        return [port + self.port_offset for port in (*_GRPC_PORTS.values(), *_ADMIN_PORTS.values())]


def make_home(layout: Layout) -> None:
    """Makes the home and the folders in it that belong to root; idempotent, independent of the umask.

    Raises:
        LayoutError: the home is somebody else's folder, or other users could not reach it.
    """
    home = layout.home
    try:
        if home.is_dir() and any(home.iterdir()) and not (home / MARKER).is_file():
            raise LayoutError(f"{home} was not made by Crucible; set CRUCIBLE_HOME to an empty or new folder")
        home.parent.mkdir(parents=True, exist_ok=True)
        folder(home, 0o755)
        mark(home)
        for path, mode in ((layout.pki, 0o755), (home / "state", 0o755), (layout.envs, 0o755)):
            folder(path, mode)
        for path in (layout.log, layout.run):
            folder(path, 0o700)
        folder(layout.runtime, 0o755)
        mark(layout.runtime)
    except OSError as error:
        raise LayoutError(f"cannot prepare {home}: {error.strerror}: {error.filename}") from None
    _check_reachable(home)


def folder(path: Path, mode: int, uid: int = 0, gid: int = 0) -> None:
    """Makes one folder with exactly this mode and owner, or corrects them.

    The folder's parent must be writable by root alone: nobody can put a link in the place of `path`.

    Raises:
        LayoutError: it cannot be made or changed, or something else has its name.
    """
    try:
        if not path.is_dir():
            path.mkdir(mode=0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            # Only what differs: on a read-only file system its process says best what it misses.
            if (found.st_uid, found.st_gid) != (uid, gid):
                os.fchown(descriptor, uid, gid)
            if stat.S_IMODE(found.st_mode) != mode:
                os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LayoutError(f"the folder {path} cannot be used: {error.strerror}") from None


def _check_reachable(home: Path) -> None:
    for part in home.parents:
        if not part.stat().st_mode & 0o001:
            raise LayoutError(
                f"other users cannot enter {part}, so the processes could not reach {home}; "
                "set CRUCIBLE_HOME to a folder that all users can reach"
            )
