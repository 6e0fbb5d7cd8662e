"""Items of a batch, stored part by part: each part in one transaction, and what is stored already only compared."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, insert, select, update

from crucible.evaluation.v1 import batch_pb2
from crucible_rpc.errors import (
    AlreadyExistsError,
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
)
from crucible_storage import admission, models, progress, store
from crucible_storage.evaluations import Wanted, insert_parts, new_record
from crucible_storage.lifecycle import TERMINAL, Record
from crucible_storage.names import batch_name, evaluation_name, invalid
from crucible_storage.policy import Policy
from crucible_storage.prepared import Prepared
from crucible_storage.transaction import WriteTransaction

MAX_ITEMS = 100_000

_ITEM, _EVALUATION = models.batch_item.c, models.evaluation.c
_KNOWN = (
    select(_ITEM.key, _ITEM.sha256, _EVALUATION.id)
    .join(models.evaluation, _EVALUATION.seq == _ITEM.evaluation_seq)
    .where(_ITEM.batch == bindparam("batch"), _ITEM.key.in_(bindparam("keys", expanding=True)))
)
# Locked, where rows can be locked: an item that ends meanwhile must see who waits for it, or be seen to have ended.
_NEEDED = (
    select(_ITEM.key, _EVALUATION.seq, _EVALUATION.state)
    .join(models.evaluation, _EVALUATION.seq == _ITEM.evaluation_seq)
    .where(_ITEM.batch == bindparam("batch"), _ITEM.key.in_(bindparam("keys", expanding=True)))
    .order_by(_EVALUATION.seq)
    .with_for_update(read=True, of=models.evaluation)
)
_STORED = ("evaluation_seq", "tenant", "batch", "number", "key", "sha256", "run_anyway")
_INSERT = Prepared(insert(models.batch_item).values({name: bindparam(name) for name in _STORED}))
_INSERT_DEPENDENCIES = Prepared(insert(models.batch_dependency))
_GROW = (
    update(models.batch)
    .where(models.batch.c.seq == bindparam("key"))
    .values(items=models.batch.c["items"] + bindparam("more"))
)


@dataclass(frozen=True, slots=True)
class Item:
    """One item as it was sent, in the forms in which it is stored; made outside the writer.

    Attributes:
        key: its key; the number when it was given none.
        number: its number in the stream.
        named: whether it was given a key, so that its number says nothing.
        after: keys of what it waits for.
        run_anyway: whether it runs whatever became of those.
        sha256: of all that makes two items the same.
        wanted: the evaluation it asks for.
    """

    key: str
    number: int
    named: bool
    after: tuple[str, ...]
    run_anyway: bool
    sha256: bytes
    wanted: Wanted

    @classmethod
    def of(cls, message: batch_pb2.BatchItem, number: int, tenant: str, creator: str) -> "Item":
        """What a message asks for."""
        wanted = Wanted.of(tenant, creator, "", message.spec)
        run_anyway = message.on_failure == batch_pb2.ON_DEPENDENCY_FAILURE_RUN_ANYWAY
        after = tuple(dict.fromkeys(message.after))
        rest = "\0".join((*sorted(after), str(run_anyway)))
        digest = hashlib.sha256(wanted.spec_sha256 + rest.encode()).digest()
        return cls(message.key or str(number), number, bool(message.key), after, run_anyway, digest, wanted)


@dataclass(frozen=True, slots=True)
class Added:
    """What became of a part.

    Attributes:
        items: how many the batch has now.
        refused: why the rest of the part was not taken; None when all of it is stored.
    """

    items: int
    refused: CallError | None = None


@dataclass(frozen=True, slots=True)
class Addition:
    """Adds items to one batch, inside a transaction that has locked its row."""

    transaction: WriteTransaction
    batch: Row[Any]
    policy: Policy
    now: int
    ids: Callable[[], str]

    def add(self, items: Sequence[Item]) -> Added:
        """Stores those that are not there yet, from the first on, as many as there is room for.

        Raises:
            AlreadyExistsError: BATCH_ITEM_REUSED.
            OutOfRangeError: BATCH_ITEMS_MISSING.
            FailedPreconditionError: BATCH_CLOSED or BATCH_TOO_LARGE.
            InvalidArgumentError: INVALID_FIELD, `after` names no earlier item, or a priority is above the tenant's.
            ResourceExhaustedError: QUEUE_FULL or QUOTA_EXCEEDED, there is no room even for the first.
        """
        new = self._new(items)
        stored: int = self.batch.items
        if not new:
            return Added(stored)
        if self.batch.complete_time is not None or self.batch.cancel_time is not None:
            raise closed(self.batch)
        if stored + len(new) > MAX_ITEMS:
            text = f"a batch has at most {MAX_ITEMS} items; make another one for the rest"
            raise FailedPreconditionError("BATCH_TOO_LARGE", text, metadata=_named(self.batch))
        needed = self._needed(new)
        _check_dependencies(new, needed)
        taken = self._admit(new)
        self._insert(new[:taken], needed)
        return Added(stored + taken, self._refusal(new[taken]) if taken < len(new) else None)

    def _new(self, items: Sequence[Item]) -> list[Item]:
        """Those that are not stored, each once."""
        known = {row.key: (row.sha256, row.id) for row in self._read(items)}
        new: dict[str, Item] = {}
        for item in items:
            sha256, evaluation_id = known.get(item.key, (b"", ""))
            if evaluation_id:
                if sha256 != item.sha256:
                    raise self._reused(item, evaluation_id)
            elif item.key in new:
                if new[item.key].sha256 != item.sha256:
                    raise self._reused(item, "")
            else:
                following = self.batch.items + len(new)
                if not item.named and item.number != following:
                    raise self._misplaced(item, following)
                new[item.key] = item
        return list(new.values())

    def _read(self, items: Sequence[Item]) -> Sequence[Row[tuple[str, bytes, str]]]:
        keys = [item.key for item in items]
        return self.transaction.execute(_KNOWN, {"batch": self.batch.id, "keys": keys}).fetchall()

    def _needed(self, new: Sequence[Item]) -> dict[str, tuple[int, int]]:
        """Of what they wait for and is stored already: number and state by key."""
        keys = sorted({key for item in new for key in item.after})
        if not keys:
            return {}
        rows = self.transaction.execute(_NEEDED, {"batch": self.batch.id, "keys": keys})
        return {row.key: (row.seq, row.state) for row in rows}

    def _refusal(self, following: Item) -> CallError | None:
        """Why there is no room for the first item that was not taken."""
        size = len(following.wanted.run_spec)
        return admission.refusal(self.transaction, self.policy, self.batch.tenant, self.now, count=1, stored_bytes=size)

    def _admit(self, new: Sequence[Item]) -> int:
        """Lets in as many of them as there is room for, at least one; answers how many."""
        first = max(new, key=lambda item: item.wanted.spec.priority)
        sizes = [len(item.wanted.run_spec) for item in new]
        fitting = admission.fitting(self.transaction, self.policy, self.batch.tenant, self.now, sizes)
        count = max(fitting, 1)  # where not even one fits, `admit` says why
        try:
            admission.admit(
                self.transaction,
                self.policy,
                self.batch.tenant,
                self.now,
                priority=first.wanted.spec.priority,
                stored_bytes=sum(sizes[:count]),
                count=count,
            )
        except InvalidArgumentError as error:  # it knows of one evaluation, not of its place
            [violation] = error.violations
            raise invalid(f"items[{first.number}].{violation.field}", violation.description) from error
        return count

    def _insert(self, new: Sequence[Item], needed: Mapping[str, tuple[int, int]]) -> None:
        batch, transaction = self.batch, self.transaction
        held = int(batch.start_when_complete)
        records = [
            new_record(item.wanted, self.ids(), self.now, self.policy, batch=batch.id, blocked=len(item.after) + held)
            for item in new
        ]
        store.insert_records(transaction, records, self.now)
        insert_parts(transaction, [(record, item.wanted) for record, item in zip(records, new, strict=True)])
        pairs = enumerate(zip(new, records, strict=True), batch.items)
        _INSERT.many(transaction.connection, [self._row(item, one, number) for number, (item, one) in pairs])
        for record in records:
            transaction.count_batch(batch.id, progress.kind_of(record), batch.tenant, 1)
        self._insert_dependencies(new, records, needed)
        transaction.execute(_GROW, {"key": batch.seq, "more": len(new)})

    def _row(self, item: Item, record: Record, number: int) -> dict[str, object]:
        return {
            "evaluation_seq": record.seq,
            "tenant": record.tenant,
            "batch": self.batch.id,
            "number": number,
            "key": item.key,
            "sha256": item.sha256,
            "run_anyway": item.run_anyway,
        }

    def _insert_dependencies(
        self, new: Sequence[Item], records: Sequence[Record], needed: Mapping[str, tuple[int, int]]
    ) -> None:
        seqs = {key: seq for key, (seq, _) in needed.items()}
        seqs |= {item.key: record.seq for item, record in zip(new, records, strict=True)}
        rows = [
            {"needed_seq": seqs[key], "evaluation_seq": record.seq, "tenant": record.tenant}
            for item, record in zip(new, records, strict=True)
            for key in item.after
        ]
        if rows:
            _INSERT_DEPENDENCIES.many(self.transaction.connection, rows)
        stored = [needed[key] for key in {key for item in new for key in item.after} & needed.keys()]
        if ended := sorted(seq for seq, state in stored if state in TERMINAL):
            progress.settle(self.transaction, self.batch.tenant, ended)

    def _reused(self, item: Item, evaluation_id: str) -> AlreadyExistsError:
        first = f" for {evaluation_name(evaluation_id)}" if evaluation_id else " earlier in this part"
        text = f"item {item.number}: the key {item.key!r} was used{first} with another body; use another key"
        metadata = _named(self.batch) | {"key": item.key}
        if evaluation_id:
            metadata["evaluation"] = evaluation_name(evaluation_id)
        return AlreadyExistsError("BATCH_ITEM_REUSED", text, metadata=metadata)

    def _misplaced(self, item: Item, following: int) -> CallError:
        if item.number > following:
            text = f"items are missing: {following} are stored, and this is number {item.number}; send the rest first"
            return OutOfRangeError("BATCH_ITEMS_MISSING", text, metadata=_named(self.batch) | {"items": str(following)})
        text = f"item {item.number} has no key, and another item has its number; send the items in the same order"
        return AlreadyExistsError("BATCH_ITEM_REUSED", text, metadata=_named(self.batch) | {"key": item.key})


def _check_dependencies(new: Sequence[Item], needed: Mapping[str, object]) -> None:
    """What an item waits for comes before it: so nothing can wait for itself, however long the way round."""
    earlier: set[str] = set()
    for item in new:
        for number, key in enumerate(item.after):
            if key not in needed and key not in earlier:
                raise invalid(
                    f"items[{item.number}].after[{number}]", "must be the key of an earlier item of the batch"
                )
        earlier.add(item.key)


def closed(batch: Row[Any]) -> FailedPreconditionError:
    """The error that a batch takes no further items."""
    why = "was cancelled" if batch.cancel_time is not None else "is complete"
    text = f"{batch_name(batch.id)} {why} and takes no further items; make another batch"
    return FailedPreconditionError("BATCH_CLOSED", text, metadata=_named(batch))


def _named(batch: Row[Any]) -> dict[str, str]:
    return {"batch": batch_name(batch.id)}
