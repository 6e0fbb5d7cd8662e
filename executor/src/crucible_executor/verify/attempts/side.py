"""Side information: the one family where the program's output is looked at, for secrets that the suite planted."""

from __future__ import annotations

from crucible_executor.verify.model import Attempt, Control, Family

_HOST_NAME = """
say(socket.gethostname() + " " + " ".join(os.uname()))
for path in ("/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/etc/hostname", "/etc/hosts"):
    say(tried(read, path))
"""

_HOST_KERNEL = """
say(" ".join(os.uname()))
for path in ("/proc/version", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/version", "/proc/cmdline"):
    say(tried(read, path))
"""

_BOOT_ID = """
for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/sys/class/dmi/id/product_uuid"):
    say(tried(read, path))
"""

_ENVIRONMENT = """
say(repr(dict(os.environ)))
for pid in ("self", "thread-self", 1, os.getppid()):
    say(tried(read, f"/proc/{pid}/environ"))
    say(tried(read, f"/proc/{pid}/cmdline"))
"""

_OTHER_TENANTS = """
for pid in pids():
    say(tried(read, f"/proc/{pid}/cmdline"))
    say(tried(read, f"/proc/{pid}/environ"))
    say(tried(os.readlink, f"/proc/{pid}/cwd"))
"""

_HOST_PATHS = """
for name in ("mountinfo", "mounts", "cgroup", "maps", "fdinfo/0", "cpuset"):
    for pid in ["self"] + AIM["inits"]:
        say(tried(read, f"/proc/{pid}/{name}"))
for fd in range(0, 64):
    say(tried(os.readlink, f"/proc/self/fd/{fd}"))
for pid in AIM["inits"]:
    say(tried(os.readlink, f"/proc/{pid}/exe"))
"""

_SOCKETS = """
for name in ("unix", "tcp", "tcp6", "udp", "raw", "packet", "netlink", "route", "arp"):
    for at in ["/proc/net/", "/proc/self/net/"] + [f"/proc/{pid}/net/" for pid in AIM["inits"]]:
        say(tried(read, at + name))
"""

_SHARED_MEMORY = """
for folder in ("/dev/shm", "/tmp", "/var/tmp", "/dev/mqueue", "/run", "/run/shm"):
    for name in tried(os.listdir, folder) or ():
        say(name)
        tried(lambda: say(read(f"{folder}/{name}")))
say(tried(read, "/proc/sysvipc/shm"))
"""

ATTEMPTS = (
    Attempt("host-name", Family.SIDE, "the host's name is known", _HOST_NAME, ("leaks",), Control()),
    Attempt(
        "host-kernel", Family.SIDE, "the release of the host's kernel is known",
        _HOST_KERNEL, ("leaks",), Control(),
    ),
    Attempt("boot-id", Family.SIDE, "the host can be told from others by its boot id", _BOOT_ID, ("leaks",), Control()),
    Attempt(
        "executor-environment", Family.SIDE, "a secret of the executor's environment is known",
        _ENVIRONMENT, ("leaks",), Control(inherited_environment=True),
    ),
    Attempt(
        "other-tenants", Family.SIDE, "arguments or environment of another run are known",
        _OTHER_TENANTS, ("leaks",), Control(victims=True),
    ),
    Attempt(
        "host-paths", Family.SIDE, "names of the executor's folders and cgroups are known",
        _HOST_PATHS, ("leaks",), Control(),
    ),
    Attempt(
        "host-sockets", Family.SIDE, "the name of a socket of the host is known",
        _SOCKETS, ("leaks",), Control(listeners=True),
    ),
    Attempt(
        "shared-memory", Family.SIDE, "what another run left in shared memory or a temporary folder is known",
        _SHARED_MEMORY, ("leaks",), Control(bait=True),
    ),
)  # fmt: skip
