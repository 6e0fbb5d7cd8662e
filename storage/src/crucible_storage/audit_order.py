"""Judges each record of the audit log by its neighbours: its own hash, and the chain.

A record's chain hash was made from its own leaf hash and the chain hash of the record before it. So what does not fit
its neighbour, but does fit another one, says what was done to it.
"""

from collections.abc import Callable

from crucible.audit.v1 import audit_pb2 as pb
from crucible.audit.v1.audit_pb2 import AuditFault, AuditFinding
from crucible_rpc import merkle
from crucible_storage import audit
from crucible_storage.audit import Sealed

Report = Callable[[AuditFinding], None]


class Order:
    """Takes records by position and gives them on in the order in which they were sealed, without what was put in.

    Each is judged when the next one is known: only that tells one that was put in from one that was changed.

    Args:
        report: told of what is wrong.
        short: how many records the last head covers beyond the last position.

    Attributes:
        broken: whether what is given on is no longer all that was sealed, in its order.
        absent: positions without a record.
        inserted: records that were put in.
        removed: places from which records were taken away.
    """

    def __init__(self, report: Report, short: int = 0) -> None:
        self.broken = False
        self.absent = 0
        self.inserted = 0
        self.removed = 0
        self._report = report
        self._short = short
        self._chain: bytes | None = audit.CHAIN_START  # of the record before; None after a gap: nobody knows
        self._next_position = 1
        self._held: Sealed | None = None
        self._displaced = False

    def take(self, row: Sealed) -> list[Sealed]:
        """The next record by position; answers those that are now in their place."""
        held, self._held = self._held, row
        return [] if held is None else self._judge(held, row)

    def finish(self) -> list[Sealed]:
        """No more records will come; answers the last ones."""
        held, self._held = self._held, None
        return [] if held is None else self._judge(held, None)

    def _judge(self, row: Sealed, following: Sealed | None) -> list[Sealed]:
        self._check_gap(row)
        if following is not None and following.position != row.position + 1:
            following = None  # the gap between them is told of with that one
        fits = self._chain is None or _follows(row, self._chain)
        followed = following is None or _follows(following, row.chain)
        if not followed and following is not None and self._displaces(following, fits=fits):
            if not fits and _follows(row, following.chain):
                return self._swapped(row, following)
            self._tell(pb.AUDIT_FAULT_INSERTED, row, f"record {row.position} was put in")
            self.inserted += 1
            self._short += 1
            return []
        self._check_content_and_place(row, fits=fits, followed=followed)
        self._chain = row.chain
        return [row]

    def _displaces(self, following: Sealed, *, fits: bool) -> bool:
        """Whether the record that follows stood in the place of the one before it, which fits there itself or not."""
        if self._chain is None or not _follows(following, self._chain):
            return False
        return not (fits and _changed(following))  # a forged copy of the one that stood there

    def _check_gap(self, row: Sealed) -> None:
        first, self._next_position = self._next_position, row.position + 1
        if row.position <= first:
            return
        last = row.position - 1
        what = f"record {first} is missing" if first == last else f"records {first} to {last} are missing"
        self._report(AuditFinding(fault=pb.AUDIT_FAULT_MISSING, position=first, message=what))
        self.absent += row.position - first
        self.broken, self._chain = True, None

    def _check_content_and_place(self, row: Sealed, *, fits: bool, followed: bool) -> None:
        displaced, self._displaced = self._displaced, False
        if _changed(row):
            self._tell(pb.AUDIT_FAULT_CHANGED, row, f"record {row.position} was changed")
        elif not fits and not followed:
            self._displaced = True
            self._tell(pb.AUDIT_FAULT_MOVED, row, f"another record stands in the place of record {row.position}")
        elif not fits and not displaced:
            self._tell_unconnected(row)
        self.broken |= not fits

    def _tell_unconnected(self, row: Sealed) -> None:
        before = f"record {row.position} does not follow the one before it"
        if self._short > 0:
            self._short -= 1
            self.removed += 1
            self._tell(pb.AUDIT_FAULT_REMOVED, row, f"{before}: what stood between them was removed")
        else:
            self._tell(pb.AUDIT_FAULT_CHANGED, row, f"{before}: one of the two was changed together with its hashes")

    def _swapped(self, row: Sealed, following: Sealed) -> list[Sealed]:
        text = f"records {row.position} and {following.position} stand in each other's place"
        self._tell(pb.AUDIT_FAULT_MOVED, row, text)
        for one in (row, following):
            if _changed(one):
                self._tell(pb.AUDIT_FAULT_CHANGED, one, f"record {one.position} was changed")
        self._held, self._chain = None, row.chain
        self._next_position = following.position + 1
        return [following, row]

    def _tell(self, fault: AuditFault.ValueType, row: Sealed, message: str) -> None:
        self._report(AuditFinding(fault=fault, position=row.position, message=message))


def _follows(row: Sealed, chain: bytes) -> bool:
    return audit.chained(chain, row.leaf) == row.chain


def _changed(row: Sealed) -> bool:
    return merkle.leaf_hash(audit.leaf_data(row)) != row.leaf
