"""Ed25519 signatures over bytes and a context: a signature made for one purpose is worth nothing for another."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class BadSignatureError(Exception):
    """The signature is not one of a known key over this context and payload."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature of 64 bytes and the id of the key that made it."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """A new key pair: PKCS#8 and SubjectPublicKeyInfo, both PEM."""

    private_pem: bytes
    public_pem: bytes
    key_id: str


def generate() -> SigningKeys:
    """A new random key pair."""
    private = Ed25519PrivateKey.generate()
    private_pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public_pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return SigningKeys(private_pem, public_pem, _key_id(private.public_key()))


def key_id_of(public_pem: bytes) -> str:
    """The id of a public key: the first 16 hex digits of the SHA-256 of its 32 raw bytes."""
    return _key_id(_public(public_pem))


class Signer:
    """Signs with one private key.

    Args:
        private_pem: PKCS#8 PEM of an Ed25519 key, without a password.
        key_id: what the key is called in signatures; by default derived from the public key, as `key_id_of` does.

    Raises:
        ValueError: the PEM holds no such key.
    """

    def __init__(self, private_pem: bytes, key_id: str | None = None) -> None:
        key = serialization.load_pem_private_key(private_pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("a signing key must be an Ed25519 private key")  # noqa: TRY004  # the bytes are wrong
        self._key = key
        self.key_id = key_id or _key_id(key.public_key())

    def public_pem(self) -> bytes:
        """This key's public half, SubjectPublicKeyInfo PEM."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifier(self) -> "Verifier":
        """Knows this key's public half."""
        return Verifier({self.key_id: self.public_pem()})

    def sign(self, context: str, payload: bytes) -> Signature:
        """Signs `context || 0x00 || payload`."""
        return Signature(self.key_id, self._key.sign(_message(context, payload)))


class Verifier:
    """Knows public keys by their ids.

    Args:
        public_pems: SubjectPublicKeyInfo PEM of Ed25519 keys, by key id.

    Raises:
        ValueError: a PEM holds no such key.
    """

    def __init__(self, public_pems: Mapping[str, bytes]) -> None:
        self._keys = {key_id: _public(pem) for key_id, pem in public_pems.items()}

    @classmethod
    def of(cls, *public_pems: bytes) -> "Verifier":
        """A verifier of keys whose ids are derived from them, as `Signer` does by default."""
        return cls({key_id_of(pem): pem for pem in public_pems})

    def verify(self, context: str, payload: bytes, key_id: str, signature: bytes) -> None:
        """Returns when `signature` is the key's over `context || 0x00 || payload`.

        Raises:
            BadSignatureError: it is not, or the key is unknown.
        """
        key = self._keys.get(key_id)
        if key is None:
            raise BadSignatureError(f"no public key is known by the id {key_id[:64]!r}")
        try:
            key.verify(signature, _message(context, payload))
        except InvalidSignature:
            raise BadSignatureError(f"the signature does not match the {context} payload") from None


def _message(context: str, payload: bytes) -> bytes:
    if "\0" in context:
        raise ValueError("a signing context has no NUL character")
    return context.encode() + b"\0" + payload


def _public(pem: bytes) -> Ed25519PublicKey:
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a verification key must be an Ed25519 public key")  # noqa: TRY004  # the bytes are wrong
    return key


def _key_id(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]
