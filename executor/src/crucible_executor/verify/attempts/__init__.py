"""Every attempt, by family: data, no judgement."""

from __future__ import annotations

from crucible_executor.verify.attempts import (
    escape,
    executor,
    files,
    kernel,
    network,
    privilege,
    proc,
    processes,
    record,
    resources,
    side,
)
from crucible_executor.verify.model import Attempt

ATTEMPTS: tuple[Attempt, ...] = (
    *escape.ATTEMPTS,
    *kernel.ATTEMPTS,
    *proc.ATTEMPTS,
    *privilege.ATTEMPTS,
    *network.ATTEMPTS,
    *files.ATTEMPTS,
    *resources.ATTEMPTS,
    *processes.ATTEMPTS,
    *side.ATTEMPTS,
    *executor.ATTEMPTS,
    *record.ATTEMPTS,
)
