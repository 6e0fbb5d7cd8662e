"""Monitor's settings, each from `CRUCIBLE_MONITOR_<NAME>`."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """See the module.

    Attributes:
        tls_cert: this process's certificate, for serving and for calling storage.
        tls_key: its private key.
        tls_ca: the authority of all internal certificates.
        listen: where the gateway connects (gRPC, mutual TLS).
        admin: where health and metrics are served (plain HTTP).
        storage: storage's address.
        max_watchers: RESOURCE_EXHAUSTED beyond.
        watcher_events: events that may wait for one watcher; one that has more waiting fell behind.
        watcher_bytes: bytes of such events, likewise.
        total_bytes: bytes that may wait for all watchers; beyond, the one with the most waiting fell behind.
        watcher_patience: a watcher that reads nothing for this long is ended; it can go on where it was.
        grace: how long calls in flight are waited for at the end.
    """

    tls_cert: Path
    tls_key: Path
    tls_ca: Path
    listen: str = "127.0.0.1:9102"
    admin: str = "127.0.0.1:9192"
    storage: str = "127.0.0.1:9101"
    max_watchers: int = 1000
    watcher_events: int = 1024
    watcher_bytes: int = 4 << 20
    total_bytes: int = 64 << 20
    watcher_patience: timedelta = timedelta(seconds=60)
    grace: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        if min(self.max_watchers, self.watcher_events, self.watcher_bytes) < 1:
            raise ValueError("max_watchers, watcher_events and watcher_bytes must be at least 1")
        if self.total_bytes < self.watcher_bytes:
            raise ValueError("total_bytes must be at least watcher_bytes")
        if self.watcher_patience <= timedelta(0):
            raise ValueError("watcher_patience must be more than 0")
