"""What an operator may set of the worker, each as `CRUCIBLE_WORKER_<NAME>`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

_PKI = Path("/var/lib/crucible/pki/worker")


@dataclass(frozen=True)
class Settings:
    """Settings of the worker.

    Attributes:
        storage: where storage listens.
        executor: where its executor listens.
        admin_listen: health and metrics.
        tls_cert: its certificate.
        tls_key: the certificate's private key.
        tls_ca: the authority of all certificates.
        lease_wait: how long storage may hold a call for work that is not there yet.
        report_delay: how long output waits for company before it is reported.
        executor_lost_after: leases are renewed for this long while the executor cannot be reached.
        stop_grace: how long a stopping worker tries to hand over what it has.
    """

    storage: str = "127.0.0.1:9101"
    executor: str = "127.0.0.1:9103"
    admin_listen: str = "127.0.0.1:9194"
    tls_cert: Path = _PKI / "tls.crt"
    tls_key: Path = _PKI / "tls.key"
    tls_ca: Path = _PKI / "ca.crt"
    lease_wait: timedelta = timedelta(seconds=20)
    report_delay: timedelta = timedelta(milliseconds=10)
    executor_lost_after: timedelta = timedelta(seconds=30)
    stop_grace: timedelta = timedelta(seconds=3)

    def __post_init__(self) -> None:
        """Checks what no type can."""
        if not timedelta(0) < self.lease_wait <= timedelta(seconds=60):
            raise ValueError("LEASE_WAIT must be more than 0 and at most 60 s")
