"""Receipts: how one evaluation ended, with the proof that the audit log has it so."""

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from crucible.audit.v1.audit_pb2 import Checkpoint, Receipt
from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_rpc import merkle
from crucible_rpc.errors import FailedPreconditionError, NotFoundError
from crucible_storage import audit, audit_tables, models, store
from crucible_storage.database import Database
from crucible_storage.names import evaluation_name
from crucible_storage.sealer import Sealer

_RESULT = select(models.result.c.result).where(models.result.c.evaluation_seq == bindparam("seq"))


class Receipts:
    """Makes receipts.

    Args:
        database: where.
        sealer: seals an end that has no place in the log yet.
    """

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._database = database
        self._sealer = sealer

    async def get(self, tenant: str, evaluation_id: str) -> Receipt:
        """The receipt of a finished evaluation; what it needs of the log is sealed now if it was not.

        Raises:
            NotFoundError: EVALUATION_NOT_FOUND, or RECEIPT_NOT_FOUND when it ended before there were receipts.
            FailedPreconditionError: EVALUATION_NOT_FINISHED.
            DataLossError: AUDIT_LOG_DAMAGED, the log does not fit together: no receipt of it would hold.
        """

        def run(connection: Connection) -> Receipt | None:
            return _made(connection, tenant, evaluation_id)

        made = await self._database.read(run)
        if made is None:
            await self._sealer.seal()
            made = await self._database.read(run)
        if made is None:
            raise NotFoundError(
                "RECEIPT_NOT_FOUND", f"evaluations/{evaluation_id} ended before receipts were kept; there is none"
            )
        return made


def _made(connection: Connection, tenant: str, evaluation_id: str) -> Receipt | None:
    """The receipt from what is sealed; None when the end of the evaluation is not."""
    record = store.load_owned(connection, tenant, evaluation_id)
    if not record.terminal:
        text = f"evaluations/{evaluation_id} has not ended, so it has no receipt yet; wait for its end"
        raise FailedPreconditionError("EVALUATION_NOT_FINISHED", text)
    row = audit_tables.of_subject(connection, evaluation_name(evaluation_id), audit.EVALUATION_FINISH)
    last = audit_tables.last_checkpoint(connection)
    if row is None or last is None:
        return None
    head = Checkpoint.FromString(last[1].payload)
    if row.position > head.size:
        raise audit_tables.damaged(f"record {row.position} is under no head")
    receipt = Receipt(
        record=audit.leaf_data(row),
        position=row.position,
        inclusion=merkle.inclusion(row.position - 1, head.size, audit_tables.subtrees(connection)),
        head=last[1],
    )
    result = pb.Evaluation.FromString(connection.execute(_RESULT, {"seq": record.seq}).scalar_one())
    if result.provenance.record.payload:
        receipt.final_record.CopyFrom(result.provenance.record)
    _check(receipt, head)
    return receipt


def _check(receipt: Receipt, head: Checkpoint) -> None:
    """What is handed out holds: a log that was tampered with is told of here, not first where the receipt is used."""
    leaf = merkle.leaf_hash(receipt.record)
    try:
        merkle.check_inclusion(leaf, receipt.position - 1, head.size, receipt.inclusion, head.root_sha256)
    except merkle.BadProofError:
        raise audit_tables.damaged(f"record {receipt.position} is not what was signed") from None
