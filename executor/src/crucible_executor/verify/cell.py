"""Where controls run: no sandbox, but disposable namespaces without routes, uid 65534, and a cgroup of its own.

A child process of the suite: `python -I -m crucible_executor.verify.cell REPORT_FD CGROUP_PROCS_FILE...`. It joins
the cgroup, takes new namespaces, and PID 1 of them does what two lines of JSON on stdin tell: how to plant the
weakness, and what to run. When stdin ends, PID 1 ends, and with it everything in its PID namespace.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import resource
import socket
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn

from crucible_executor.init_protocol import ProtocolError, ReportKind, ReportReader
from crucible_executor.verify import namespaces
from crucible_executor.verify.namespaces import MS_BIND, MS_NODEV, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT

NOBODY = 65534
_PROGRAM_REPORT_FD = 3
_PROGRAM_FOLDER_FD = 9
_PROGRAM_TRACE_FD = 10
_TRACE_MESSAGES = 64
_TRACE_BYTES = 4096
_KEEP_CAPS, _BOUNDING_DROP, _NO_NEW_PRIVS, _AMBIENT = 8, 24, 38, 47
_LAST_CAPABILITY = 40
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Becomes the supervisor of a cell; returns when it is over."""
    report_fd = int(sys.argv[1])
    for procs in sys.argv[2:]:
        Path(procs).write_text("0")
    namespaces.unshare(namespaces.NEWNS | namespaces.NEWUTS | namespaces.NEWIPC | namespaces.NEWPID | namespaces.NEWNET)
    first = os.fork()
    if first == 0:
        try:
            _Cell(report_fd).live()
        except BaseException as error:  # told to the suite, which says it
            _tell(report_fd, {"failed": f"{type(error).__name__}: {error}"})
            os._exit(1)
        os._exit(0)
    _tell(report_fd, {"pid": first})
    for number in (0, 1, 2, report_fd):
        os.close(number)
    os.waitpid(first, 0)


def _tell(fd: int, what: dict[str, Any]) -> None:
    os.write(fd, json.dumps(what).encode() + b"\n")


class _Cell:
    """PID 1 of a cell."""

    def __init__(self, report_fd: int) -> None:
        self._report_fd = report_fd
        self._orders = os.fdopen(0, "rb")
        self._lie_read, self._lie_write = os.pipe()
        os.fchown(self._lie_write, NOBODY, NOBODY)
        self._trace, self._traced = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._victims: list[int] = []

    def live(self) -> None:
        plan = json.loads(self._orders.readline())
        self._plan = plan
        self._control = plan["control"]
        folder = os.open(plan["folder"], os.O_RDONLY | os.O_DIRECTORY) if self._control["inherited_folder"] else -1
        canary = os.open(plan["folder"] + "/canary", os.O_RDONLY)
        _build_root(plan, self._control)
        if self._control["victims"]:
            self._victims = [self._start_victim(canary) for _ in range(2)]
        os.close(canary)
        _tell(self._report_fd, {"victims": self._victims})
        orders = json.loads(self._orders.readline())
        for name, content in orders["files"].items():
            path = Path("/workspace", name)
            path.write_bytes(base64.b64decode(content))
            os.chown(path, NOBODY, NOBODY)
        program = self._start(orders, folder)
        for number in (1, 2):
            os.close(number)
        ended = self._wait(program)
        _tell(self._report_fd, {"ended": ended, "trace": self._messages()})
        self._orders.read()  # until the suite has seen enough

    def _messages(self) -> list[str]:
        """What came over the connection of a trace that the program had."""
        self._trace.setblocking(False)
        found: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while len(found) < _TRACE_MESSAGES:
                found.append(self._trace.recv(_TRACE_BYTES).hex())
        return found

    def _start_victim(self, canary: int) -> int:
        alive, executed = os.pipe()  # closes when the victim is what it shall be
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(canary, 0)
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            if self._control["report_in_victim"]:
                os.dup2(self._lie_write, _PROGRAM_REPORT_FD)
            _become_nobody((), new_privileges=False)
            command = self._plan["victim_command"]
            os.execve(command[0], command, self._plan["victim_environment"])  # noqa: S606  # no shell wanted
        os.close(executed)
        os.read(alive, 1)
        os.close(alive)
        return child

    def _start(self, orders: dict[str, Any], folder: int) -> int:
        child = os.fork()
        if child == 0:
            if self._control["reporter_reachable"]:
                _report_as_nobody(lambda: self._become_program(orders, folder))
            self._become_program(orders, folder)
        return child

    def _become_program(self, orders: dict[str, Any], folder: int) -> NoReturn:
        control = self._control
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        if control["merged"]:
            os.dup2(1, 2)
        keep = []
        if control["report_fd"]:
            os.dup2(self._lie_write, _PROGRAM_REPORT_FD)
            keep.append(_PROGRAM_REPORT_FD)
        if folder >= 0:
            os.dup2(folder, _PROGRAM_FOLDER_FD)
            keep.append(_PROGRAM_FOLDER_FD)
        if control["trace_fd"]:
            os.dup2(self._traced.fileno(), _PROGRAM_TRACE_FD)
            keep.append(_PROGRAM_TRACE_FD)
        for number in range(3, 64):
            if number not in keep:
                with contextlib.suppress(OSError):
                    os.close(number)
        if control["own_names"]:
            namespaces.unshare(namespaces.NEWUTS)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (control["open_files"],) * 2)
        _become_nobody(tuple(control["capabilities"]), new_privileges=control["setuid"])
        os.chdir("/workspace")
        os.execve("/usr/bin/python3", ["python3", "main.py"], orders["env"])  # noqa: S606  # no shell wanted

    def _wait(self, program: int) -> list[Any]:
        while True:
            ended, status = os.wait()
            if ended == program or (self._control["first_end"] and ended not in self._victims):
                break
        os.set_blocking(self._lie_read, False)
        reader = ReportReader()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._lie_read, 65536):
                try:
                    for report in reader.feed(data):
                        if report.kind is ReportKind.ENDED:
                            return ["exited", report.b & 0xFF]
                except ProtocolError as error:
                    return ["failed", str(error)]
        code = os.waitstatus_to_exitcode(status)
        if self._control["reporter_reachable"] and code < 0:
            return ["failed", "what reports the end was killed"]
        return ["exited", code] if code >= 0 else ["signalled", -code]


def _report_as_nobody(start: Any) -> NoReturn:
    child = os.fork()
    if child == 0:
        start()
    _become_nobody((), new_privileges=False)
    for number in (1, 2):
        os.close(number)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _become_nobody(capabilities: tuple[int, ...], *, new_privileges: bool) -> None:
    if not new_privileges:
        _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_KEEP_CAPS, 1, 0, 0, 0)
    for one in range(_LAST_CAPABILITY + 1):
        if one not in capabilities and not new_privileges:
            _libc.prctl(_BOUNDING_DROP, one, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    low = sum(1 << one for one in capabilities if one < 32)
    high = sum(1 << (one - 32) for one in capabilities if one >= 32)
    header = ctypes.create_string_buffer(struct.pack("<II", 0x20080522, 0))
    data = ctypes.create_string_buffer(struct.pack("<IIIIII", low, low, low, high, high, high))
    if _libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    for one in capabilities:
        _libc.prctl(_AMBIENT, 2, one, 0, 0)


def _build_root(plan: dict[str, Any], control: dict[str, Any]) -> None:
    """The image, read-only, with fresh /proc, /dev, /workspace and /tmp, and what is planted; the host's root goes."""
    root = plan["root"]
    namespaces.mount("none", "/", None, MS_REC | MS_PRIVATE)
    Path(root).mkdir(mode=0o755)
    namespaces.mount(plan["rootfs"], root, None, MS_BIND | MS_REC)
    namespaces.mount("none", root, None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    namespaces.mount("proc", f"{root}/proc", "proc", 0)
    for name, mode in (("dev", "0755"), ("workspace", "0777"), ("tmp", "1777")):
        namespaces.mount("cell", f"{root}/{name}", "tmpfs", MS_NODEV if name != "dev" else 0, f"mode={mode}")
    shared = f"{root}/dev/shm"  # noqa: S108  # the cell's own
    Path(shared).mkdir()
    namespaces.mount("cell", shared, "tmpfs", MS_NODEV, "mode=1777")
    nodes = [("null", 3), ("zero", 5), ("urandom", 9), ("random", 8)]
    if control["device"]:
        nodes.append(("kmsg", 3))  # by its name a device of the host, by its number /dev/null
    for name, minor in nodes:
        os.mknod(f"{root}/dev/{name}", 0o20666, os.makedev(1, minor))
        Path(f"{root}/dev/{name}").chmod(0o666)
    if control["bait"]:
        Path(root + plan["folder"]).mkdir(parents=True)
        namespaces.mount(plan["folder"], root + plan["folder"], None, MS_BIND)
        for name in ("dev/shm", "tmp", "workspace"):
            Path(f"{root}/{name}/left-by-another").write_text(plan["shared"])
    if control["writable_root"]:
        namespaces.mount(plan["folder"] + "/etc", f"{root}/etc", None, MS_BIND)
    os.chdir(root)
    namespaces.pivot_root(".", ".")
    namespaces.unmount(".")
    os.chdir("/")


if __name__ == "__main__":
    main()
