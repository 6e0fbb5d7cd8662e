"""Run ids that must not start, or not start again, for as long as a ticket could still ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from crucible_rpc.errors import CallError, ResourceExhaustedError

MAX_REFUSED = 10_000


@dataclass(frozen=True)
class _Withdrawn:
    """A run that is not accepted any more: under which lease it was, why, and until when that must be known."""

    epoch: int
    refusal: CallError
    until: float


class PastRuns:
    """What must be remembered of runs that are not there: ended, refused before they came, or withdrawn.

    Args:
        clock: seconds; never goes back.
        kept_seconds: from the moment that the executor is done with a run until every ticket that names it has ended;
            tickets of earlier starts are refused anyway.
    """

    def __init__(self, clock: Callable[[], float], kept_seconds: float) -> None:
        self._clock = clock
        self._kept_seconds = kept_seconds
        self._refused: set[str] = set()
        self._refused_before: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._withdrawn: dict[str, _Withdrawn] = {}

    @property
    def refused(self) -> Iterable[str]:
        """Those that were killed before they came, until somebody acknowledges that."""
        return self._refused

    def take_over(self, refused: Iterable[str]) -> None:
        """What an earlier start refused."""
        self._refused = set(refused)

    def may_start(self, run_id: str, epoch: int) -> bool:
        """Whether a ticket of this lease may start it: a run that was withdrawn comes again under another lease."""
        withdrawn = self._withdrawn.get(run_id)
        if withdrawn is not None and epoch <= withdrawn.epoch:
            return False
        return run_id not in self._refused and not self._is_remembered(run_id)

    def started(self, run_id: str) -> None:
        """It was accepted, perhaps once more."""
        self._withdrawn.pop(run_id, None)

    def refusal(self, run_id: str) -> CallError | None:
        """Why it was withdrawn; None when it was not."""
        withdrawn = self._withdrawn.get(run_id)
        return None if withdrawn is None else withdrawn.refusal

    def end(self, run_id: str) -> None:
        """It has ended and was acknowledged, or was to be ended before it was accepted."""
        self._forget()
        self._ended[run_id] = self._until()

    def withdraw(self, run_id: str, epoch: int, refusal: CallError) -> None:
        """It was accepted under this lease, and is not any more; nothing of it ever started."""
        self._forget()
        self._withdrawn[run_id] = _Withdrawn(epoch, refusal, self._until())

    def is_refused(self, run_id: str) -> bool:
        """Whether it was killed before it came, and nobody has acknowledged that."""
        return run_id in self._refused

    def refuse(self, run_id: str) -> bool:
        """It never starts. False when that was certain already.

        Raises:
            ResourceExhaustedError: NO_FREE_SLOT: too many are remembered.
        """
        if run_id in self._refused or self._is_remembered(run_id):
            return False
        self._forget()
        if len(self._refused) + len(self._refused_before) >= MAX_REFUSED:
            text = f"{MAX_REFUSED} unknown runs were killed within minutes; no more can be remembered"
            raise ResourceExhaustedError("NO_FREE_SLOT", text)
        self._refused.add(run_id)
        return True

    def acknowledge_refused(self, run_id: str) -> bool:
        """Somebody knows that it never starts. False when it is not one of those."""
        if run_id not in self._refused:
            return False
        self._forget()
        self._refused.remove(run_id)
        self._refused_before[run_id] = self._until()
        return True

    def _until(self) -> float:
        return self._clock() + self._kept_seconds

    def _is_remembered(self, run_id: str) -> bool:
        return run_id in self._ended or run_id in self._refused_before

    def _forget(self) -> None:
        """Drops the ids that no ticket can name any more."""
        now = self._clock()
        for remembered in (self._ended, self._refused_before):
            while remembered and next(iter(remembered.values())) <= now:
                del remembered[next(iter(remembered))]
        if self._withdrawn:
            self._withdrawn = {run_id: one for run_id, one in self._withdrawn.items() if one.until > now}
