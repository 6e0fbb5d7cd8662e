"""The gateway's settings, each from `CRUCIBLE_GATEWAY_<NAME>`."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible_gateway.limits import Defaults

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """See the module.

    Attributes:
        tls_cert: this process's certificate for calls of storage and monitor.
        tls_key: its private key.
        tls_ca: the authority of all internal certificates.
        public_cert: the certificate shown to clients; default: `tls_cert`.
        public_key: its private key; default: `tls_key`.
        listen: where clients connect (gRPC over TLS).
        admin: where health and metrics are served (plain HTTP).
        storage: storage's address.
        monitor: monitor's address.
        max_message_bytes: the largest request that is taken.
        max_concurrent_calls: RESOURCE_EXHAUSTED beyond; each may hold a request of `max_message_bytes`.
        key_ttl: how long a good API key is remembered; at most 5 s, which is promised for revocations.
        executors_ttl: how old the view of the executors may be.
        executors_grace: how old it may be for a new evaluation, while a newer one is asked for beside it.
        outage: how long a waiting `RunEvaluation` waits for a storage that went away.
        watcher_patience: a watcher that reads nothing for this long is ended; it can go on where it was.
        grace: how long calls in flight are waited for at the end.
        default_engine: for specs that name none; empty: what the executors say.
        default_wall_time: default limit; the others likewise. 0 is none.
    """

    tls_cert: Path
    tls_key: Path
    tls_ca: Path
    public_cert: Path | None = None
    public_key: Path | None = None
    listen: str = "127.0.0.1:8443"
    admin: str = "127.0.0.1:9190"
    storage: str = "127.0.0.1:9101"
    monitor: str = "127.0.0.1:9102"
    max_message_bytes: int = 4 * MIB
    max_concurrent_calls: int = 1024
    key_ttl: timedelta = timedelta(seconds=5)
    executors_ttl: timedelta = timedelta(seconds=1)
    executors_grace: timedelta = timedelta(seconds=3)
    outage: timedelta = timedelta(seconds=30)
    watcher_patience: timedelta = timedelta(seconds=60)
    grace: timedelta = timedelta(seconds=10)
    default_engine: str = ""
    default_wall_time: timedelta = timedelta(seconds=30)
    default_cpus: float = 1.0
    default_memory_bytes: int = 512 * MIB
    default_processes: int = 64
    default_output_bytes: int = MIB
    default_open_files: int = 256
    default_disk_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        if (self.public_cert is None) != (self.public_key is None):
            raise ValueError("public_cert and public_key must be set together")
        if not timedelta(0) <= self.key_ttl <= timedelta(seconds=5):
            raise ValueError("key_ttl must be at most 5s")
        if self.watcher_patience <= timedelta(0):
            raise ValueError("watcher_patience must be more than 0")
        if not 4 * MIB <= self.max_message_bytes <= 64 * MIB:
            raise ValueError("max_message_bytes must be from 4 MiB to 64 MiB, or the largest program does not fit")

    def defaults(self) -> Defaults:
        """What a spec that says nothing gets."""
        limits = ev.Limits(
            cpus=self.default_cpus,
            memory_bytes=self.default_memory_bytes,
            processes=self.default_processes,
            output_bytes=self.default_output_bytes,
            open_files=self.default_open_files,
            disk_bytes=self.default_disk_bytes,
        )
        limits.wall_time.FromTimedelta(self.default_wall_time)
        return Defaults(limits, self.default_engine)
