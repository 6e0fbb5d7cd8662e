"""How many items of a batch are where, kept with every change of an item, in the transaction that makes it."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select, text

from crucible.evaluation.v1 import batch_pb2
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage import models
from crucible_storage.lifecycle import CANCELLED, QUEUED, TERMINAL, Record
from crucible_storage.transaction import WriteTransaction

WAITING = 0
SKIPPED = 7
"""Between the two a kind is the number of an evaluation's state."""

_FIELDS = ("waiting", "queued", "running", "running", "succeeded", "failed", "cancelled", "skipped")

_NEEDED = (
    select(models.batch_dependency.c.needed_seq)
    .where(models.batch_dependency.c.needed_seq == bindparam("seq"))
    .limit(1)
)
_SETTLE = text(
    """
    INSERT INTO batch_settlement (evaluation_seq, tenant) VALUES (:evaluation_seq, :tenant)
    ON CONFLICT (evaluation_seq) DO NOTHING
    """
)


def kind_of(record: Record) -> int:
    """The kind of an item as its record stands; of one that was just skipped before its changes are stored."""
    if record.state == QUEUED and record.blocked:
        return WAITING
    if record.state == CANCELLED and record.changes.result is not None:
        cause = record.changes.result.termination.cancelled.cause
        return SKIPPED if cause == pb.CANCEL_CAUSE_DEPENDENCY_FAILED else CANCELLED
    return record.state


def moved(transaction: WriteTransaction, record: Record, before: int, after: int) -> None:
    """Notes that an item went from one kind to another; the last event that was appended tells of it.

    Call it after the item was updated: whoever adds an item that waits for this one locks its row first (see
    `batch_items`), so that either sees the other.
    """
    if record.batch is None or before == after:
        return
    transaction.count_batch(record.batch, before, record.tenant, -1)
    transaction.count_batch(record.batch, after, record.tenant, 1)
    if record.state in TERMINAL:
        transaction.end_item(record.seq, after)
        if transaction.execute(_NEEDED, {"seq": record.seq}).first() is not None:
            settle(transaction, record.tenant, [record.seq])


def settle(transaction: WriteTransaction, tenant: str, ended: Sequence[int]) -> None:
    """Has those that wait for these items, which ended, be told of it in the background."""
    transaction.execute(_SETTLE, [{"evaluation_seq": seq, "tenant": tenant} for seq in ended])
    transaction.notices.batch_work = True


def message(counts: dict[int, int]) -> batch_pb2.BatchProgress:
    """Counts by kind as the contract has them."""
    progress = batch_pb2.BatchProgress()
    for kind, count in counts.items():
        name = _FIELDS[kind]
        setattr(progress, name, getattr(progress, name) + count)
    return progress


def unended(counts: dict[int, int]) -> int:
    """How many have not ended."""
    return sum(count for kind, count in counts.items() if kind not in TERMINAL and kind != SKIPPED)
