"""What an operator may set of the executor, each as `CRUCIBLE_EXECUTOR_<NAME>`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible_executor.model import Limits

_HOME = Path("/var/lib/crucible")
_CACHE = Path("/var/cache/crucible")


@dataclass(frozen=True)
class Settings:
    """Settings of the executor.

    Attributes:
        listen: where the worker calls; loopback, for the worker is beside it.
        admin_listen: health and metrics.
        state_dir: journal, kept outputs, id.
        run_dir: what sandboxes need while they live; emptied at start.
        tls_cert: its certificate.
        tls_key: the certificate's private key.
        tls_ca: the authority of all certificates.
        tickets_pub: storage's public keys, separated by commas; several while a key is changed.
        records_key: signs final records.
        runsc: the runsc to use.
        init_dir: the sandboxes' PID 1 and its like, as `executor/init/build.sh` made them.
        cgroup: the folder of the sandboxes' cgroups; two executors on one machine need different ones.
        images_dir: root file systems.
        docker_host: the Docker daemon of this machine, for the engines that use one.
        trace: whether what programs try is watched, where an engine can be.
        trace_user: the user that reads the traces, and nothing else.
        default_engine: for callers that name none.
        slots: runs at once; 0: one per CPU.
        pool_size: sandboxes that wait for a program, booted ahead; 0: none.
        pool_memory_bytes: what they may hold together.
        pool_idle: a class of sandbox that nobody asked for during this time is not kept.
        orphan_grace: the longest permit: a run without its worker or storage ends after this.
        shutdown_grace: how long a stopping executor lets runs go on.
        max_kept_bytes: all runs' output and files until storage confirms them; output of running ones counts as large
            as it may become.
        min_free_bytes: stays free on the disk of `state_dir`; with less, no run is taken.
        max_wall_time: ceiling, and so are the following.
        max_cpu_time: of the whole sandbox.
        max_cpus: 0: all there are.
        max_memory_bytes: of the whole sandbox.
        max_processes: of one run.
        max_open_files: of one process.
        max_output_bytes: kept of each stream.
        max_disk_bytes: of `/workspace`, and again of `/tmp`.
        max_disk_inodes: likewise.
        max_artifact_bytes: kept of the files that a program leaves, together; storage's own bound may be lower.
    """

    listen: str = "127.0.0.1:9103"
    admin_listen: str = "127.0.0.1:9193"
    state_dir: Path = _HOME / "state/executor"
    run_dir: Path = Path("/run/crucible/executor")
    tls_cert: Path = _HOME / "pki/executor/tls.crt"
    tls_key: Path = _HOME / "pki/executor/tls.key"
    tls_ca: Path = _HOME / "pki/executor/ca.crt"
    tickets_pub: tuple[str, ...] = (str(_HOME / "pki/public/tickets.pub"),)
    records_key: Path = _HOME / "pki/executor/records.key"
    runsc: Path = _CACHE / "runsc/current/runsc"
    init_dir: Path = _CACHE / "init/current"
    cgroup: str = "crucible"
    images_dir: Path = _CACHE / "images"
    docker_host: str = "unix:///var/run/docker.sock"
    trace: bool = True
    trace_user: str = "crucible-trace"
    default_engine: str = "gvisor"
    slots: int = 0
    pool_size: int = 4
    pool_memory_bytes: int = 512 << 20
    pool_idle: timedelta = timedelta(minutes=10)
    orphan_grace: timedelta = timedelta(seconds=15)
    shutdown_grace: timedelta = timedelta(seconds=10)
    max_kept_bytes: int = 4 << 30
    min_free_bytes: int = 256 << 20
    max_wall_time: timedelta = timedelta(hours=1)
    max_cpu_time: timedelta = timedelta(hours=1)
    max_cpus: float = 0.0
    max_memory_bytes: int = 4 << 30
    max_processes: int = 1024
    max_open_files: int = 4096
    max_output_bytes: int = 16 << 20
    max_disk_bytes: int = 1 << 30
    max_disk_inodes: int = 1 << 20
    max_artifact_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        """Checks what no type can."""
        if not 0 <= self.slots <= 1000:
            raise ValueError("SLOTS must be 0 to 1000")
        if not 0 <= self.pool_size <= 1000 or self.pool_memory_bytes < 0 or self.pool_idle <= timedelta(0):
            raise ValueError("POOL_SIZE must be 0 to 1000, POOL_MEMORY_BYTES not negative, POOL_IDLE positive")
        if self.orphan_grace <= timedelta(0) or self.shutdown_grace < timedelta(0):
            raise ValueError("ORPHAN_GRACE and SHUTDOWN_GRACE must be positive")
        if not self.tickets_pub:
            raise ValueError("TICKETS_PUB must name at least one file")
        ceilings = self.ceilings
        if min(ceilings.wall_time, self.max_cpu_time) <= timedelta(0):
            raise ValueError("MAX_WALL_TIME and MAX_CPU_TIME must be positive")
        counts = (ceilings.memory_bytes, ceilings.processes, ceilings.open_files, ceilings.output_bytes)
        if min(*counts, ceilings.disk_bytes, self.max_disk_inodes, ceilings.cpus) <= 0:
            raise ValueError("every MAX_* must be positive")
        if self.max_artifact_bytes < 0:
            raise ValueError("MAX_ARTIFACT_BYTES must not be negative")
        if self.max_kept_bytes < 2 * ceilings.output_bytes or self.min_free_bytes < 0:
            raise ValueError("MAX_KEPT_BYTES must be at least twice MAX_OUTPUT_BYTES, MIN_FREE_BYTES not negative")

    @property
    def slot_count(self) -> int:
        """Runs at once."""
        return self.slots or os.cpu_count() or 1

    @property
    def ceilings(self) -> Limits:
        """The most of each limit."""
        return Limits(
            wall_time=self.max_wall_time,
            cpu_time=self.max_cpu_time,
            cpus=self.max_cpus or float(os.cpu_count() or 1),
            memory_bytes=self.max_memory_bytes,
            processes=self.max_processes,
            open_files=self.max_open_files,
            output_bytes=self.max_output_bytes,
            disk_bytes=self.max_disk_bytes,
            disk_inodes=self.max_disk_inodes,
            artifact_bytes=self.max_artifact_bytes,
        )
