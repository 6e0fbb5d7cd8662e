"""What Docker is told to build around a program, and what a daemon must be able to do for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from crucible_executor import init_protocol
from crucible_executor.docker_images import INIT
from crucible_executor.model import Isolation, Limit, SandboxClass


@dataclasses.dataclass(frozen=True)
class Kind:
    """What differs between the two engines.

    Attributes:
        runtime: Docker's name of the runtime.
        own_memory_bytes: added to a class's memory limit for what runs beside the program.
        tasks_per_process: what the host's pids limit allows for each process; systrap needs two (measured).
        own_tasks: added to that for what runs beside the program.
        boot_tasks: the least pids limit until the init waits.
        shares_kernel: it runs on the host's kernel, which counts its processes by the pids cgroup, exactly, and knows
            how full its file systems are; otherwise processes are bounded by RLIMIT_NPROC, of a kernel of its own.
        not_observable: see `Capabilities`.
    """

    name: str
    runtime: str
    isolation: Isolation
    enforces: frozenset[Limit]
    own_memory_bytes: int
    tasks_per_process: int
    own_tasks: int
    boot_tasks: int
    shares_kernel: bool
    not_observable: frozenset[Limit]

    def tasks(self, sandbox_class: SandboxClass) -> int:
        """The host's pids limit while a program runs."""
        return self.tasks_per_process * sandbox_class.processes + self.own_tasks


RUNC = Kind(
    "docker",
    "runc",
    Isolation.CONTAINER,
    frozenset(Limit),
    own_memory_bytes=2 << 20,
    tasks_per_process=1,
    own_tasks=1,
    boot_tasks=64,
    shares_kernel=True,
    not_observable=frozenset({Limit.OPEN_FILES}),
)
RUNSC = Kind(
    "docker-gvisor",
    "runsc",
    Isolation.USER_KERNEL,
    frozenset(Limit) - {Limit.DISK_INODES},
    own_memory_bytes=32 << 20,
    tasks_per_process=3,
    own_tasks=512,
    boot_tasks=512,
    shares_kernel=False,
    not_observable=frozenset({Limit.OPEN_FILES, Limit.PROCESSES}),
)


def lacking(info: dict[str, Any], runtime: str) -> str:
    """What this daemon or its kernel lacks for our promises, as a sentence; empty when it has all."""
    if runtime not in info.get("Runtimes", {}):
        return (
            f"dockerd has no runtime {runtime!r}: add it to /etc/docker/daemon.json (`runtimes`, with the runtimeArgs "
            "`--network=none` and `--platform=systrap`) and restart dockerd."
        )
    needed = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPUs"}
    unable = [what for key, what in needed.items() if not info.get(key)]
    if unable:
        return f"Docker cannot limit {', '.join(unable)} here: enable these cgroup controllers in the kernel."
    if not info.get("SwapLimit") and len(Path("/proc/swaps").read_text().splitlines()) > 1:
        return "Docker cannot limit swap here: switch swap off, or boot with swapaccount=1."
    if runtime == "runc" and not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        return "dockerd has no seccomp profile: use a kernel and a Docker with seccomp."
    return ""


def container_config(kind: Kind, image: str, sandbox_class: SandboxClass, labels: dict[str, str]) -> dict[str, Any]:
    """What Docker is told to build around the init. Nothing in it comes from a request but numbers."""
    memory = sandbox_class.memory_bytes + kind.own_memory_bytes
    return {
        "Image": image,
        "Entrypoint": [INIT],
        "Cmd": [init_protocol.MULTIPLEXED],
        "User": "0:0",
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Labels": labels,
        "OpenStdin": True,
        # The container's stdin ends with our connection, and with it the init: whatever becomes of this process.
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "HostConfig": {
            "Runtime": kind.runtime,
            "ReadonlyRootfs": True,
            "Tmpfs": _tmpfs(kind, sandbox_class),
            "ShmSize": sandbox_class.disk_bytes,
            "CapDrop": ["ALL"],
            # The init changes users, drops the bounding set, and kills what is left; a program gets none of it.
            "CapAdd": ["SETUID", "SETGID", "SETPCAP", "KILL"],
            "SecurityOpt": ["no-new-privileges"],
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": int(max(sandbox_class.cpus, 0.01) * 1e9),
            # The first that a host short of memory ends, as in the gvisor engine.
            "OomScoreAdj": 1000,
            "PidsLimit": max(kind.tasks(sandbox_class), kind.boot_tasks),
            "Ulimits": [
                {"Name": name, "Soft": value, "Hard": value}
                # No message queues: /dev/mqueue would be a disk without a limit.
                for name, value in (("core", 0), ("msgqueue", 0))
            ],
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "Init": False,
        },
    }


def _tmpfs(kind: Kind, sandbox_class: SandboxClass) -> dict[str, str]:
    options = f"rw,nosuid,nodev,exec,size={sandbox_class.disk_bytes}"
    if sandbox_class.disk_inodes is not None and Limit.DISK_INODES in kind.enforces:
        options += f",nr_inodes={sandbox_class.disk_inodes}"
    return {"/workspace": f"{options},mode=0755,uid=65534,gid=65534", "/tmp": f"{options},mode=1777"}  # noqa: S108
