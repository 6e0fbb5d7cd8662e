"""Resources: forks, threads, memory, disk, inodes, output, descriptors, CPU. Each program has a bound of its own."""

from __future__ import annotations

from datetime import timedelta

from crucible_executor.model import Limit
from crucible_executor.verify.model import Attempt, Control, Family, bounds

_FORKS = """
for _ in range(AIM["many"]):
    made = tried(os.fork)
    if made == 0:
        signal.pause()
        os._exit(0)
hold()
"""

_FORK_TREE = """
end = time.monotonic() + 2.0
made = 0
while time.monotonic() < end and made < 12:
    if tried(os.fork) is not None:
        made += 1
while time.monotonic() < end:
    time.sleep(0.05)
"""

_THREADS = """
import threading
threading.stack_size(65536)
try:
    for _ in range(AIM["many"]):
        threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
except RuntimeError:
    pass
hold()
"""

_MEMORY = """
hoard = []
for _ in range(320):
    hoard.append(bytearray(b"x" * (1 << 20)))
hold()
"""

_MEMORY_FILES = """
held = []
for folder in ("/dev/shm", "/tmp", "."):
    for index in range(2):
        def fill():
            with open(f"{folder}/f{index}", "wb", buffering=0) as file:
                for _ in range(64):
                    file.write(b"y" * (1 << 20))
        tried(fill)
for _ in range(4):
    fd = tried(os.memfd_create, "hoard")
    for _ in range(64):
        if fd is not None:
            tried(os.write, fd, b"z" * (1 << 20))
hold()
"""

_DISK = """
for folder in (".", "/tmp", "/dev/shm"):
    def fill():
        with open(folder + "/full", "wb", buffering=0) as file:
            for _ in range(96):
                file.write(b"y" * (1 << 20))
    tried(fill)
hold()
"""

_INODES = """
for folder in (AIM["folder"], ".", "/tmp"):
    def fill():
        for index in range(3000):
            with open(f"{folder}/i{index}", "wb"):
                pass
    tried(fill)
"""

_OUTPUT = """
for _ in range(160):
    for number in (1, 2):
        sent = 0
        while sent < 65536:
            sent += os.write(number, b"x" * (65536 - sent))
"""

_DESCRIPTORS = """
import resource
if resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 1000:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
held = []
def many():
    while len(held) < 900:
        held.append(os.pipe())
        held.append(os.open("aim.json", os.O_RDONLY))
tried(many)
hold()
"""

_CPU = """
end = time.monotonic() + 3.0
for _ in range(3):
    if os.fork() == 0:
        break
while time.monotonic() < end:
    pass
"""

_FOR_EVER = """
signal.signal(signal.SIGALRM, signal.SIG_IGN)
time.sleep(60)
"""

_CPU_TIME = """
end = time.monotonic() + 12
while time.process_time() < 2.5 and time.monotonic() < end:
    pass
"""

_SECOND = timedelta(seconds=1)
_WALL_TIME = timedelta(seconds=3)  # an interpreter has to begin in it, on a busy machine too

# Forked interpreters take about 8 MB each: so many of them must not meet the cell's memory limit instead, whose OOM
# killer may choose the cell's first process.
_CROWD = Control(tasks=64, memory_bytes=1 << 30)

ATTEMPTS = (
    Attempt(
        "fork-bomb", Family.RESOURCES, "more tasks on the host than the sandbox may have", _FORKS, ("tasks", "gone"),
        _CROWD, limits=bounds(memory_bytes=512 << 20),
    ),
    Attempt(
        "fork-tree", Family.RESOURCES, "children that fork go beyond what the sandbox may have",
        _FORK_TREE, ("tasks", "gone"),
        _CROWD, limits=bounds(memory_bytes=512 << 20),
    ),
    Attempt(
        "thread-bomb", Family.RESOURCES, "more threads on the host than the sandbox may have",
        _THREADS, ("tasks", "gone"),
        _CROWD, limits=bounds(memory_bytes=512 << 20),
    ),
    Attempt(
        "memory", Family.RESOURCES, "the sandbox's cgroup holds more memory than it may", _MEMORY, ("memory",),
        Control(memory_bytes=448 << 20), ends=frozenset({Limit.MEMORY}),
    ),
    Attempt(
        "memory-by-files", Family.RESOURCES, "files in memory take more than the sandbox may have",
        _MEMORY_FILES, ("memory",),
        Control(memory_bytes=768 << 20), ends=frozenset({Limit.MEMORY}),
        limits=bounds(disk_bytes=1 << 30),
    ),
    Attempt(
        "disk", Family.RESOURCES, "files take more than the disk limit", _DISK, ("disk",),
        Control(memory_bytes=448 << 20), limits=bounds(memory_bytes=400 << 20),
    ),
    Attempt(
        "inodes", Family.RESOURCES, "a file system of the host loses thousands of inodes", _INODES, ("inodes", "files"),
        Control(bait=True),
    ),
    Attempt(
        "output-flood", Family.RESOURCES, "more output is taken than the limit's sixteenfold", _OUTPUT, ("output",),
        Control(), ends=frozenset({Limit.OUTPUT}),
    ),
    Attempt(
        "descriptors", Family.RESOURCES, "the sandbox holds more descriptors of the host than it may",
        _DESCRIPTORS, ("open_files",), Control(),
    ),
    Attempt(
        "cpu-share", Family.RESOURCES, "the sandbox uses more CPU per second than its share", _CPU, ("cpu",),
        Control(), limits=bounds(cpus=0.12),
    ),
    Attempt(
        "cpu-time", Family.RESOURCES, "the sandbox uses more CPU time than its limit", _CPU_TIME, ("cpu_time",),
        Control(), ends=frozenset({Limit.CPU_TIME}), limits=bounds(cpu_time=_SECOND),
    ),
    Attempt(
        "wall-time", Family.RESOURCES, "it is alive after its deadline",
        _FOR_EVER, ("gone",), Control(no_deadline=True),
        ends=frozenset({Limit.WALL_TIME}), limits=bounds(wall_time=_WALL_TIME),
    ),
)  # fmt: skip
