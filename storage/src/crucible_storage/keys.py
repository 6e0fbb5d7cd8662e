"""Storage's keys for tickets and heads, and the executors' keys for records, from PEM files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crucible.audit.v1.audit_pb2 import KEY_USE_HEADS, KEY_USE_RECORDS, KeyUse, PublicKey
from crucible_rpc.errors import StartError
from crucible_rpc.signing import Signer, Verifier, key_id_of

_MAX_BYTES = 1 << 16
MAX_PUBLIC_KEYS = 1000


@dataclass(frozen=True, slots=True)
class HeadKeys:
    """The key that signs heads of the audit log, and all that ever did.

    Attributes:
        signer: the key in use.
        verifier: knows it and those before it.
        public: what receipts are checked with: these, the one in use first, and the executors' keys for records.
    """

    signer: Signer
    verifier: Verifier
    public: tuple[PublicKey, ...] = ()


def head_keys(private: Path, folder: Path, records: Iterable[Path]) -> HeadKeys:
    """The keys of heads.

    Args:
        private: the key in use.
        folder: public keys that proofs were ever signed with: `heads/*.pub` and `records/*.pub`.
        records: the executors' public keys in use.

    Raises:
        StartError: a file cannot be read or holds no such key.
    """
    signer = private_signer(private)
    heads = _by_id([signer.public_pem(), *_kept(folder / "heads")])
    current = _by_id(_public(file) for file in records)
    known = current | _by_id(_kept(folder / "records"))
    published = [_published(pem, KEY_USE_HEADS, current=name == signer.key_id) for name, pem in heads.items()]
    published += [_published(pem, KEY_USE_RECORDS, current=name in current) for name, pem in known.items()]
    return HeadKeys(signer, Verifier(heads), tuple(published))


def _kept(folder: Path) -> list[bytes]:
    """The public keys in a folder; it need not be there."""
    if not folder.is_dir():
        return []
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".pub")
    except OSError as error:
        raise StartError(f"cannot read the folder of public keys {folder}: {error.strerror}") from None
    if len(files) > MAX_PUBLIC_KEYS:
        raise StartError(f"{folder} holds more than {MAX_PUBLIC_KEYS} public keys")
    return [_public(file) for file in files]


def _by_id(pems: Iterable[bytes]) -> dict[str, bytes]:
    return {key_id_of(pem): pem for pem in pems}


def _published(pem: bytes, use: KeyUse.ValueType, *, current: bool) -> PublicKey:
    return PublicKey(key_id=key_id_of(pem), use=use, pem=pem.decode(), current=current)


def private_signer(file: Path) -> Signer:
    """The signer with this private key.

    Raises:
        StartError: the file holds no Ed25519 private key.
    """
    try:
        return Signer(_read(file))
    except (ValueError, TypeError):
        raise StartError(f"{file} holds no unencrypted Ed25519 private key in PEM form") from None


def record_verifier(files: Iterable[Path]) -> Verifier:
    """Knows the executors' keys.

    Raises:
        StartError: a file holds no Ed25519 public key.
    """
    return Verifier.of(*(_public(file) for file in files))


def _public(file: Path) -> bytes:
    pem = _read(file)
    try:
        Verifier.of(pem)
    except (ValueError, TypeError):
        raise StartError(f"{file} holds no Ed25519 public key in PEM form") from None
    return pem


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except OSError as error:
        raise StartError(f"cannot read the key {file}: {error.strerror}") from None
