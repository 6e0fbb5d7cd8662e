"""What a check is and what became of it, and how checks are run."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from crucible_rpc import logs

ENGINE = "engine"
"""The component of an engine's own checks, followed by its name: those that decide whether it is offered."""

MAX_EVIDENCE_CHARACTERS = 1000
LONGEST_CHECK = timedelta(seconds=60)
_log = logging.getLogger(__name__)


class Status(enum.Enum):
    """What became of a check."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    NOT_RUN = "NOT_RUN"


class CheckFailedError(Exception):
    """What must hold does not; the text says what was measured instead."""


class CheckNotRunError(Exception):
    """It cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        component: the part it belongs to.
        name: what must hold, in words.
        measure: measures it and returns the evidence; raises CheckFailedError or CheckNotRunError. Any other exception
            is a failure too.
    """

    component: str
    name: str
    measure: Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Result:
    """What became of one check; `evidence` is what was measured, or why not."""

    component: str
    name: str
    status: Status
    evidence: str
    seconds: float


async def run(checks: Iterable[Check], longest: timedelta = LONGEST_CHECK) -> AsyncGenerator[Result, None]:
    """Runs checks one after the other; one that takes longer than `longest` has failed."""
    for check in checks:
        began = time.monotonic()
        status, evidence = await _outcome(check, longest)
        if len(evidence) > MAX_EVIDENCE_CHARACTERS:
            evidence = evidence[: MAX_EVIDENCE_CHARACTERS - 1] + "…"
        yield Result(check.component, check.name, status, evidence, time.monotonic() - began)


async def _outcome(check: Check, longest: timedelta) -> tuple[Status, str]:
    try:
        async with asyncio.timeout(longest.total_seconds()) as limit:
            return Status.PASSED, await check.measure()
    except CheckFailedError as error:
        return Status.FAILED, str(error)
    except CheckNotRunError as error:
        return Status.NOT_RUN, str(error)
    except Exception as error:
        if limit.expired():
            return Status.FAILED, f"it did not end within {longest.total_seconds():g} s"
        _log.exception("self-test failed", extra=logs.fields(component=check.component, check=check.name))
        return Status.FAILED, f"{type(error).__name__}: {error}"


def expect(holds: bool, otherwise: str) -> None:
    """Raises CheckFailedError(`otherwise`) unless it holds."""
    if not holds:
        raise CheckFailedError(otherwise)
