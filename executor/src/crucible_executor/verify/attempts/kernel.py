"""The kernel's surface: modules, bpf, perf, io_uring, devices, odd system calls.

What the host's kernel made for the sandbox is seen from outside as descriptors of the sandbox's processes.
"""

from __future__ import annotations

from crucible_executor.verify.capabilities import BPF, PERFMON, SYS_ADMIN, SYS_PTRACE
from crucible_executor.verify.model import Attempt, Control, Family

_MODULE = """
blob = ctypes.create_string_buffer(b"\\x7fELF" + TOKEN.encode(), 4096)
system(175, blob, 4096, b"")
fd = os.memfd_create("module")
os.write(fd, blob.raw)
for flags in (0, 1, 2, 3):
    system(313, fd, b"", flags)
system(176, b"ext4", 0o4000)
for path in ("/proc/sys/kernel/modprobe",):
    tried(read, path)
hold()
"""

_BPF = """
attr = ctypes.create_string_buffer(128)
for kind in (1, 2, 6):
    struct.pack_into("<IIII", attr, 0, kind, 4, 8, 1)
    system(321, 0, attr, 128)
instructions = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
instructions = ctypes.create_string_buffer(instructions, 16)
licence = ctypes.create_string_buffer(b"GPL")
attr = ctypes.create_string_buffer(128)
struct.pack_into("<IIQQ", attr, 0, 1, 2, ctypes.addressof(instructions), ctypes.addressof(licence))
system(321, 5, attr, 128)
hold()
"""

_PERF = """
for kind, config in ((1, 0), (1, 9), (0, 0), (2, 0)):
    attr = ctypes.create_string_buffer(128)
    struct.pack_into("<IIQQ", attr, 0, kind, 112, config, 0)
    for pid, cpu in ((0, -1), (-1, 0)):
        system(298, attr, pid, cpu, -1, 0)
hold()
"""

_URING = """
for flags in (0, 1, 2):
    parameters = ctypes.create_string_buffer(120)
    struct.pack_into("<III", parameters, 0, 0, 0, flags)
    system(425, 4, parameters)
hold()
"""

_USERFAULT = """
for flags in (0, 1, 0o2000000, 0o4000):
    system(323, flags)
tried(os.open, "/dev/userfaultfd", os.O_RDWR)
hold()
"""

_DEVICES = """
for name in ("kmsg", "mem", "kmem", "port", "kvm", "fuse", "net/tun", "loop-control", "vhost-net", "vhost-vsock",
             "hpet", "sda", "vda", "nvme0n1", "dri/card0", "input/event0", "uinput", "cpu/0/msr", "nvidia0"):
    tried(os.open, "/dev/" + name, os.O_RDONLY | os.O_NONBLOCK)
hold()
"""

_ODD_CALLS = """
# quotactl, acct, kexec_load, iopl, ioperm, swapon, kcmp, lookup_dcookie, fanotify_init, memfd_secret, pidfd_open,
# quotactl_fd, open_tree, and numbers beyond all.
system(179, 0x800002, b"/dev/vda", 0, 0)
system(163, b"/tmp/acct")
system(246, 0, 0, None, 0)
system(172, 3)
system(173, 0x3F8, 8, 1)
system(167, b"/tmp/swap", 0)
system(312, 1, 1, 0, 0, 0)
system(212, 0, None, 0)
system(300, 0, 0)
system(300, 4, 2)
system(447, 0)
system(434, 1, 0)
system(443, 0, 0, 0, None)
system(428, -100, b"/", 1)
for number in (512, 520, 547, 600, 1000, 0x40000000 | 39, 0x7FFFFFFF):
    system(number, 0, 0, 0, 0, 0, 0)
system(323, 0)
hold()
"""

_SYSV = """
key = AIM["ipc_key"]
call("shmget", key, 4096, 0o1666)
call("semget", key, 1, 0o1666)
call("msgget", key, 0o1666)
hold()
"""

ATTEMPTS = (
    Attempt(
        "load-module", Family.KERNEL, "the host has another module, or a tainted kernel", _MODULE, ("kernel",),
        no_control="loading a module cannot be undone for sure",
    ),
    Attempt(
        "bpf", Family.KERNEL, "the host's kernel holds a map or program of the sandbox",
        _BPF, ("descriptors",), Control(capabilities=(BPF, SYS_ADMIN)),
    ),
    Attempt(
        "perf-events", Family.KERNEL, "the host's kernel counts events for the sandbox",
        _PERF, ("descriptors",), Control(capabilities=(PERFMON, SYS_ADMIN)),
    ),
    Attempt(
        "io-uring", Family.KERNEL, "the sandbox holds a ring of the host's kernel",
        _URING, ("descriptors",), Control(),
    ),
    Attempt(
        "userfaultfd", Family.KERNEL, "the host's kernel lets the sandbox stop it at page faults",
        _USERFAULT, ("descriptors",), Control(capabilities=(SYS_PTRACE,)),
    ),
    Attempt(
        "devices", Family.KERNEL, "the sandbox holds a device of the host", _DEVICES, ("descriptors",),
        Control(device=True),
    ),
    Attempt(
        "odd-system-calls", Family.KERNEL, "the sandbox holds an object of the host's kernel that no program needs",
        _ODD_CALLS, ("descriptors", "kernel"), Control(capabilities=(SYS_PTRACE,)),
    ),
    Attempt(
        "system-v-ipc", Family.KERNEL, "a segment, queue or semaphore appears on the host",
        _SYSV, ("ipc",), Control(),
    ),
)  # fmt: skip
