"""Signed heads of the audit log: made with storage's key for them, and checked with its public halves, old ones too."""

import hashlib

from google.protobuf.message import DecodeError

from crucible.audit.v1.audit_pb2 import Checkpoint
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_rpc.signing import BadSignatureError, Signer, Verifier

CONTEXT = "crucible.head.v1"
MAX_PAYLOAD = 4096
_HASHES = ("root_sha256", "chain_sha256", "previous_sha256")


class BadHeadError(Exception):
    """It is no head that a known key signed; the text says why."""


def sign(head: Checkpoint, signer: Signer) -> SignedBytes:
    """The head as it is published."""
    payload = head.SerializeToString(deterministic=True)
    made = signer.sign(CONTEXT, payload)
    return SignedBytes(payload=payload, key_id=made.key_id, signature=made.signature)


def verified(signed: SignedBytes, verifier: Verifier) -> Checkpoint:
    """The head inside.

    Raises:
        BadHeadError: it is not signed by a known key, or is no head.
    """
    if len(signed.payload) > MAX_PAYLOAD:
        raise BadHeadError("it is too large for a head")
    try:
        verifier.verify(CONTEXT, signed.payload, signed.key_id, signed.signature)
        head = Checkpoint.FromString(signed.payload)
    except BadSignatureError as error:
        raise BadHeadError(str(error)) from None
    except DecodeError:
        raise BadHeadError("what was signed is no head") from None
    if head.size < 0 or any(len(getattr(head, name)) != hashlib.sha256().digest_size for name in _HASHES):
        raise BadHeadError("what was signed is no head")
    return head


def digest(signed: SignedBytes) -> bytes:
    """What the next head names it by."""
    return hashlib.sha256(signed.payload).digest()
