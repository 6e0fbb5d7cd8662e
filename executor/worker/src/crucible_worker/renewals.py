"""Leases are renewed with storage, and only what storage renewed may go on at the executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from crucible.executor.v1.executor_service_pb2 import ExecutorTime
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


async def renew(
    storage: StoragePeer,
    executor: ExecutorPeer,
    executor_id: str,
    leases: Sequence[work.LeaseRef],
    terms: Terms,
    since: ExecutorTime | None,
) -> Renewed:
    """Renews leases and then extends the permits of those that storage renewed.

    Permits count from `since`, which was before storage handled the renewal, and by the executor's own clock: they end
    before storage lets anybody start the next attempt, however long an answer or a call was on its way.

    Args:
        storage: renews.
        executor: extends.
        executor_id: whose leases they are.
        leases: all that are held.
        terms: see `Terms`.
        since: what the executor's clock said before this; None: no permit is extended.

    Raises:
        CallError: storage or the executor failed; permits not extended run out by themselves.
    """
    lost: list[str] = []
    stops: list[str] = []
    for start in range(0, len(leases), MAX_LEASES):
        part = leases[start : start + MAX_LEASES]
        answer = await storage.renew(executor_id, part)
        lost += answer.lost
        stops += answer.stops
        gone = set(answer.lost)
        renewed = [ref.run_id for ref in part if ref.run_id not in gone]
        if renewed and since is not None:
            await executor.extend(renewed, terms.orphan_grace, since)
    return Renewed(tuple(lost), tuple(stops))
