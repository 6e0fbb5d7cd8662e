"""The executor's own interfaces: the init, its pipes, frames that lie; the module `trace` has those on the trace."""

from __future__ import annotations

from datetime import timedelta

from crucible_executor.model import Limit
from crucible_executor.verify.attempts import trace
from crucible_executor.verify.model import FORGED, Attempt, Control, Family, bounds

_FORGED_FRAME = f"""
def frame(kind, a, b):
    return struct.pack("<4sIIIQQQQ16x", b"RPRT", kind, a, b, 1, 1, 1, 0)
LIE = frame(3, 0, {FORGED}) + frame(4, 0, 0)
"""

_REPORT_FD = (
    _FORGED_FRAME
    + """
for fd in range(3, 256):
    tried(os.write, fd, LIE)
hold()
"""
)

_REPORT_OF_OTHERS = (
    _FORGED_FRAME
    + """
for pid in pids():
    if pid == os.getpid():
        continue
    for fd in range(0, 16):
        def lie():
            path = f"/proc/{pid}/fd/{fd}"
            if "pipe" in os.readlink(path):
                out = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(out, LIE)
        tried(lie)
hold()
"""
)

_OVERSIZED = (
    _FORGED_FRAME
    + """
for fd in range(3, 256):
    for piece in (b"RPRT" + b"\\xff" * 60, b"\\0" * 4096, b"\\xff" * 65536, LIE):
        tried(lambda: (os.set_blocking(fd, False), os.write(fd, piece)))
hold()
"""
)

_KILL_INIT = """
for pid in [os.getppid()] + AIM["inits"]:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGKILL):
        tried(os.kill, pid, number)
time.sleep(0.3)
"""

_TRACE_INIT = """
PTRACE_SEIZE, PTRACE_KILL = 0x4206, 8
for pid in (os.getppid(), 1):
    call("ptrace", PTRACE_SEIZE, pid, None, None)
    call("ptrace", 16, pid, None, None)
    call("ptrace", PTRACE_KILL, pid, None, None)
    def poke():
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(0x400000)
            memory.write(b"\\0" * 4096)
    tried(poke)
time.sleep(0.3)
"""

_CONTROL_PIPE = """
head = struct.pack("<8sIIIIIIQQ", b"CRUINIT2", 2, 0, 0, 32, 64, 0, 0, 0)
frame = head + b"".join(struct.pack("<I", len(a)) + a for a in (b"/bin/sh", b"-c")) + b"END!"
for pid in pids():
    for fd in range(0, 8):
        def lie():
            path = f"/proc/{pid}/fd/{fd}"
            if "pipe" in os.readlink(path) and pid != os.getpid():
                out = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.write(out, frame)
        tried(lie)
tried(os.write, 0, frame)
hold()
"""

_HOLD_OUTPUT = """
if os.fork() == 0:
    os.setsid()
    signal.pause()
for number in (1, 2):
    tried(fcntl.fcntl, number, 1031, 4096)
time.sleep(60)
"""

_LIE = ("end",)

ATTEMPTS = (
    Attempt(
        "forged-report", Family.EXECUTOR, "the recorded end is the one that the program made up",
        _REPORT_FD, _LIE, Control(report_fd=True),
    ),
    Attempt(
        "forged-report-by-proc", Family.EXECUTOR, "the recorded end was written through another process's descriptor",
        _REPORT_OF_OTHERS, _LIE, Control(victims=True, report_in_victim=True),
    ),
    Attempt(
        "oversized-reports", Family.EXECUTOR, "reports that lie about their size or kind spoil the recorded end",
        _OVERSIZED, _LIE, Control(report_fd=True),
    ),
    Attempt(
        "second-program", Family.EXECUTOR, "a second program is handed to the init through its own pipe",
        _CONTROL_PIPE, _LIE, Control(victims=True, report_in_victim=True),
    ),
    Attempt(
        "kill-the-init", Family.EXECUTOR, "the program's end is lost because what reports it was killed",
        _KILL_INIT, _LIE, Control(reporter_reachable=True),
    ),
    Attempt(
        "trace-the-init", Family.EXECUTOR, "the program's end is lost because what reports it was traced",
        _TRACE_INIT, _LIE, no_control="tracing the control's own supervisor could stop the suite",
    ),
    Attempt(
        "held-output", Family.EXECUTOR, "a held pipe keeps the run alive after its deadline", _HOLD_OUTPUT, ("gone",),
        Control(no_deadline=True), ends=frozenset({Limit.WALL_TIME}), limits=bounds(wall_time=timedelta(seconds=3)),
    ),
    *trace.ATTEMPTS,
)  # fmt: skip
