"""What a program sees of the isolation that it runs behind: a probe that only looks, and what its answer means.

The probe changes nothing and asks for nothing that it must not have: it also runs without any sandbox, on the host
itself, so that all peers are looked at with the same eyes.
"""

import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from crucible_deploy.bench.errors import BenchError

_CODE = r"""
import json, os, resource, socket

def text(path):
    try:
        with open(path) as file:
            return file.read(65536)
    except (OSError, UnicodeDecodeError):
        return ""

def first(*paths):
    return next((found.strip() for found in map(text, paths) if found.strip()), "")

def kernel_log():
    try:
        import ctypes
        room = ctypes.create_string_buffer(8192)
        length = ctypes.CDLL(None).klogctl(3, room, 8192)
        return room.raw[:max(0, length)].decode(errors="replace")[:200] if length > 0 else ""
    except Exception:
        return ""

def interfaces():
    try:
        return [name for _, name in socket.if_nameindex()]
    except OSError:
        return None

def no_new_privs():
    try:
        import ctypes
        return str(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0))
    except Exception:
        return ""

pids = [name for name in os.listdir("/proc") if name.isdigit()]
token = "FIRST" + "SECOND"
status = dict(line.split(":", 1) for line in text("/proc/self/status").splitlines() if ":" in line)
names = ("CapEff", "CapBnd", "Seccomp")
soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
print(json.dumps({
    "uid": os.getuid(),
    "gid": os.getgid(),
    **{name: status[name].strip() for name in names if name in status},
    "NoNewPrivs": no_new_privs(),
    "release": os.uname().release,
    "version": os.uname().version,
    "log": kernel_log(),
    "interfaces": interfaces(),
    "processes": len(pids),
    "sees_host": any(token in text("/proc/%s/cmdline" % pid) for pid in pids),
    "root_read_only": bool(os.statvfs("/").f_flag & os.ST_RDONLY),
    "root_writable": os.access("/", os.W_OK),
    "memory_limit": first("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    "pids_limit": first("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
    "rlimit_nproc": soft,
}))
"""

_UNLIMITED = 1 << 60
_ALL_CAPABILITIES = (1 << 38) - 1  # of Linux 4.4, the fewest that any kernel here knows


def code(token: str) -> str:
    """The probe's text. It looks for `token` in others' arguments, so its own text does not hold it in one piece."""
    half = len(token) // 2
    return _CODE.replace("FIRST", token[:half]).replace("SECOND", token[half:])


@contextmanager
def marked_process() -> Iterator[str]:
    """A process on the host with a token among its arguments, which it yields: a peer whose program sees it is open."""
    token = secrets.token_hex(16)
    # It waits for the end of a pipe, so that it goes when this process does, however that ends.
    argv = ["/bin/sh", "-c", "read -r _", token]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            yield token
        finally:
            process.kill()


def describe(stdout: bytes) -> dict[str, str]:
    """What the probe said, in words, by subject.

    Raises:
        BenchError: it did not answer.
    """
    try:
        seen: Mapping[str, Any] = json.loads(stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise BenchError(f"the probe inside did not answer: {stdout[-200:]!r}") from None
    return {
        "kernel": _kernel(seen),
        "uid": str(seen["uid"]),
        "capabilities": _capabilities(seen),
        "no_new_privs": {"1": "yes", "0": "no"}.get(seen.get("NoNewPrivs", ""), "not shown"),
        "seccomp": {"2": "filter", "1": "strict", "0": "none"}.get(seen.get("Seccomp", ""), "not shown"),
        "network": _network(seen),
        "host processes": "visible" if seen["sees_host"] else f"hidden ({seen['processes']} seen)",
        "root": "read-only" if seen["root_read_only"] else "writable" if seen["root_writable"] else "not by this user",
        "memory limit": _limit(seen["memory_limit"], 1 << 20, " MiB"),
        "process limit": _processes(seen),
    }


def _kernel(seen: Mapping[str, Any]) -> str:
    if "gVisor" in seen["log"]:
        return f"gVisor ({seen['release']})"
    if seen["release"] == platform.release() and seen["version"] == os.uname().version:
        return "the host's"
    return f"not the host's ({seen['release']})"


def _capabilities(seen: Mapping[str, Any]) -> str:
    if "CapEff" not in seen:
        return "not shown"
    held = int(seen["CapEff"], 16)
    if not held:
        left = int(seen.get("CapBnd", "0"), 16).bit_count()
        return f"none ({left} in the bounding set)" if left else "none"
    return "all" if held & _ALL_CAPABILITIES == _ALL_CAPABILITIES else f"{held.bit_count()}"


def _network(seen: Mapping[str, Any]) -> str:
    if seen["interfaces"] is None:
        return "not shown"
    # A tunnel that the kernel puts into every namespace leads nowhere.
    names = [name for name in seen["interfaces"] if name not in ("sit0", "tunl0", "ip6tnl0", "gre0", "erspan0")]
    return ", ".join(names) or "none"


def _limit(text: str, unit: int, name: str) -> str:
    if not text:
        return "not shown"
    if not text.isdigit() or int(text) >= _UNLIMITED:
        return "none"
    return f"{int(text) // unit}{name}"


def _processes(seen: Mapping[str, Any]) -> str:
    if seen["pids_limit"]:
        return _limit(seen["pids_limit"], 1, "")
    soft = seen["rlimit_nproc"]
    return "none" if soft < 0 or soft >= _UNLIMITED else f"{soft} (rlimit)"
