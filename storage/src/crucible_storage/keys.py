"""Storage's key for tickets and the executors' keys for records, from PEM files."""

from collections.abc import Iterable
from pathlib import Path

from crucible_rpc.errors import StartError
from crucible_rpc.signing import Signer, Verifier

_MAX_BYTES = 1 << 16


def ticket_signer(file: Path) -> Signer:
    """The signer of tickets.

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
    pems: list[bytes] = []
    for file in files:
        pems.append(_read(file))
        try:
            Verifier.of(pems[-1])
        except (ValueError, TypeError):
            raise StartError(f"{file} holds no Ed25519 public key in PEM form") from None
    return Verifier.of(*pems)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_BYTES)
    except OSError as error:
        raise StartError(f"cannot read the key {file}: {error.strerror}") from None
