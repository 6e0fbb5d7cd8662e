"""What a message of the trace stream says that the program did."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import posixpath
import re
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from crucible_executor.behaviour import MAX_EXAMPLE_CHARACTERS, Action
from crucible_executor.tracing import wire
from crucible_executor.tracing.points import NAMED, PRIVILEGED
from crucible_executor.tracing.wire import Kind, MalformedError, Value

INIT = 1
"""The init's process id in the sandbox's root namespace: no program can have it."""

_ACCESS_MODE, _CREATE, _TRUNCATE, _PATH_ONLY = 0o3, 0o100, 0o1000, 0o10000000
_SOCKET_TYPE = 0xF
_SHOWN_BYTES = 512
_SHOWN_ARGUMENTS = 8
_REMEMBERED = 4096
_REMEMBERED_BYTES = 1024
_FIRST_BYTES = 12
_CONTEXT_TAG, _NUMBER_TAG = 1 << 3 | 2, 4 << 3
_BYTECODE = re.compile(r"/usr/lib/python3[^/]*/(.*/)?__pycache__/[^/]*")
"""What an interpreter tries to write by itself; the root file system is read-only."""

_NAME_SERVICE = b"unix:/var/run/nscd/socket"
_NO_TARGET = frozenset({"/dev/null", "/dev/zero", "/dev/full", "/dev/tty"})
_PROBES = re.compile(
    r"/(etc/(shadow|gshadow|sudoers|sudoers\.d)-?|root|boot|lib/modules|sys|host|\.dockerenv"
    r"|(var/)?run/(secrets|docker|containerd|crio)|var/lib/(docker|kubelet|crucible)"
    r"|dev/(k?mem|port|kvm|kmsg|mapper|disk|net|(sd|vd|nvme|loop|tun|fuse)\w*)"
    r"|proc/(1|sys|kcore|kallsyms|kmsg|kpage\w*|keys|key-users|modules|sysrq-trigger|timer_list|iomem|ioports|bus|fs"
    r"|irq|acpi|config\.gz|sched_debug|[^/]+/(root|ns|mem|maps|environ|mountinfo|mounts|cgroup|[ug]id_map))"
    r")(/.*)?"
    r"|.*/(docker|containerd|crio|runsc[^/]*|podman)\.sock"
    r"|.*/\.(ssh|aws|kube|docker|gnupg)(/.*)?"
)
_ORDINARY = re.compile(
    r"/sys/(devices/system/(cpu|node)|kernel/mm)(/.*)?"
    r"|/proc/sys/(vm/overcommit_memory|kernel/(ngroups_max|rtsig-max|pid_max|cap_last_cap))"
)
"""What a C library or an interpreter asks by itself, say for the number of CPUs."""
_FAMILIES = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK", 17: "AF_PACKET", 40: "AF_VSOCK"}
_TYPES = {1: "SOCK_STREAM", 2: "SOCK_DGRAM", 3: "SOCK_RAW", 5: "SOCK_SEQPACKET"}
_RAW = 3
_PACKET = 17

Found = tuple[Action, str]
"""An action, and in a few words which; at most `MAX_EXAMPLE_CHARACTERS` of printable ASCII."""


class _Read(NamedTuple):
    """What one message says, whichever run it belongs to; nothing when the init is who does it."""

    found: tuple[Found, ...] = ()
    by_init: bool = False
    is_named: bool = False


class Actions:
    """Reads one run's messages in their order.

    What the init does, and what its child does until it becomes the program, is not the program's: everything before
    the first `execve` of a process that is not the init is passed over, that `execve` included.
    """

    def __init__(self) -> None:
        self._program_runs = False
        self._calls = self._described = 0
        self.unsent = 0
        """How many calls there were, at the run's end, of which the kernel told the number but not the names."""

    def of(self, message: wire.Message) -> tuple[Found, ...]:
        """The actions in one message; none in one that is not known.

        Raises:
            MalformedError: the message is not what its header says.
        """
        kind = message.kind
        if kind not in _READERS:
            return ()
        said = _said(kind, message.payload)
        if said.by_init:
            return ()
        if not self._program_runs:
            self._program_runs = kind == _EXECVE
            return ()
        if said.is_named or kind in _DESCRIBED:
            self._calls += said.is_named
            self._described += kind in _DESCRIBED
            self.unsent = max(0, self._calls - self._described)
        return said.found


def _said(kind: int, payload: memoryview) -> _Read:
    """What a message says. Of most it is known already, for an interpreter's start says the same in every run."""
    if kind == _BARE:  # with addresses, which differ, at its end
        return _said_at_once(bytes(payload[:_FIRST_BYTES])) or _read(kind, payload)
    if len(payload) <= _REMEMBERED_BYTES:
        return _remembered(kind, bytes(payload))
    return _read(kind, payload)


@functools.lru_cache(maxsize=_REMEMBERED)
def _said_at_once(first: bytes) -> _Read | None:
    """What the first bytes of a bare number say; None when more has to be read.

    Every second message is a call whose names come in another, and most of the others are the init's. Only the usual
    form is looked for, a short context and then the number.
    """
    payload = memoryview(first)
    if len(payload) < 2 or payload[0] != _CONTEXT_TAG or (at := 2 + payload[1]) >= len(payload):
        return None
    if _number(_values(payload[2:at]), 4) == INIT:
        return _BY_INIT
    with contextlib.suppress(MalformedError):  # the number has no end within these bytes
        if payload[at] == _NUMBER_TAG and wire.varint(payload, at + 1, len(payload))[0] in NAMED:
            return _NAMED_CALL
    return None


@functools.lru_cache(maxsize=_REMEMBERED)
def _remembered(kind: int, payload: bytes) -> _Read:
    return _read(kind, memoryview(payload))


def _read(kind: int, payload: memoryview) -> _Read:
    values = _values(payload)
    context = _values(_bytes(values, 1))
    if _number(context, 4) == INIT:
        return _BY_INIT
    is_named = kind == _BARE and _number(values, 4) in NAMED
    return _Read(tuple(_READERS[kind](values, context)), is_named=is_named)


def _execve(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:  # noqa: ARG001
    argv = [bytes(value[:_SHOWN_BYTES]) for value in values.get(3, ())[:_SHOWN_ARGUMENTS] if not isinstance(value, int)]
    yield Action.PROGRAMS, _shown(b" ".join([bytes(_bytes(values, 2)[:_SHOWN_BYTES]), *argv[1:]]))


def _clone(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:  # noqa: ARG001
    if _number(values, 3) == _number(values, 4):  # else a thread
        yield Action.PROCESSES, f"process {_number(values, 3) & 0xFFFF_FFFF}"


def _execve_call(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:  # noqa: ARG001
    """An attempt to execute: it only shows that the kernel could tell its names; `_execve` is told when it succeeds."""
    return iter(())


def _open(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:
    name = bytes(_bytes(values, 6))
    if not name:
        return
    if name[:1] != b"/":
        name = (bytes(_bytes(values, 5)) or bytes(_bytes(context, 8))) + b"/" + name
    path = b"/" + posixpath.normpath(name).lstrip(b"/")
    text = path.decode(errors="surrogateescape")
    flags = _number(values, 7)
    writes = flags & _ACCESS_MODE or flags & (_CREATE | _TRUNCATE)
    if writes and not flags & _PATH_ONLY and text not in _NO_TARGET and not _BYTECODE.fullmatch(text):
        yield Action.FILES_WRITTEN, _shown(path)
    if _is_probe(text):
        yield Action.PROBES, _shown(path)


def _socket(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:  # noqa: ARG001
    family, kind = _number(values, 4), _number(values, 5) & _SOCKET_TYPE
    if family == socket.AF_UNIX:  # leads nowhere until it is connected
        return
    shown = f"{_FAMILIES.get(family, family)} {_TYPES.get(kind, kind)}"
    yield Action.SOCKETS, _cut(shown)
    if kind == _RAW or family == _PACKET:
        yield Action.PRIVILEGE, _cut(f"raw socket {shown}")


def _connect(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:  # noqa: ARG001
    address = bytes(_bytes(values, 6)[:_SHOWN_BYTES])
    target = _target(address)
    if target != _NAME_SERVICE:  # the C library asks for it whenever a user's name is wanted
        yield Action.CONNECTIONS, _shown(target)
    path = address[2:].partition(b"\0")[0]
    if address[:2] == b"\x01\x00" and _is_probe(path.decode(errors="surrogateescape")):
        yield Action.PROBES, _shown(path)


def _privileged(values: dict[int, list[Value]], context: dict[int, list[Value]]) -> Iterator[Found]:  # noqa: ARG001
    number, argument = _number(values, 4), _number(values, 5)
    name = PRIVILEGED.get(number)
    if name is not None:
        # An id or a request is worth showing; an address is not, and differs with every run.
        yield Action.PRIVILEGE, f"{name}({argument})" if argument < 1 << 16 else name


_READERS = {
    int(Kind.CLONE): _clone,
    int(Kind.EXECVE): _execve,
    int(Kind.EXECVE_CALL): _execve_call,
    int(Kind.RAW): _privileged,
    int(Kind.OPEN): _open,
    int(Kind.CONNECT): _connect,
    int(Kind.SOCKET): _socket,
}
_BARE, _EXECVE = int(Kind.RAW), int(Kind.EXECVE)
_BY_INIT, _NAMED_CALL = _Read(by_init=True), _Read(is_named=True)
_DESCRIBED = frozenset({int(Kind.OPEN), int(Kind.EXECVE_CALL)})


def _target(address: bytes) -> bytes:
    """A `sockaddr` in words."""
    family = int.from_bytes(address[:2], "little")
    if family == socket.AF_INET and len(address) >= 8:
        (port,) = struct.unpack_from("!H", address, 2)
        return f"{ipaddress.IPv4Address(address[4:8])}:{port}".encode()
    if family == socket.AF_INET6 and len(address) >= 24:
        (port,) = struct.unpack_from("!H", address, 2)
        return f"[{ipaddress.IPv6Address(address[8:24])}]:{port}".encode()
    if family == socket.AF_UNIX:
        path = address[2:]
        return b"unix:@" + path[1:].rstrip(b"\0") if path[:1] == b"\0" else b"unix:" + path.partition(b"\0")[0]
    return f"{_FAMILIES.get(family, family)}".encode()


def _is_probe(path: str) -> bool:
    return _PROBES.fullmatch(path) is not None and _ORDINARY.fullmatch(path) is None


def _values(data: memoryview) -> dict[int, list[Value]]:
    found: dict[int, list[Value]] = {}
    for number, value in wire.fields(data):
        if number in found:
            found[number].append(value)
        else:
            found[number] = [value]
    return found


_ZERO: list[Value] = [0]
_EMPTY: list[Value] = [memoryview(b"")]


def _number(values: dict[int, list[Value]], field: int) -> int:
    value = values.get(field, _ZERO)[-1]
    if not isinstance(value, int):
        raise MalformedError("bytes where a number belongs")
    return value


def _bytes(values: dict[int, list[Value]], field: int) -> memoryview:
    value = values.get(field, _EMPTY)[-1]
    if isinstance(value, int):
        raise MalformedError("a number where bytes belong")
    return value


def _shown(text: bytes) -> str:
    """As printable ASCII, bounded: what a program chose must not speak to a terminal or fill a record."""
    return _cut(text[:_SHOWN_BYTES].decode(errors="surrogateescape").encode("unicode_escape").decode("ascii"))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_EXAMPLE_CHARACTERS else text[: MAX_EXAMPLE_CHARACTERS - 3] + "..."
