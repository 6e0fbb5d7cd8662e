"""Leases are renewed with storage, and only what storage renewed may go on at the executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from crucible.storage.v1 import work_service_pb2 as work
from crucible_worker.peers import ExecutorPeer, StoragePeer

MAX_LEASES = 1000


@dataclass(frozen=True)
class Terms:
    """What storage said at registration.

    Attributes:
        lease: how long a lease lasts after a renewal.
        orphan_grace: how long a run may go on after the last renewal was sent.
    """

    lease: timedelta
    orphan_grace: timedelta

    @property
    def interval(self) -> timedelta:
        """Between renewals: two may fail before a lease ends."""
        return self.lease / 3


@dataclass(frozen=True)
class Renewed:
    """What storage answered: runs whose lease is gone, and runs that are to be ended."""

    lost: tuple[str, ...]
    stops: tuple[str, ...]


def permit_after(terms: Terms, elapsed: timedelta) -> timedelta:
    """The permit that may be given `elapsed` after a renewal was sent; 0 when it is too late for any.

    Storage counts `orphan_grace` from when it handled the renewal, which is later than when it was sent: the permit
    ends before storage lets anybody start the next attempt.
    """
    return max(timedelta(0), terms.orphan_grace - elapsed)


async def renew(
    storage: StoragePeer,
    executor: ExecutorPeer,
    executor_id: str,
    leases: Sequence[work.LeaseRef],
    terms: Terms,
    clock: Callable[[], float],
    extend: bool = True,
) -> Renewed:
    """Renews leases and then extends the permits of those that storage renewed.

    Args:
        storage: renews.
        executor: extends.
        executor_id: whose leases they are.
        leases: all that are held.
        terms: see `Terms`.
        clock: seconds; never goes back.
        extend: whether the executor can be reached.

    Raises:
        CallError: storage or the executor failed; permits not extended run out by themselves.
    """
    lost: list[str] = []
    stops: list[str] = []
    for start in range(0, len(leases), MAX_LEASES):
        part = leases[start : start + MAX_LEASES]
        sent = clock()
        answer = await storage.renew(executor_id, part)
        lost += answer.lost
        stops += answer.stops
        gone = set(answer.lost)
        renewed = [ref.run_id for ref in part if ref.run_id not in gone]
        permit = permit_after(terms, timedelta(seconds=clock() - sent))
        if extend and renewed and permit > timedelta(0):
            await executor.extend(renewed, permit)
    return Renewed(tuple(lost), tuple(stops))
