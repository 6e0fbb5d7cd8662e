"""What an operator sees of the worker."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge


class WorkerMetrics:
    """Counts leases and reports.

    Args:
        registry: where the metrics are shown.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.held = Gauge("crucible_worker_leases", "Leases held.", registry=registry)
        self.leased = Counter("crucible_worker_leased", "Leases taken.", registry=registry)
        self.lost = Counter("crucible_worker_lost_leases", "Leases that storage took back.", registry=registry)
        self.stops = Counter("crucible_worker_stops", "Stops carried to the executor.", registry=registry)
        self.artifacts = Counter("crucible_worker_artifacts", "Files of programs that were stored.", registry=registry)
        self.reports = Counter("crucible_worker_reports", "Calls that reported runs.", registry=registry)
        self.rejected = Counter(
            "crucible_worker_rejected_reports", "Reports that storage refused.", ["reason"], registry=registry
        )
        self.renewal_failures = Counter("crucible_worker_renewal_failures", "Renewals that failed.", registry=registry)
