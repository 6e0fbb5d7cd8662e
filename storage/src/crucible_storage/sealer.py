"""Gives what waits its place in the audit log: numbers, chain, tree and signed head, behind the writers' backs.

Any number of sealers may work on one database: a step locks the log's head, and one that finds it locked waits outside
any transaction, so that it holds nothing that the other one may need.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update

from crucible.audit.v1.audit_pb2 import Checkpoint
from crucible_rpc import merkle
from crucible_rpc.errors import CallError, UnavailableError
from crucible_rpc.signing import Signer
from crucible_storage import audit, audit_heads, audit_tables, models
from crucible_storage.audit import Sealed
from crucible_storage.clock import Clock, timestamp
from crucible_storage.database import Database
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import WriteTransaction

INTERVAL = timedelta(seconds=1)
MAX_STEP = 512
"""Records sealed in one transaction: other writers wait for no more."""

_BUSY_SECONDS = 0.05
_MAX_BUSY = 200

_PENDING, _HEAD = models.audit_pending.c, models.audit_head.c
_LOCK_HEAD = select(_HEAD.size, _HEAD.frontier).where(_HEAD.id == 1).with_for_update(skip_locked=True)
_WAITING = (
    select(_PENDING.seq, *(_PENDING[name] for name in Sealed._fields[1:7])).order_by(_PENDING.seq).limit(MAX_STEP)
)
_TAKE = delete(models.audit_pending).where(_PENDING.seq.in_(bindparam("done", expanding=True)))
_INSERT_RECORDS = Prepared(insert(models.audit_record))
_INSERT_NODES = Prepared(insert(models.audit_node))
_INSERT_CHECKPOINT = insert(models.audit_checkpoint)
_MOVE_HEAD = (
    update(models.audit_head)
    .where(_HEAD.id == 1)
    .values(size=bindparam("new_size"), frontier=bindparam("new_frontier"))
)
_LOG = logging.getLogger(__name__)


class Sealer:
    """Seals every `INTERVAL`, and when somebody asks.

    Args:
        database: where.
        signer: storage's key for heads.
        clock: for the heads' times.
    """

    def __init__(self, database: Database, signer: Signer, clock: Clock) -> None:
        self._database = database
        self._signer = signer
        self._clock = clock
        self._healthy = True

    async def run(self) -> None:
        """Seals until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL.total_seconds())
            try:
                await self.seal()
                self._healthy = True
            except CallError as error:
                if self._healthy:  # once: a damaged log stays damaged, and its records wait
                    _LOG.error("the audit log cannot be sealed: %s", error)
                self._healthy = False
            except Exception:
                _LOG.exception("the audit log cannot be sealed; trying again")

    async def seal(self) -> int:
        """Seals all that waits now; answers how many records.

        Raises:
            DataLossError: AUDIT_LOG_DAMAGED, the log's end is not what was signed last; nothing is sealed then.
            CallError: the database cannot be written.
        """
        sealed = busy = 0
        while await self._database.read(audit_tables.any_pending):
            step = await self._database.write(self._step)
            if step is not None:
                sealed, busy = sealed + step, 0
                if step < MAX_STEP:
                    break
                continue
            busy += 1
            if busy > _MAX_BUSY:
                text = "another process has been sealing the audit log for long; try again"
                raise UnavailableError("PEER_UNAVAILABLE", text, retry_after=INTERVAL)
            await asyncio.sleep(_BUSY_SECONDS)
        return sealed

    def _step(self, transaction: WriteTransaction) -> int | None:
        """Seals what waits, at most `MAX_STEP`; None when another process is at it."""
        locked = transaction.execute(_LOCK_HEAD).one_or_none()
        if locked is None:
            return None
        frontier, last = _end(transaction, locked.size, locked.frontier)
        waiting = transaction.execute(_WAITING).fetchall()
        if not waiting:
            return 0
        nodes: list[dict[str, object]] = []
        records: list[dict[str, object]] = []
        chain = last.chain_sha256
        for row in waiting:
            bare = _bare(frontier.size + 1, row)
            leaf = merkle.leaf_hash(audit.leaf_data(bare))
            chain = audit.chained(chain, leaf)
            records.append(bare._replace(leaf=leaf, chain=chain)._asdict())
            nodes += [_node(one) for one in frontier.append(leaf) if one.level and not one.level % audit_tables.STEP]
        _INSERT_RECORDS.many(transaction.connection, records)
        if nodes:
            _INSERT_NODES.many(transaction.connection, nodes)
        transaction.execute(_TAKE, {"done": [row[0] for row in waiting]})
        transaction.execute(_MOVE_HEAD, {"new_size": frontier.size, "new_frontier": b"".join(frontier.hashes)})
        self._sign(transaction, frontier, chain, last.previous_sha256)
        return len(waiting)

    def _sign(self, transaction: WriteTransaction, frontier: merkle.Frontier, chain: bytes, previous: bytes) -> None:
        head = Checkpoint(
            size=frontier.size,
            root_sha256=frontier.root(),
            chain_sha256=chain,
            previous_sha256=previous,
            time=timestamp(self._clock.now()),
        )
        signed = audit_heads.sign(head, self._signer)
        row = {"size": head.size, "tenant": models.PLATFORM, "payload": signed.payload}
        transaction.execute(_INSERT_CHECKPOINT, row | {"key_id": signed.key_id, "signature": signed.signature})


def _end(transaction: WriteTransaction, size: int, packed: bytes) -> tuple[merkle.Frontier, Checkpoint]:
    """The tree's right edge, and the last checkpoint with its own digest as `previous_sha256`.

    What was signed last must be what is there: nothing is signed on top of a log that somebody else wrote.

    Raises:
        DataLossError: AUDIT_LOG_DAMAGED.
    """
    found = audit_tables.last_checkpoint(transaction.connection)
    if found is None:
        if size or audit_tables.last_position(transaction.connection):
            raise audit_tables.damaged("it has records and no checkpoint")
        return merkle.Frontier(), Checkpoint(chain_sha256=audit.CHAIN_START, previous_sha256=audit.CHAIN_START)
    last = Checkpoint.FromString(found[1].payload)
    frontier = _unpacked(size, packed)
    if frontier.root() != last.root_sha256 or not found[0] == last.size == size:
        raise audit_tables.damaged("its head is not that of its last checkpoint")
    if audit_tables.last_position(transaction.connection) != size:
        raise audit_tables.damaged("its last record is not that of its last checkpoint")
    last.previous_sha256 = audit_heads.digest(found[1])
    return frontier, last


def _bare(position: int, row: Any) -> Sealed:
    """A record in its place, its hashes yet to be made."""
    _, tenant, time, actor, action, subject, details = row
    return Sealed(position, tenant, time, actor, action, subject, details, leaf=b"", chain=b"")


def _unpacked(size: int, packed: bytes) -> merkle.Frontier:
    width = merkle.HASH_BYTES
    hashes: Sequence[bytes] = [packed[at : at + width] for at in range(0, len(packed), width)]
    try:
        return merkle.Frontier(size, hashes)
    except ValueError:
        raise audit_tables.damaged("its head is malformed") from None


def _node(node: merkle.Node) -> dict[str, object]:
    return {"level": node.level, "number": node.number, "tenant": models.PLATFORM, "hash": node.hash}
