"""The public keys that proofs are checked with: heads and records apart, so that no key does the other's work."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crucible.audit.v1 import audit_pb2 as pb
from crucible_rpc.signing import Verifier, key_id_of

HEADS, RECORDS = "heads", "records"
_FOLDERS = {pb.KEY_USE_HEADS: HEADS, pb.KEY_USE_RECORDS: RECORDS}
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_MAX_BYTES = 64 << 10
_MAX_FILES = 1000


class PublicKeysError(Exception):
    """The keys cannot be used; the text is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that signatures can be checked with.

    Attributes:
        key_id: its name in signatures.
        use: `heads` or `records`.
        pem: the key.
        current: whether it is in use now; one that was replaced stays known.
    """

    key_id: str
    use: str
    pem: str
    current: bool


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """What receipts and heads are checked with."""

    heads: Verifier
    records: Verifier

    @classmethod
    def of_files(cls, heads: Iterable[Path], records: Iterable[Path]) -> "PublicKeys":
        """The keys in these PEM files.

        Raises:
            PublicKeysError: a file cannot be read or holds no such key.
        """
        return cls(_verifier(map(_read, heads)), _verifier(map(_read, records)))

    @classmethod
    def of_folder(cls, folder: Path) -> "PublicKeys":
        """The keys in `heads/*.pub` and `records/*.pub`, as `$CRUCIBLE_HOME/pki/public` has them.

        Raises:
            PublicKeysError: there are none for heads, or a file cannot be used.
        """
        heads, records = (_files(folder / name) for name in (HEADS, RECORDS))
        if not heads:
            text = f"{folder} has no public keys in heads/*.pub; fetch some with crucible receipt keys --out FOLDER"
            raise PublicKeysError(text)
        return cls.of_files(heads, records)

    @classmethod
    def of(cls, keys: Iterable[PublicKey]) -> "PublicKeys":
        """These keys.

        Raises:
            PublicKeysError: one of them is none.
        """
        by_use: dict[str, list[bytes]] = {HEADS: [], RECORDS: []}
        for key in keys:
            by_use[key.use].append(key.pem.encode())
        return cls(_verifier(by_use[HEADS]), _verifier(by_use[RECORDS]))


def decode(messages: Iterable[pb.PublicKey]) -> tuple[PublicKey, ...]:
    """Keys as the server sent them; those for uses that are not known here are left out.

    Raises:
        PublicKeysError: a key is not the one that its id names.
    """
    keys = []
    for one in messages:
        use = _FOLDERS.get(one.use)
        if use is None:
            continue
        if not _KEY_ID.fullmatch(one.key_id) or _id(one.pem.encode(), "a key from the server") != one.key_id:
            raise PublicKeysError("the server sent a public key under an id that is not its own")
        keys.append(PublicKey(one.key_id, use, one.pem, one.current))
    return tuple(keys)


def write(folder: Path, keys: Iterable[PublicKey]) -> list[Path]:
    """Writes keys as `PublicKeys.of_folder` reads them; answers the files that were not there before.

    Raises:
        PublicKeysError: a file cannot be written, or holds another key.
    """
    made = []
    for key in keys:
        file = folder / key.use / f"{key.key_id}.pub"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_text(key.pem)
                made.append(file)
        except OSError as error:
            raise PublicKeysError(f"cannot write {file}: {error.strerror}") from None
        if _id(_read(file), str(file)) != key.key_id:
            raise PublicKeysError(f"{file} holds another key; name a new folder")
    return made


def _files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.pub")) if folder.is_dir() else []
    if len(found) > _MAX_FILES:
        raise PublicKeysError(f"{folder} holds more than {_MAX_FILES} keys")
    return found


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            pem = stream.read(_MAX_BYTES)
    except OSError as error:
        raise PublicKeysError(f"cannot read the key {file}: {error.strerror}") from None
    _id(pem, str(file))
    return pem


def _id(pem: bytes, where: str) -> str:
    try:
        return key_id_of(pem)
    except (ValueError, TypeError):
        raise PublicKeysError(f"{where} holds no Ed25519 public key in PEM form") from None


def _verifier(pems: Iterable[bytes]) -> Verifier:
    return Verifier({_id(pem, "a key"): pem for pem in pems})
