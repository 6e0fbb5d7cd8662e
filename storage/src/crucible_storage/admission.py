"""Whether more work is taken: asked in the transaction that would store it, by single evaluations and batches alike."""

from datetime import timedelta

from crucible_rpc.errors import ResourceExhaustedError
from crucible_storage.policy import Policy
from crucible_storage.transaction import WriteTransaction

_QUEUE_FULL_RETRY = timedelta(seconds=5)


def admit(transaction: WriteTransaction, policy: Policy, count: int) -> None:
    """Returns when `count` more evaluations may be stored, all of them or none.

    Raises:
        ResourceExhaustedError: QUEUE_FULL.
    """
    if transaction.queued + count > policy.max_queued:
        text = f"{policy.max_queued} evaluations are queued, which is as many as may be; try again later"
        raise ResourceExhaustedError("QUEUE_FULL", text, retry_after=_QUEUE_FULL_RETRY)
