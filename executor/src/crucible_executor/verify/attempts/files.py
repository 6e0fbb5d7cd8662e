"""The file system: links, /proc/*/root, mknod, the read-only root, other runs' files, left-open descriptors."""

from __future__ import annotations

from crucible_executor.verify.capabilities import MKNOD
from crucible_executor.verify.model import Attempt, Control, Family, bounds

_ROOT = """
for folder in ("/", "/etc", "/usr", "/usr/bin", "/lib", "/var", "/root", "/opt", "/bin"):
    tried(append, os.path.join(folder, AIM["root_name"]))
for path in ("/etc/passwd", "/etc/ld.so.preload", "/usr/bin/python3.11"):
    tried(append, path)
call("mount", None, "/", None, 0x1020, None)
tried(append, "/" + AIM["root_name"])
"""

_LINKS = """
for index, target in enumerate((AIM["canary"], "../" * 40 + AIM["canary"].lstrip("/"), AIM["folder"] + "/./canary")):
    for folder in (".", "/dev/shm"):
        link = f"{folder}/link{index}"
        tried(os.symlink, target, link)
        tried(append, link)
        tried(lambda: say(read(link)))
        tried(os.link, target, link + "-hard")
        tried(append, link + "-hard")
"""

_DOTS = """
starts = (".", "/proc/self/cwd", "/proc/self/root", "/workspace/..", "/proc/thread-self/root", "/dev/shm", "/dev/fd/0")
for start in starts:
    path = start + "/.." * 40 + AIM["canary"]
    tried(append, path)
    tried(lambda: say(read(path)))
here = tried(os.open, ".", os.O_PATH)
for _ in range(40):
    here = tried(os.open, "..", os.O_PATH, dir_fd=here) or here
fd = tried(os.open, AIM["canary"].lstrip("/"), os.O_RDWR, dir_fd=here)
if fd is not None:
    os.write(fd, TOKEN.encode())
"""

_OTHERS_ROOT = """
for pid in pids():
    for via in ("root", "cwd", "task/%d/root" % pid):
        path = f"/proc/{pid}/{via}" + ("/.." * 20 if via == "cwd" else "") + AIM["canary"]
        tried(append, path)
        tried(lambda: say(read(path)))
    for fd in tried(os.listdir, f"/proc/{pid}/fd") or ():
        target = tried(os.readlink, f"/proc/{pid}/fd/{fd}") or ""
        if AIM["folder"] in target:
            tried(append, f"/proc/{pid}/fd/{fd}")
"""

_MKNOD = """
import stat
for folder in (AIM["folder"], "/tmp", "/workspace", "/dev", "/dev/shm", "."):
    for name, kind, device in (("null", stat.S_IFCHR, (1, 3)), ("disk", stat.S_IFBLK, AIM["device"])):
        path = f"{folder}/made-{name}"
        tried(os.mknod, path, kind | 0o666, os.makedev(*device))
        tried(os.open, path, os.O_RDONLY | os.O_NONBLOCK)
hold()
"""

_OTHER_RUNS = """
places = ["/workspace", "/workspace/..", "/tmp", "/dev/shm", "/run", "/var/tmp", "/var/lib/crucible", AIM["runs"]]
for pid in pids():
    places += [f"/proc/{pid}/cwd", f"/proc/{pid}/root/workspace", f"/proc/{pid}/root/tmp"]
def peek(path):
    if os.path.isfile(path) and os.path.getsize(path) < 4096:
        say(read(path))
for place in places:
    for name in tried(os.listdir, place) or ():
        path = os.path.join(place, name)
        tried(peek, path)
        for inner in tried(os.listdir, path) or () if os.path.isdir(path) else ():
            tried(peek, os.path.join(path, inner))
"""

_LEFT_OPEN = """
for fd in range(0, 256):
    for flags in (os.O_RDWR, os.O_RDONLY):
        found = tried(os.open, "canary", flags, dir_fd=fd)
        if found is not None:
            tried(os.write, found, TOKEN.encode())
            tried(lambda: say(os.pread(found, 4096, 0)))
    if tried(lambda: (os.fchdir(fd), True)):
        tried(append, "canary")
    tried(lambda: say(os.pread(fd, 4096, 0)) if fd > 2 else None)
"""

_CHANGE = """
canary = AIM["canary"]
tried(append, canary)
tried(os.chmod, canary, 0o4777)
tried(os.truncate, canary, 3)
tried(os.utime, canary, (1, 1))
tried(os.rename, canary, canary + ".moved")
tried(os.unlink, canary)
tried(os.mkdir, AIM["folder"] + "/made")
"""

ATTEMPTS = (
    Attempt(
        "read-only-root", Family.FILES, "the image that all runs share is changed", _ROOT, ("image", "files"),
        Control(writable_root=True),
    ),
    Attempt("canary-by-path", Family.FILES, "a file of the host is changed", _CHANGE, ("files",), Control(bait=True)),
    Attempt(
        "links-out", Family.FILES, "a file of the host is reached by a link",
        _LINKS, ("files", "leaks"), Control(bait=True),
    ),
    Attempt(
        "dots-out", Family.FILES, "a file of the host is reached by `..`",
        _DOTS, ("files", "leaks"), Control(bait=True),
    ),
    Attempt(
        "root-of-others", Family.FILES, "a file of the host is reached through another process's root",
        _OTHERS_ROOT, ("files", "leaks"), Control(bait=True),
    ),
    Attempt(
        "make-device", Family.FILES, "a device is made on the host, or opened", _MKNOD, ("files", "descriptors"),
        Control(bait=True, capabilities=(MKNOD,)),
    ),
    Attempt(
        "files-of-other-runs", Family.FILES, "a secret in another run's files is read", _OTHER_RUNS, ("leaks",),
        Control(bait=True, victims=True), limits=bounds(output_bytes=256 << 10),
    ),
    Attempt(
        "left-open-descriptors", Family.FILES, "a file of the host is reached by a descriptor left open",
        _LEFT_OPEN, ("files", "leaks"), Control(inherited_folder=True),
    ),
)  # fmt: skip
