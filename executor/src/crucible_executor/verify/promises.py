"""What each engine promises: the attempts that it must contain. Short of its promise, the command fails."""

from __future__ import annotations

import dataclasses

from crucible_executor.engines.gvisor import SENTRY_MEMORY_BYTES, SENTRY_TASKS
from crucible_executor.verify.attempts import ATTEMPTS
from crucible_executor.verify.judges import Margins

ALL = frozenset(attempt.name for attempt in ATTEMPTS)

_NO_TRACE = {attempt.name: "nothing traces a container" for attempt in ATTEMPTS if attempt.needs_trace}

LESS: dict[str, dict[str, str]] = {
    "gvisor": {},
    "docker-gvisor": {**_NO_TRACE},
    "docker": {
        **_NO_TRACE,
        "host-kernel": "the kernel is the host's, and says which it is",
        "boot-id": "the kernel is the host's, and /proc/sys/kernel/random is not of a namespace",
        "io-uring": "Docker's own seccomp profile decides, and before Docker 25 it lets programs make rings",
        "host-paths": "the kernel shows in mountinfo where Docker keeps the layers of the root",
    },
}
"""By engine: what it does not promise to contain, each with the reason. It is tried all the same, and shown."""

PROMISES: dict[str, frozenset[str]] = {engine: ALL - less.keys() for engine, less in LESS.items()}
"""By engine: what it must contain."""

NOT_VERIFIED: dict[str, str] = {
    "subprocess": "it has no isolation and promises none: its attempts would run as root of this machine, with nothing "
    "between them and its files and processes",
}
"""The engines that the suite does not judge, each with the reason."""

_RUNSC = Margins(tasks=SENTRY_TASKS, memory_bytes=SENTRY_MEMORY_BYTES + (4 << 20), open_files=64)

MARGINS: dict[str, Margins] = {
    "gvisor": _RUNSC,
    # Docker gives runsc the image as a tree, of which it keeps files open: 173 for an interpreter alone (measured).
    "docker-gvisor": dataclasses.replace(_RUNSC, open_files=256),
    "docker": Margins(tasks=1, memory_bytes=6 << 20),
}
"""What an engine's own parts may take beside the program."""
