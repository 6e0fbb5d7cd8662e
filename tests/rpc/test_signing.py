import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible_rpc import pki, signing
from crucible_rpc.signing import BadSignatureError, Signer, Verifier

KEYS = signing.generate()
SIGNER = Signer(KEYS.private_pem)
VERIFIER = Verifier.of(KEYS.public_pem)


def test_what_was_signed_verifies():
    made = SIGNER.sign("ticket", b"payload")
    assert len(made.signature) == 64
    VERIFIER.verify("ticket", b"payload", made.key_id, made.signature)


def test_the_key_id_is_derived_from_the_raw_public_key():
    raw = serialization.load_pem_public_key(KEYS.public_pem).public_bytes_raw()
    assert KEYS.key_id == SIGNER.key_id == signing.key_id_of(KEYS.public_pem) == hashlib.sha256(raw).hexdigest()[:16]


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=64), where=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_fails(payload, where, bit):
    made = SIGNER.sign("ticket", payload)
    everything = bytearray(b"ticket" + payload + made.signature)
    everything[where % len(everything)] ^= 1 << bit
    context, rest = bytes(everything[:6]), bytes(everything[6:])
    try:
        with pytest.raises(BadSignatureError):
            VERIFIER.verify(context.decode(), rest[: len(payload)], made.key_id, rest[len(payload) :])
    except (UnicodeDecodeError, ValueError):
        pass  # the flipped context is not a text, or holds a NUL


def test_context_and_payload_cannot_be_shifted_into_each_other():
    made = SIGNER.sign("tic", b"ket")
    with pytest.raises(BadSignatureError):
        VERIFIER.verify("ticket", b"", made.key_id, made.signature)
    with pytest.raises(ValueError, match="NUL"):
        SIGNER.sign("a\0b", b"")


@pytest.mark.parametrize("signature", [b"", b"x" * 63, b"x" * 65, b"\0" * 64])
def test_a_malformed_signature_fails(signature):
    with pytest.raises(BadSignatureError):
        VERIFIER.verify("ticket", b"", KEYS.key_id, signature)


def test_an_unknown_key_and_anothers_key_fail():
    other = signing.generate()
    made = Signer(other.private_pem).sign("ticket", b"x")
    with pytest.raises(BadSignatureError, match="no public key is known"):
        VERIFIER.verify("ticket", b"x", made.key_id, made.signature)
    with pytest.raises(BadSignatureError, match="does not match"):
        VERIFIER.verify("ticket", b"x", KEYS.key_id, made.signature)


def test_other_kinds_of_keys_are_refused():
    ca = pki.make_ca()
    with pytest.raises(ValueError, match="Ed25519"):
        Signer(ca.key_pem)
    with pytest.raises(ValueError):
        Verifier({"x": b"nonsense"})


def test_a_signer_knows_the_verifier_of_its_own_signatures_and_of_no_others():
    signer = Signer(KEYS.private_pem)
    made = signer.sign("ticket", b"x")
    signer.verifier().verify("ticket", b"x", made.key_id, made.signature)
    with pytest.raises(BadSignatureError):
        Signer(signing.generate().private_pem).verifier().verify("ticket", b"x", made.key_id, made.signature)
