"""What the sandbox's kernel is told to trace: a runsc `--pod-init-config` (gVisor, `pkg/sentry/seccheck/config.go`).

Only points that an action is made of: nothing that a program does all the time, such as reading, writing or polling.
System calls are traced where they enter, so that an attempt that blocks, fails or does not exist is seen too; those
that make a process also where they return, for only there it is known that the limit refused one.
"""

from __future__ import annotations

import functools
import json
import platform
from pathlib import Path

from crucible_executor.tracing import refusals

PRIVILEGED = {
    101: "ptrace", 103: "syslog", 105: "setuid", 106: "setgid", 113: "setreuid", 114: "setregid", 116: "setgroups",
    117: "setresuid", 119: "setresgid", 122: "setfsuid", 123: "setfsgid", 126: "capset", 133: "mknod",
    155: "pivot_root", 161: "chroot", 163: "acct", 164: "settimeofday", 165: "mount", 166: "umount2", 167: "swapon",
    169: "reboot", 170: "sethostname", 172: "iopl", 173: "ioperm", 175: "init_module", 176: "delete_module",
    227: "clock_settime", 246: "kexec_load", 248: "add_key", 250: "keyctl", 259: "mknodat", 272: "unshare",
    298: "perf_event_open", 304: "open_by_handle_at", 308: "setns", 310: "process_vm_readv", 311: "process_vm_writev",
    312: "kcmp", 313: "finit_module", 320: "kexec_file_load", 321: "bpf", 323: "userfaultfd", 425: "io_uring_setup",
    428: "open_tree", 429: "move_mount", 430: "fsopen", 432: "fsmount", 438: "pidfd_getfd",
}  # fmt: skip
"""System calls that only a privileged program, or one that wants to be, makes: x86-64's numbers."""

NAMED = {2: "open", 59: "execve", 85: "creat", 257: "openat", 322: "execveat"}
"""System calls whose message has names in it. Of one with a name that is no UTF-8 (a path, an argument, the folder that
the program is in) this kernel sends nothing and counts nothing, so that their bare numbers are asked for too."""

# A full socket makes the kernel wait 0.1, 0.2, 0.4, 0.8, 1.6 and then 12 times 2 ms, longer than the reader ever rests
# (`reader.REST_S`), then drop and count the message: a program that floods its trace is slowed down rather than unseen,
# and a reader that hangs cannot hold a program for long.
_RETRIES = 17
_BACKOFF = "100us"
_MAX_BACKOFF = "2ms"


def supported() -> bool:
    """Whether the numbers above are this machine's."""
    return platform.machine() == "x86_64"


def session(endpoint: Path) -> bytes:
    """The configuration that sends the trace to the socket at `endpoint`."""
    sink = {
        "name": "remote",
        "config": {
            "endpoint": str(endpoint), "retries": _RETRIES, "backoff": _BACKOFF, "backoff_max": _MAX_BACKOFF
        },
        "ignore_setup_error": True,  # a run without a trace says so; it is not refused
    }  # fmt: skip
    return b'{"trace_session": {"name": "Default", "points": %s, "sinks": [%s]}}' % (
        _points(),
        json.dumps(sink).encode(),
    )


@functools.cache
def _points() -> bytes:
    points = [
        {"name": "sentry/execve", "context_fields": ["group_id"]},
        {"name": "sentry/clone", "context_fields": ["group_id"]},  # no name, which the program could choose
        *(_syscall(name, "cwd", fd_path=name == "openat") for name in ("open", "openat", "creat")),
        *(_syscall(name) for name in ("execve", "execveat")),
        *(_syscall(f"sysno/{number}") for number in NAMED),
        *(_syscall(name) for name in ("socket", "connect")),
        *(_syscall(f"sysno/{number}") for number in PRIVILEGED),
        *({"name": f"syscall/{name}/exit"} for name in refusals.CALLS),
    ]
    return json.dumps(points).encode()


def _syscall(name: str, *context: str, fd_path: bool = False) -> dict[str, object]:
    point: dict[str, object] = {"name": f"syscall/{name}/enter", "context_fields": ["group_id", *context]}
    if fd_path:
        point["optional_fields"] = ["fd_path"]
    return point
