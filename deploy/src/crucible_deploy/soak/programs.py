"""The programs of the soak: those that end well, those that fail, those that are ended, and those that misbehave."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from crucible_client import EvaluationSpec, File, Limits, Program

_OPENS_AND_CONNECTS = """
import os, socket
for path in ("/etc/shadow", "/proc/1/environ", "/dev/mem", "/sys/kernel/debug"):
    try:
        open(path).close()
    except OSError:
        pass
try:
    socket.create_connection(("192.0.2.1", 80), 0.1)
except OSError:
    pass
try:
    os.setuid(0)
except OSError:
    pass
"""
_LEAVES_CHILDREN = """
import os, sys, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
print("gone")
"""
_THREADS = """
import threading
threads = [threading.Thread(target=sum, args=(range(1000),)) for _ in range(8)]
for one in threads:
    one.start()
for one in threads:
    one.join()
"""
_WRITES = "import sys\nsys.stdout.write('x' * 200_000)\nsys.stderr.write('y' * 200_000)\n"
_WRITES_TOO_MUCH = "import os\nfor _ in range(40): os.write(1, b'x' * 65536)\n"
_SLEEPS = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
_FILES = """
import os
os.makedirs("out", exist_ok=True)
for number in range(50):
    with open(f"out/{number}", "wb") as file:
        file.write(b"x" * 4096)
with open("/tmp/scratch", "wb") as file:
    file.write(b"x" * (1 << 20))
"""


@dataclass(frozen=True)
class Kind:
    """One kind of program.

    Attributes:
        name: for the report.
        often: how many of a hundred runs are of this kind.
        spec: what is run.
        ends: how each must end: the termination's kind, and the exit code or limit.
        cancelled: whether it is cancelled as soon as it runs.
    """

    name: str
    often: int
    spec: EvaluationSpec
    ends: str
    cancelled: bool = False


def _python(code: str, *, stdin: bytes = b"", limits: Limits | None = None) -> EvaluationSpec:
    return EvaluationSpec(Program("python", (File("main.py", code.encode()),), stdin=stdin), limits or Limits())


KINDS = (
    Kind("prints a line", 40, _python("print('hello')\n"), "Exited 0"),
    Kind("reads its input", 6, _python("print(len(input()))\n", stdin=b"x" * 1000 + b"\n"), "Exited 0"),
    Kind("fails", 8, _python("raise SystemExit(3)\n"), "Exited 3"),
    Kind("raises", 8, _python("1 / 0\n"), "Exited 1"),
    Kind("writes 400 KB", 5, _python(_WRITES), "Exited 0"),
    Kind("writes more than is kept", 2, _python(_WRITES_TOO_MUCH), "Exited 0"),
    Kind("writes files", 5, _python(_FILES), "Exited 0"),
    Kind("starts threads", 4, _python(_THREADS), "Exited 0"),
    Kind("leaves children", 5, _python(_LEAVES_CHILDREN), "Exited 0"),
    Kind("tries what it must not", 5, _python(_OPENS_AND_CONNECTS), "Exited 0"),
    Kind("is killed", 2, _python("import os\nos.kill(os.getpid(), 9)\n"), "Signalled 9"),
    Kind("bash", 4, EvaluationSpec(Program("bash", (File("main.sh", b"echo hello\n"),))), "Exited 0"),
    Kind("other limits", 2, _python("print('hello')\n", limits=Limits(disk_bytes=4 << 20, processes=8)), "Exited 0"),
    Kind(
        "sleeps over its time", 1, _python(_SLEEPS, limits=Limits(wall_time=timedelta(seconds=1))),
        "LimitExceeded WALL_TIME",
    ),
    Kind(
        "takes too much memory", 2, _python("x = b'x' * (400 << 20)\n", limits=Limits(memory_bytes=64 << 20)),
        "LimitExceeded MEMORY",
    ),
    Kind("is cancelled", 1, _python(_SLEEPS), "Cancelled", cancelled=True),
)  # fmt: skip


def mixed(count: int, kinds: tuple[Kind, ...] = KINDS) -> Iterator[Kind]:
    """`count` programs, every hundred of them in the proportion of `often`, spread evenly and always the same."""
    total = sum(kind.often for kind in kinds)
    owed = [0] * len(kinds)
    for _ in range(count):
        owed = [debt + kind.often for debt, kind in zip(owed, kinds, strict=True)]
        chosen = max(range(len(kinds)), key=owed.__getitem__)
        owed[chosen] -= total
        yield kinds[chosen]
