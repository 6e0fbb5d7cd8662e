"""What each engine promises: the attempts that it must contain. Short of its promise, the command fails."""

from __future__ import annotations

from crucible_executor.engines.gvisor import SENTRY_MEMORY_BYTES, SENTRY_TASKS
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.judges import Margins

ALL = frozenset(attempt.name for attempt in ATTEMPTS)

PROMISES: dict[str, frozenset[str]] = {
    "gvisor": ALL,
    # A plain child process: its end, its output and its descriptors are bounded, and nothing else.
    "subprocess": frozenset({
        "output-flood", "descriptors", "wall-time", "ignores-signals", "stopped", "held-output", "daemon",
        "stopped-children", "forged-marks", "terminal-escapes", "nuls-and-broken-text", "streams-apart",
        "output-after-the-end", "exit-of-another",
    }),
}  # fmt: skip
"""By engine."""

NOT_VERIFIED: dict[str, str] = dict.fromkeys(
    ("docker", "docker-gvisor"),
    "its containers are started by the Docker daemon, outside the namespaces that the suite makes for itself, so that "
    "its judges would look at the wrong host",
)
"""The engines that the suite cannot judge, each with the reason."""

MARGINS: dict[str, Margins] = {
    "gvisor": Margins(tasks=SENTRY_TASKS, memory_bytes=SENTRY_MEMORY_BYTES + (4 << 20), open_files=64),
    "subprocess": Margins(),
}
"""What an engine's own parts may take beside the program."""
