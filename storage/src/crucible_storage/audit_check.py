"""Checks an audit log against its signed heads: pages of records and heads come in, findings go out.

Pure, and as large as the tree's right edge: the tree is built anew over the records, in the order that `audit_order`
finds, and its root compared with that of each head.
"""

from collections import deque
from collections.abc import Iterable

from crucible.audit.v1 import audit_pb2 as pb
from crucible.audit.v1.audit_pb2 import AuditFault, AuditFinding, Checkpoint
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_rpc import merkle
from crucible_rpc.signing import Verifier
from crucible_storage import audit, audit_heads
from crucible_storage.audit import Sealed
from crucible_storage.audit_order import Order

StoredHead = tuple[int, SignedBytes]
"""A signed head and the size that it is stored under."""


class Check:
    """One check of one log.

    Args:
        verifier: knows the keys of heads, old ones too.
        last_position: of the last record that there is.
        last_head: the size of the last head that there is; 0: none.
        since: an earlier head that was kept elsewhere, its signature already checked.

    Attributes:
        findings: told so far and not taken yet.
        told: how many there were in all.
        records: how many were looked at.
        heads: how many were looked at.
        completed: complete subtrees above the leaves since they were last taken, while `sound`.
    """

    def __init__(
        self, verifier: Verifier, *, last_position: int, last_head: int, since: Checkpoint | None = None
    ) -> None:
        self.findings: list[AuditFinding] = []
        self.told = 0
        self.records = 0
        self.heads = 0
        self.completed: list[merkle.Node] = []
        self._verifier = verifier
        self._last_position = last_position
        self._last_head = last_head
        self._since = since
        self._order = Order(self._report, last_head - last_position)
        self._frontier = merkle.Frontier()
        self._due: deque[StoredHead] = deque()
        self._previous: bytes | None = audit.CHAIN_START
        self._good = 0
        self._rewritten = False

    @property
    def sound(self) -> bool:
        """Whether the tree so far is over all that was sealed."""
        return not self._order.broken and not self._rewritten

    def take(self, rows: Iterable[Sealed], heads: Iterable[StoredHead]) -> None:
        """The next records by position, and the heads over as many records as the last of them says, by size."""
        self._due.extend(heads)
        for row in rows:
            self.records += 1
            for placed in self._order.take(row):
                self._place(placed)

    def beyond(self, heads: Iterable[StoredHead]) -> None:
        """There are no more records; `heads` are the next of those over more than there are."""
        for placed in self._order.finish():
            self._place(placed)
        self._due.extend(heads)
        while self._due:
            self._check_head(*self._due.popleft(), chain=None)

    def finish(self) -> None:
        """There are no more heads either."""
        self.beyond(())
        self._check_end()
        self._check_since_at_end()

    def tree(self, node: merkle.Node, stored: bytes | None) -> None:
        """What is stored of a complete subtree; None: nothing."""
        if node.hash != stored:
            first, last = (node.number << node.level) + 1, (node.number + 1) << node.level
            text = f"the stored part of the tree over records {first} to {last} is not that of these records"
            self._tell(pb.AUDIT_FAULT_TREE, first, text)

    def _place(self, row: Sealed) -> None:
        for node in self._frontier.append(row.leaf):
            if node.level:
                self.completed.append(node)
        size = self._frontier.size
        if self._since is not None and self.sound and size == self._since.size:
            self._compare_since(self._since)
        while self._due and self._due[0][0] <= (size if self.sound else row.position):
            self._check_head(*self._due.popleft(), chain=row.chain)

    def _check_head(self, size: int, signed: SignedBytes, chain: bytes | None) -> None:
        self.heads += 1
        previous, self._previous = self._previous, audit_heads.digest(signed)
        try:
            head = audit_heads.verified(signed, self._verifier)
        except audit_heads.BadHeadError as error:
            self._tell(pb.AUDIT_FAULT_CHECKPOINT, size, f"the head over {size} records cannot be trusted: {error}")
            self._previous = None
            return
        if head.size != size:
            text = f"the head over {head.size} records is stored as that over {size}"
            self._tell(pb.AUDIT_FAULT_CHECKPOINT, size, text)
        elif previous not in (None, head.previous_sha256):
            text = f"the head before that over {size} records is missing, or is not the one that was signed"
            self._tell(pb.AUDIT_FAULT_CHECKPOINT, size, text)
        if self.sound and chain is not None and self._frontier.size == head.size:
            self._compare(head, chain)

    def _compare(self, head: Checkpoint, chain: bytes) -> None:
        if (head.root_sha256, head.chain_sha256) == (self._frontier.root(), chain):
            self._good = head.size
            return
        self._rewritten = True
        first = self._good + 1
        text = f"records {first} to {head.size} fit together, but are not those that the head over them was signed for"
        self._tell(pb.AUDIT_FAULT_ROOT, first, text)

    def _compare_since(self, since: Checkpoint) -> None:
        if since.root_sha256 != self._frontier.root():
            text = f"the first {since.size} records are not those that the earlier head was signed for"
            self._tell(pb.AUDIT_FAULT_HISTORY, 1, text)

    def _check_end(self) -> None:
        last, covered = self._last_position - self._order.inserted, self._last_head
        if last > covered:
            text = f"{_span(covered + 1, last)} under no head: put there, or their head was removed"
            self._tell(pb.AUDIT_FAULT_END, covered + 1, text)
        elif last + self._order.removed < covered:
            first = self._last_position + 1
            text = f"{_span(first, covered)} missing at the end: the last head covers {covered} records"
            self._tell(pb.AUDIT_FAULT_END, first, text)

    def _check_since_at_end(self) -> None:
        if self._since is not None and self._since.size > self._last_head:
            first = self._last_head + 1
            text = f"{_span(first, self._since.size)} missing with their heads: the earlier head covers them"
            self._tell(pb.AUDIT_FAULT_HISTORY, first, text)

    def _tell(self, fault: AuditFault.ValueType, position: int, message: str) -> None:
        self._report(AuditFinding(fault=fault, position=position, message=message))

    def _report(self, finding: AuditFinding) -> None:
        self.told += 1
        self.findings.append(finding)


def _span(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"
