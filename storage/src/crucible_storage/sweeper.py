"""Takes expired leases back, by durations alone: no wall clock can lead to two live attempts, or keep a dead one."""

import logging
import random
from collections.abc import Callable, Sequence

from sqlalchemy import bindparam, select, text
from sqlalchemy.engine import Connection

from crucible_rpc import logs
from crucible_storage import models, store
from crucible_storage.clock import Clock
from crucible_storage.database import Database
from crucible_storage.lifecycle import Record
from crucible_storage.names import evaluation_name
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared
from crucible_storage.regularly import regularly
from crucible_storage.transaction import WriteTransaction

INTERVAL = 0.5
_LIMIT = 200  # leases that one transaction takes back
_LOG = logging.getLogger(__name__)

_ROW = models.evaluation.c
_STATE_HELD = text("state IN (2, 3)")  # as the conditions of the indexes say it
_HELD = Prepared(select(_ROW.seq, _ROW.epoch, _ROW.lease_renewed).where(_STATE_HELD))
# One that another transaction changes now was not left alone: the next look tells.
_UNCHANGED = Prepared(
    select(_ROW.seq)
    .where(
        _ROW.seq == bindparam("seq"),
        _STATE_HELD,
        _ROW.epoch == bindparam("epoch"),
        _ROW.lease_renewed == bindparam("renewed"),
    )
    .with_for_update(key_share=True, skip_locked=True)
)

Lease = tuple[int, int, int]
"""Number of the evaluation, epoch, `lease_renewed`: another one after each renewal."""


class Sweeper:
    """Ends the attempts whose lease nobody renewed for `Policy.fence`.

    What counts is for how long this process has seen the lease unchanged, by a clock that nobody sets. Each renewal
    raises `lease_renewed`, by whichever process and whatever time it is taken to be. So a lease is never taken back
    early, for it is seen at the earliest when it is renewed, and never kept for ever. A process that starts, also
    beside others on the same database, gives every lease a whole fence: by then every live worker has renewed its own.

    Args:
        database: where.
        policy: how long things last.
        clock: its monotonic half decides; the other is for what storage records.
        jitter: a number from 0 to 1.
    """

    def __init__(
        self, database: Database, policy: Policy, clock: Clock, jitter: Callable[[], float] = random.random
    ) -> None:
        self._database = database
        self._policy = policy
        self._clock = clock
        self._jitter = jitter
        self._seen: dict[Lease, float] = {}

    async def run(self) -> None:
        """Sweeps until cancelled."""
        await regularly(INTERVAL, self.look, "leases could not be swept")

    async def look(self) -> int:
        """Ends what has been unchanged for a fence; answers how many attempts."""
        now = await self.observe()
        fence = self._policy.fence.total_seconds()
        expired = [lease for lease, since in self._seen.items() if now - since >= fence]
        return await self._end(sorted(expired)[:_LIMIT]) if expired else 0

    async def observe(self) -> float:
        """Notes which leases are held, and since when each is as it is; answers when that was."""
        held = await self._database.read(_held)
        now = self._clock.monotonic()  # after the read: what was read was written before
        self._seen = {lease: self._seen.get(lease, now) for lease in held}
        return now

    async def _end(self, leases: Sequence[Lease]) -> int:
        def run(transaction: WriteTransaction) -> list[Record]:
            now = self._clock.now()
            expired: list[Record] = []
            for seq, epoch, renewed in leases:
                unchanged = {"seq": seq, "epoch": epoch, "renewed": renewed}
                if _UNCHANGED.first(transaction.connection, unchanged) is None:
                    continue
                record = store.load_by_seq(transaction.connection, seq, to_change=True)
                before = store.Before(record)
                record.expire(now, self._policy, self._jitter())
                store.save(transaction, record, before, now)
                expired.append(record)
            return expired

        expired = await self._database.write(run)
        for record in expired:
            facts = {"evaluation": evaluation_name(record.id), "attempt": record.attempt, "executor": record.executor}
            _LOG.warning("the lease of an attempt expired", extra=logs.fields(**facts))
        return len(expired)


def _held(connection: Connection) -> list[Lease]:
    return [(seq, epoch, renewed) for seq, epoch, renewed in _HELD.all(connection, {})]
