"""The host's /proc and /sys."""

from __future__ import annotations

from crucible_executor.verify.capabilities import NET_ADMIN, SYS_ADMIN, SYS_PTRACE
from crucible_executor.verify.model import Attempt, Control, Family

_ENVIRONMENTS = """
for pid in pids():
    for name in ("environ", "auxv"):
        say(tried(read, f"/proc/{pid}/{name}"))
"""

_COMMANDS = """
for pid in pids():
    for name in ("cmdline", "comm", "status", "wchan", "stack"):
        say(tried(read, f"/proc/{pid}/{name}"))
"""

_SYSCTL = """
for path in ("/proc/sys/net/ipv4/ip_default_ttl", "/proc/thread-self/../../sys/net/ipv4/ip_default_ttl"):
    def write():
        with open(path, "w") as file:
            file.write(str(AIM["ttl"]))
    tried(write)
call("mount", TOKEN, "/proc/sys", None, 0x1020, None)
tried(write)
"""

_NAMES = """
call("sethostname", TOKEN[:32], len(TOKEN[:32]))
call("setdomainname", TOKEN[:32], len(TOKEN[:32]))
for name in ("hostname", "domainname"):
    tried(append, "/proc/sys/kernel/" + name)
hold()
"""

_OOM_SCORE = """
for pid in AIM["victims"]:
    for name in ("oom_score_adj", "oom_adj"):
        def write():
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write("777" if name == "oom_score_adj" else "13")
        tried(write)
"""

_MEMORY_OF_OTHERS = """
for pid in AIM["victims"]:
    for line in (tried(read, f"/proc/{pid}/maps") or b"").splitlines():
        if b"[stack]" in line:
            low, high = (int(part, 16) for part in line.split()[0].split(b"-"))
            def peek():
                with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                    memory.seek(high - 16384)
                    say(memory.read(16384))
            tried(peek)
"""

_CGROUP_KNOBS = """
names = ("pids.max", "memory.limit_in_bytes", "memory.max", "cpu.max", "cpu.cfs_quota_us")
found = [AIM["knob"]] + [path for name in names for path in glob.glob("/sys/fs/cgroup/**/" + name, recursive=True)]
for path in found:
    def write():
        with open(path, "w") as file:
            file.write("31337")
    tried(write)
"""

_NEW_PROC = """
tried(os.mkdir, "/tmp/p")
for kind in ("proc", "sysfs", "securityfs", "debugfs", "tracefs", "bpf", "devpts", "mqueue"):
    call("mount", TOKEN, "/tmp/p", kind, 0, None)
hold()
"""

ATTEMPTS = (
    Attempt(
        "environments", Family.PROC, "a secret in the environment of a host's process is read",
        _ENVIRONMENTS, ("leaks",), Control(victims=True),
    ),
    Attempt(
        "command-lines", Family.PROC, "a secret in the arguments of a host's process is read",
        _COMMANDS, ("leaks",), Control(victims=True),
    ),
    Attempt(
        "network-sysctl", Family.PROC, "a setting of the host's network is changed",
        _SYSCTL, ("sysctl",), Control(capabilities=(NET_ADMIN,)),
    ),
    Attempt(
        "host-and-domain-name", Family.PROC, "the host's name is changed",
        _NAMES, ("names",), Control(capabilities=(SYS_ADMIN,)),
    ),
    Attempt(
        "oom-score", Family.PROC, "a host's process is made the OOM killer's first choice",
        _OOM_SCORE, ("victims",), Control(victims=True),
    ),
    Attempt(
        "memory-of-others", Family.PROC, "a secret in the memory of a host's process is read",
        _MEMORY_OF_OTHERS, ("leaks",), Control(victims=True, capabilities=(SYS_PTRACE,)),
    ),
    Attempt(
        "cgroup-limits", Family.PROC, "a limit in the host's cgroup tree is changed",
        _CGROUP_KNOBS, ("knob",), Control(bait=True),
    ),
    Attempt(
        "new-proc", Family.PROC, "a fresh /proc, /sys or debugfs of the host is mounted",
        _NEW_PROC, ("mounts",), Control(capabilities=(SYS_ADMIN,)),
    ),
)  # fmt: skip
