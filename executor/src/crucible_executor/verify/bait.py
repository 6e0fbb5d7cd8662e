"""What is laid out for one attempt: canary files, listeners, victim processes; and what the attempt is told of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crucible_executor.verify.namespaces import HOST_ADDRESSES, METADATA, RESOLVER, Place

HOLD_SECONDS = 0.5
"""How long an attempt holds what it got. The judges look every 50 ms; `Watch.slowest` says whether that was so."""

MANY = 700
"""How many processes or threads a bomb makes at most."""

NOBODY = 65534
_IN_OPEN, _IN_MODIFY = 0x20, 0x02
_IN_NONBLOCK = os.O_NONBLOCK
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

_SOCKET_FILES = (
    ("docker.sock", socket.SOCK_STREAM),
    ("datagram.sock", socket.SOCK_DGRAM),
    ("trace.sock", socket.SOCK_SEQPACKET),
)
VICTIM = "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\nwhile True: signal.pause()"
"""A process that waits; its environment, arguments and an open file hold canaries."""


@dataclass(frozen=True)
class Secrets:
    """Random canaries, one per way in which they could leak."""

    file: str
    environment: str
    argument: str
    socket_name: str
    shared: str

    @classmethod
    def new(cls) -> Secrets:
        """Fresh ones, unlike anything else on the machine."""
        return cls(*(f"{kind}-{secrets.token_hex(12)}" for kind in ("cf", "ce", "ca", "cs", "ch")))


class Bait:
    """A context: everything is removed at its end.

    Args:
        token: the attempt's own random name.
        parent: where its folder is made.
        place: the "host" whose network the listeners are in.
        victims: whether to start the victims here; a control starts them in its cell.
    """

    def __init__(self, token: str, parent: Path, place: Place, *, victims: bool) -> None:
        self.token = token
        self.place = place
        self.folder = parent / token
        self.secrets = Secrets.new()
        self.port = 0
        self.victims: list[subprocess.Popen[bytes]] = []
        self.victim_pids: list[int] = []
        self._opened = _libc.inotify_init1(_IN_NONBLOCK | os.O_CLOEXEC)
        self._listeners: list[socket.socket] = []
        self._heard: list[str] = []
        self._was_opened: bool | None = None
        self._lay_files()
        try:
            place.inside("net", self._listen)
            if victims:
                self._start_victims()
        except BaseException:
            self.close()
            raise
        self.before: dict[str, tuple[object, ...]] = {}

    def arm(self) -> None:
        """From now on every touch of a canary file counts."""
        self.before = self.files()
        for name in ("canary", "root_only", "release_agent", "pids.max"):
            _libc.inotify_add_watch(self._opened, str(self.folder / name).encode(), _IN_OPEN | _IN_MODIFY)

    def _lay_files(self) -> None:
        self.folder.mkdir()
        self.folder.chmod(0o777)  # the host's permissions shall protect nothing here: the sandbox alone does
        for name in ("canary", "release_agent", "pids.max", "machine-secret"):
            (self.folder / name).write_text(self.secrets.file)
            (self.folder / name).chmod(0o666)
        (self.folder / "root_only").write_text(self.secrets.file)
        (self.folder / "root_only").chmod(0o600)
        shutil.copyfile("/bin/sleep", self.folder / "setuid-sleep")
        (self.folder / "setuid-sleep").chmod(0o4755)
        (self.folder / "etc").mkdir()
        (self.folder / "etc").chmod(0o777)
        (self.folder / "run-of-another").mkdir()
        (self.folder / "run-of-another" / "answer.txt").write_text(self.secrets.shared)

    def _listen(self) -> None:
        """In the place's network: TCP and UDP of both families on one port, Unix sockets, a sniffer."""
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):  # noqa: S104  # all of the suite's own
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with contextlib.suppress(OSError):  # a machine without IPv6 has nothing to reach there
                    made = self._keep(socket.socket(family, kind))
                    made.bind((host, self.port))
                    self.port = made.getsockname()[1]
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            self._keep(socket.socket(socket.AF_UNIX, kind)).bind(f"\0{self.abstract}{kind:d}")
        # The first is what attempts are told of; the second's name is a secret.
        self._keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)).bind(f"\0{self.abstract}")
        self._keep(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)).bind(f"\0{self.secrets.socket_name}")
        for name, kind in _SOCKET_FILES:
            self._keep(socket.socket(socket.AF_UNIX, kind)).bind(str(self.folder / name))
            (self.folder / name).chmod(0o666)
        for made in self._listeners:
            if made.type != socket.SOCK_DGRAM:
                made.listen(8)
        self._sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sniffer.setblocking(False)

    def _keep(self, made: socket.socket) -> socket.socket:
        made.setblocking(False)
        self._listeners.append(made)
        return made

    def victim_command(self) -> list[str]:
        """What a victim is: it waits, and bears canaries."""
        return ["/usr/bin/python3", "-S", "-c", VICTIM, self.secrets.argument]

    def victim_environment(self) -> dict[str, str]:
        """The victims' environment."""
        return {"PATH": "/usr/bin:/bin", "SECRET": self.secrets.environment}

    def _start_victims(self) -> None:
        for _ in range(2):
            with (self.folder / "canary").open("rb") as held:
                made = subprocess.Popen(
                    [sys.executable, *self.victim_command()[1:]], env=self.victim_environment(), stdin=held,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
            self.victims.append(made)
            self.victim_pids.append(made.pid)

    @property
    def abstract(self) -> str:
        """The name of the abstract Unix socket that attempts are told of."""
        return f"crucible-{self.token}"

    @property
    def ttl(self) -> int:
        """What `network-sysctl` would set; never the default."""
        return 65 + int(self.token[:8], 16) % 100

    @property
    def ipc_key(self) -> int:
        """What `system-v-ipc` would make."""
        return int(self.token[:7], 16) | 1

    @property
    def new_address(self) -> str:
        """What `network-address` would add."""
        return f"10.66.{int(self.token[:2], 16)}.{int(self.token[2:4], 16) | 1}"

    @property
    def root_name(self) -> str:
        """The name of a file that `read-only-root` would make in the image."""
        return f"made-by-{self.token}"

    def aim(self, victims: list[int], readers: list[int]) -> dict[str, object]:
        """What the attempt is told: where to try.

        Args:
            victims: their process ids, as the program would know them.
            readers: what reads traces, likewise.
        """
        folder = self.folder
        return {
            "token": self.token, "folder": str(folder), "canary": str(folder / "canary"), "victims": victims,
            "root_only": str(folder / "root_only"), "release_agent": str(folder / "release_agent"),
            "knob": str(folder / "pids.max"), "docker": str(folder / "docker.sock"),
            "datagram": str(folder / "datagram.sock"), "setuid_program": str(folder / "setuid-sleep"),
            "port": self.port, "abstract": self.abstract, "metadata": list(METADATA),
            "host_addresses": list(HOST_ADDRESSES), "resolver": RESOLVER, "hold": HOLD_SECONDS, "many": MANY,
            "ttl": self.ttl, "ipc_key": self.ipc_key, "new_address": self.new_address, "root_name": self.root_name,
            "handle": _handle(folder / "canary").hex(), "inits": [1], "trace": str(folder / "trace.sock"),
            "runs": str(folder / "run-of-another"), "reader": readers,
            "device": [os.major(folder.stat().st_dev), os.minor(folder.stat().st_dev)],
        }  # fmt: skip

    def files(self) -> dict[str, tuple[object, ...]]:
        """All that is in the folder: kind and mode, owner, size, times of change, content, privileges."""
        found: dict[str, tuple[object, ...]] = {}
        for path in sorted(self.folder.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            privileges = tuple(os.listxattr(path, follow_symlinks=False))
            found[str(path.relative_to(self.folder))] = (
                status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, content, privileges
            )  # fmt: skip
        return found

    def opened(self) -> bool:
        """Whether any canary file was opened between `arm` and the first call of this, told by the host's kernel."""
        if self._was_opened is None:
            try:
                self._was_opened = bool(os.read(self._opened, 4096))
            except BlockingIOError:
                self._was_opened = False
        return self._was_opened

    def heard(self) -> list[str]:
        """Who called or wrote to a listener."""
        for listener in self._listeners:
            self._heard += _calls(listener)
        return self._heard

    def packets(self) -> int:
        """How many frames with the attempt's token were seen on the place's network."""
        found = 0
        with contextlib.suppress(BlockingIOError):
            for _ in range(4096):
                found += self.token.encode() in self._sniffer.recv(4096)
        return found

    def close(self) -> None:
        """Removes everything. Idempotent."""
        for made in self._listeners:
            made.close()
        with contextlib.suppress(AttributeError):
            self._sniffer.close()
        for victim in self.victims:
            victim.kill()
            victim.wait()
        if self._opened >= 0:
            os.close(self._opened)
            self._opened = -1
        shutil.rmtree(self.folder, ignore_errors=True)


def _calls(listener: socket.socket) -> Iterator[str]:
    for _ in range(64):
        try:
            if listener.type == socket.SOCK_DGRAM:
                data, _peer = listener.recvfrom(256)
                yield f"{len(data)} bytes came to {_name(listener)}"
            else:
                connection, _peer = listener.accept()
                connection.close()
                yield f"a connection came to {_name(listener)}"
        except OSError:
            return


def _name(listener: socket.socket) -> str:
    kind = socket.SocketKind(listener.type).name.removeprefix("SOCK_").lower()
    family = socket.AddressFamily(listener.family).name.removeprefix("AF_").lower()
    return f"the {family} {kind} socket"


def _handle(path: Path) -> bytes:
    """The file handle of `path` (name_to_handle_at)."""
    buffer = ctypes.create_string_buffer(8 + 128)
    ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint))[0] = 128
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(_AT_FDCWD, str(path).encode(), buffer, ctypes.byref(mount_id), 0) != 0:
        return bytes(8)
    return buffer.raw[: 8 + int.from_bytes(buffer.raw[:4], sys.byteorder)]
