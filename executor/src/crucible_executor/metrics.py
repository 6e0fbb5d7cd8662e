"""What an operator sees of the executor's runs."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_START_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ExecutorMetrics:
    """Counts runs.

    Args:
        slots: how many runs the executor takes at once.
        registry: where the metrics are shown.
    """

    def __init__(self, slots: int, registry: CollectorRegistry = REGISTRY) -> None:
        self.ended = Counter("crucible_executor_runs", "Runs that ended.", ["termination"], registry=registry)
        self.behaviour = Counter(
            "crucible_executor_behaviour", "Runs that ended, by how far what they tried is known.", ["observation"],
            registry=registry,
        )  # fmt: skip
        self.refused = Counter("crucible_executor_refused", "Runs not accepted.", ["reason"], registry=registry)
        self.running = Gauge("crucible_executor_running", "Runs accepted and not ended.", registry=registry)
        self.kept = Gauge(
            "crucible_executor_unacknowledged", "Runs whose end storage has not confirmed yet.", registry=registry
        )
        self.start_seconds = Histogram(
            "crucible_executor_start_seconds",
            "From a ticket's arrival to the program's start.",
            registry=registry,
            buckets=_START_BUCKETS,
        )
        Gauge("crucible_executor_slots", "Runs taken at once.", registry=registry).set(slots)
