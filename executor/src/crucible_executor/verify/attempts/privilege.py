"""Privilege: setuid, capabilities, ptrace, scheduling."""

from __future__ import annotations

from crucible_executor.verify.capabilities import NET_RAW, SETFCAP, SETGID, SETUID, SYS_NICE, SYS_PTRACE
from crucible_executor.verify.model import Attempt, Control, Family

_SETUID = """
tried(os.setgroups, [0])
for become in (os.setresgid, os.setresuid):
    tried(become, 0, 0, 0)
tried(os.setreuid, 0, 0)
tried(os.setuid, 0)
call("setfsuid", 0)
tried(append, AIM["root_only"])
hold()
"""

_SETUID_PROGRAM = """
def run(path, *args):
    child = os.fork()
    if child == 0:
        try:
            os.execve(path, [path, *args], dict(os.environ))
        except OSError:
            os._exit(0)
    time.sleep(AIM["hold"])
    tried(os.kill, child, 9)
    tried(os.waitpid, child, 0)
run(AIM["setuid_program"], "5")
for path in ("/bin/su", "/usr/bin/passwd"):
    if os.path.exists(path):
        run(path)
"""

_OWN_SETUID = """
import shutil
for folder in ("/dev/shm", "."):
    path = folder + "/root-sleep"
    if tried(shutil.copy, "/bin/sleep", path):
        tried(os.chown, path, 0, 0)
        tried(os.chmod, path, 0o6755)
        tried(os.setxattr, path, "security.capability", struct.pack("<IIIII", 0x02000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0))
tried(os.setxattr, AIM["canary"], "security.capability", struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0))
"""

_CAPABILITIES = """
header = ctypes.create_string_buffer(struct.pack("<II", 0x20080522, 0))
everything = ctypes.create_string_buffer(struct.pack("<IIIIII", *[0xFFFFFFFF] * 6))
call("capset", header, everything)
for one in range(41):
    call("prctl", 47, 2, one, 0, 0)
call("prctl", 28, 0x3F, 0, 0, 0)
call("prctl", 38, 0, 0, 0, 0)
hold()
"""

_PTRACE = """
for pid in AIM["inits"] + AIM["victims"]:
    for request in (0x4206, 16):
        call("ptrace", request, pid, None, None)
hold()
"""

_VM_READ = """
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
for pid in AIM["victims"]:
    for line in (tried(read, f"/proc/{pid}/maps") or b"").splitlines():
        if b"[stack]" in line:
            high = int(line.split()[0].split(b"-")[1], 16)
            buffer = ctypes.create_string_buffer(16384)
            ours, theirs = Piece(ctypes.addressof(buffer), 16384), Piece(high - 16384, 16384)
            if libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) > 0:
                say(buffer.raw)
"""

_PRIORITY = """
tried(os.setpriority, os.PRIO_PROCESS, 0, -20)
for policy in (os.SCHED_FIFO, os.SCHED_RR):
    try:
        os.sched_setscheduler(0, policy, os.sched_param(50))
    except OSError:
        pass
hold()
"""

_STEAL_DESCRIPTOR = """
for pid in AIM["victims"] + AIM["inits"]:
    pidfd = tried(os.pidfd_open, pid)
    if pidfd is None:
        continue
    for number in range(0, 12):
        fd = system(438, pidfd, number, 0)
        if fd >= 0:
            def take():
                os.lseek(fd, 0, 0)
                say(os.read(fd, 4096))
            tried(take)
"""

ATTEMPTS = (
    Attempt(
        "setuid", Family.PRIVILEGE, "a host's process of the program has user 0",
        _SETUID, ("privilege",), Control(capabilities=(SETUID, SETGID)),
    ),
    Attempt(
        "setuid-program", Family.PRIVILEGE, "a set-user-id program of the host runs as root for it",
        _SETUID_PROGRAM, ("privilege",), Control(bait=True, setuid=True),
    ),
    Attempt(
        "own-setuid-program", Family.PRIVILEGE, "a file of the host gets privileges",
        _OWN_SETUID, ("files",), Control(bait=True, capabilities=(SETFCAP,)),
    ),
    Attempt(
        "capabilities", Family.PRIVILEGE, "a host's process of the program has capabilities",
        _CAPABILITIES, ("privilege",), Control(capabilities=(NET_RAW,)),
    ),
    Attempt(
        "ptrace", Family.PRIVILEGE, "a host's process is traced by the program",
        _PTRACE, ("victims",), Control(victims=True, capabilities=(SYS_PTRACE,)),
    ),
    Attempt(
        "process-vm-readv", Family.PRIVILEGE, "a secret in the memory of a host's process is read",
        _VM_READ, ("leaks",), Control(victims=True, capabilities=(SYS_PTRACE,)),
    ),
    Attempt(
        "priority", Family.PRIVILEGE, "a host's process of the sandbox goes before others",
        _PRIORITY, ("priority",), Control(capabilities=(SYS_NICE,)),
    ),
    Attempt(
        "steal-descriptor", Family.PRIVILEGE, "an open file of a host's process is taken over",
        _STEAL_DESCRIPTOR, ("leaks",), Control(victims=True, capabilities=(SYS_PTRACE,)),
    ),
)  # fmt: skip
