"""The trace: its socket, its reader, and what it says. An attempt of these runs only where there is a trace.

Each program does exactly what `TRUTHS` says and then lies about it; the judge compares that with the record.
"""

from __future__ import annotations

from dataclasses import dataclass

from crucible_executor.behaviour import Action
from crucible_executor.verify.model import Attempt, Control, Family, bounds

FORGED = "forged-name"
"""Part of every action that was never done."""

FLOOD = 260_000
"""Traced calls of the flood: more than the reader looks at of one run, so that some of it must be lost."""


@dataclass(frozen=True)
class Truth:
    """What a program really did, of one kind of action; what its record lacks of that must be counted as dropped."""

    action: Action
    count: int


# Messages as gVisor's kernel sends them: a header (its size, kind, dropped), then protobuf.
_MESSAGES = f"""
def varint(n):
    out = b""
    while n >= 128:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])
def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value
def message(kind, *fields):
    return struct.pack("<HHI", 8, kind, 0) + field(1, field(4, 7)) + b"".join(fields)
def opened(name):
    return message(7, field(6, name), field(7, 0o101))
EXECUTED = message(3, field(2, b"/{FORGED}"))
def to_all_descriptors(*messages):
    for fd in range(3, 256):
        for one in messages:
            tried(lambda: (os.set_blocking(fd, False), os.write(fd, one)))
"""

_SOCKET = (
    _MESSAGES
    + f"""
places = [AIM["trace"]]
for folder in ("/", "/run", "/tmp", "/dev/shm", "/workspace"):
    places += glob.glob(folder + "/**/trace.sock", recursive=folder != "/")
for path in places + ["\\0" + AIM["abstract"] + "5"]:
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        made = tried(socket.socket, socket.AF_UNIX, kind)
        if made is not None and tried(lambda: (made.connect(path), True)):
            for one in (b"\\x08\\x01", EXECUTED, opened(b"/{FORGED}")):
                tried(made.send, one)
tried(append, "/tmp/done")
"""
)

_FORGE = (
    _MESSAGES
    + f"""
tried(append, "/tmp/done")
to_all_descriptors(EXECUTED, *[opened(b"/{FORGED}-%d" % n) for n in range(20)])
for fd in (1, 2):
    tried(os.write, fd, opened(b"/{FORGED}"))
"""
)

_ODD_NAMES = (
    _MESSAGES
    + """
odd = [b"\\x1b[2J\\x1b[H\\x1b]0;owned\\x07", b"two\\nlines\\r", b'","more":[1,null,["', b"\\xff\\xfe\\xc3\\x28",
       b"%s%n%s", b"`|<script>|`", "\\u202e\\u2066".encode(), b"\\x9b31m\\x08\\x08", b"y" * 250]
for name in odd:
    os.close(os.open(b"/tmp/" + name, os.O_CREAT | os.O_WRONLY))
to_all_descriptors(EXECUTED, *[opened(b"/tmp/" + name) for name in odd])
"""
)

_NAMELESS_FOLDER = """
os.mkdir(b"/tmp/\\xff")
os.chdir(b"/tmp/\\xff")
for name in ("a", "b", "/tmp/c"):
    open(name, "w").close()
os.chdir("/tmp")
child = os.fork()
if child == 0:
    call("prctl", 15, b"\\xfe", 0, 0, 0)
    for name in ("/tmp/d", b"/tmp/\\xff/e"):
        open(name, "w").close()
    os._exit(0)
os.waitpid(child, 0)
"""

_FLOOD = f"""
become, left = libc.setuid, {FLOOD}
while left:
    become(0)
    left -= 1
"""

_KILL_READER = """
for pid in AIM["reader"]:
    if pid not in (os.getpid(), os.getppid()):
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
            tried(os.kill, pid, number)
            tried(os.killpg, pid, number)
        pidfd = tried(os.pidfd_open, pid)
        if pidfd is not None:
            tried(signal.pidfd_send_signal, pidfd, signal.SIGKILL)
hold()
tried(append, "/tmp/done")
"""

_HUGE = """
for size in (1, 40_000, 120_000, 120_000):
    child = os.fork()
    if child == 0:
        os.execve("/bin/true", ["/bin/true"] + ["x" * size] * 6, {"A": "y" * size})
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("it was not executed")
"""

TRUTHS = {
    "trace-socket": Truth(Action.FILES_WRITTEN, 1),
    "forged-trace": Truth(Action.FILES_WRITTEN, 1),
    "odd-names-in-the-trace": Truth(Action.FILES_WRITTEN, 9),
    "folder-without-a-name": Truth(Action.FILES_WRITTEN, 5),
    "flooded-trace": Truth(Action.PRIVILEGE, FLOOD),
    "kill-the-reader": Truth(Action.FILES_WRITTEN, 1),
    "huge-trace-messages": Truth(Action.PROGRAMS, 4),
}
"""By attempt."""

_TRACE = ("trace",)

ATTEMPTS = (
    Attempt(
        "trace-socket", Family.EXECUTOR, "the socket of a trace is reached", _SOCKET, ("calls", "trace"),
        Control(bait=True), needs_trace=True,
    ),
    Attempt(
        "forged-trace", Family.EXECUTOR, "an action that the program made up is in its record",
        _FORGE, _TRACE, Control(trace_fd=True), needs_trace=True,
    ),
    Attempt(
        "odd-names-in-the-trace", Family.EXECUTOR, "a name that the program chose forges its record or speaks to a "
        "terminal", _ODD_NAMES, _TRACE, Control(trace_fd=True, raw_trace=True), needs_trace=True,
    ),
    Attempt(
        "folder-without-a-name", Family.EXECUTOR, "what is done in a folder whose name is no UTF-8 is lost, and the "
        "record does not say so", _NAMELESS_FOLDER, _TRACE, Control(silent_trace=True), needs_trace=True,
    ),
    Attempt(
        "flooded-trace", Family.EXECUTOR, "a flood of traced calls loses evidence, and the record does not say so",
        _FLOOD, _TRACE, Control(silent_trace=True), needs_trace=True,
    ),
    Attempt(
        "kill-the-reader", Family.EXECUTOR, "the process that reads the traces is killed or stopped",
        _KILL_READER, ("victims", "trace"), Control(victims=True), needs_trace=True,
    ),
    Attempt(
        "huge-trace-messages", Family.EXECUTOR, "actions too large for the trace are lost, and the record does not say "
        "so", _HUGE, _TRACE, Control(silent_trace=True), needs_trace=True, limits=bounds(memory_bytes=256 << 20),
    ),
)  # fmt: skip
