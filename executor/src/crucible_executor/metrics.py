"""What an operator sees of the executor's runs."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_START_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class PoolMetrics:
    """Counts what pools of waiting sandboxes do, by engine.

    Args:
        registry: where the metrics are shown.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"crucible_executor_pool_{name}", text, ["engine"], registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"crucible_executor_pool_{name}", text, ["engine"], registry=registry)

        self.hits = counter("hits", "Runs that were given a waiting sandbox.")
        self.misses = counter("misses", "Runs whose sandbox was booted for them.")
        self.failures = counter("failures", "Sandboxes that failed while they were booted ahead or waited.")
        self.size = gauge("size", "Sandboxes that wait.")
        self.memory_bytes = gauge("memory_bytes", "What they hold, as their cgroups count.")
        self.breaker_open = gauge("breaker_open", "1 while a class fails so often that it is tried only now and then.")


class EngineMetrics:
    """Counts what engines fail at, by engine.

    Args:
        registry: where the metrics are shown.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.failures = Counter(
            "crucible_executor_engine_failures", "Sandboxes that could not be made or failed.", ["engine"],
            registry=registry,
        )  # fmt: skip
        self.breaker_open = Gauge(
            "crucible_executor_engine_breaker_open", "1 while an engine fails and is only tried by itself.", ["engine"],
            registry=registry,
        )  # fmt: skip


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
