"""The keys and certificates of one home, made at the first start and renewed before they expire.

```
pki/ca.crt                     the development authority, for everybody
pki/ca.key                     its key, root's alone
pki/public/{tickets,records}.pub   what tickets and final records are checked with, for everybody
pki/public/{heads,records}/<key id>.pub   what heads of the audit log and final records were ever checked with
pki/<process>/                 0700, the process's user's own: tls.key, tls.crt, ca.crt
pki/storage/tickets.key        signs tickets
pki/storage/heads.key          signs heads of the audit log
pki/executor/records.key       signs final records
client.toml                    address and first admin key, root's alone
```
"""

import hashlib
import json
import secrets
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from crucible_deploy.atomic import read_file, write_file
from crucible_deploy.layout import Layout, folder
from crucible_deploy.users import ROOT, Account
from crucible_rpc import pki, signing

RENEW_BEFORE = timedelta(days=30)
"""A certificate with less than this left is replaced at the next start."""

SIGNERS = {"tickets": "storage", "records": "executor", "heads": "storage"}
"""Which process holds which signing key."""

KEPT = ("heads", "records")
"""What these sign is shown to others years later: their public halves stay when they are replaced."""


class CredentialsError(Exception):
    """The keys on disk are damaged; the text is one line that says what to do."""


@dataclass(frozen=True)
class Credentials:
    """What the processes are told beside their files.

    Attributes:
        admin_key_sha256: hex digest of the first admin API key.
        renewed: names of what was made anew, for the log; empty when all was there.
    """

    admin_key_sha256: str
    renewed: tuple[str, ...]


def ensure(layout: Layout, accounts: Mapping[str, Account], now: datetime | None = None) -> Credentials:
    """Makes what is missing or about to expire, leaves the rest as it is, and corrects owners and modes of folders.

    Args:
        layout: the home, made before by `make_home`.
        accounts: the users by process; processes that are not named run as root.
        now: the time to judge expiry by; default: this moment.

    Raises:
        CredentialsError: a key is there but damaged.
        OSError: the home cannot be written.
    """
    now = now or datetime.now(UTC)
    renewed: list[str] = []
    authority = _authority(layout, now, renewed)
    for process in ("storage", "monitor", "executor", "worker", "gateway"):
        account = accounts.get(process, ROOT)
        own = layout.pki / process
        folder(own, 0o700, account.uid, account.gid)
        _certificate(own, process, account, authority, now, renewed)
    folder(layout.pki / "public", 0o755)
    for name in KEPT:
        folder(layout.pki / "public" / name, 0o755)
    for name, process in SIGNERS.items():
        _signing_key(layout, name, process, accounts.get(process, ROOT), renewed)
    return Credentials(_admin_key(layout, renewed), tuple(renewed))


def _authority(layout: Layout, now: datetime, renewed: list[str]) -> pki.Certificate:
    cert_file, key_file = layout.pki / "ca.crt", layout.pki / "ca.key"
    cert, key = read_file(cert_file), read_file(key_file)
    if cert is not None and key is not None and _left(cert, cert_file, now) > RENEW_BEFORE:
        return pki.Certificate(cert, key)
    made = pki.make_ca()
    # The key first: a certificate without its key could never be used, and would never be replaced.
    write_file(key_file, made.key_pem, mode=0o400)
    write_file(cert_file, made.cert_pem, mode=0o444)
    renewed.append("authority")
    return made


def _certificate(
    own: Path, process: str, account: Account, authority: pki.Certificate, now: datetime, renewed: list[str]
) -> None:
    owner = {"uid": account.uid, "gid": account.gid}
    current = read_file(own / "tls.crt")
    if (
        current is None
        or read_file(own / "tls.key") is None
        or not _issued_by(current, authority.cert_pem)
        or _left(current, own / "tls.crt", now) <= RENEW_BEFORE
    ):
        names, ips = ((), ()) if process != "gateway" else (_gateway_names(), ("127.0.0.1", "::1"))
        made = pki.issue(authority, process, dns=names, ips=ips)
        write_file(own / "tls.key", made.key_pem, mode=0o400, **owner)
        write_file(own / "tls.crt", made.cert_pem, mode=0o400, **owner)
        renewed.append(f"certificate of {process}")
    if read_file(own / "ca.crt") != authority.cert_pem:
        write_file(own / "ca.crt", authority.cert_pem, mode=0o400, **owner)


def _gateway_names() -> tuple[str, ...]:
    """What outsiders may call the gateway by."""
    host = socket.gethostname()
    return ("localhost", host) if host.isascii() and host and host != "localhost" else ("localhost",)


def _signing_key(layout: Layout, name: str, process: str, account: Account, renewed: list[str]) -> None:
    private_file = layout.pki / process / f"{name}.key"
    private = read_file(private_file)
    if private is None:
        made = signing.generate()
        # The public half first: what was signed with a key whose public half was lost could never be checked.
        _publish(layout, name, made.public_pem)
        write_file(private_file, made.private_pem, mode=0o400, uid=account.uid, gid=account.gid)
        renewed.append(f"key of {name}")
        return
    try:
        public = serialization.load_pem_private_key(private, password=None).public_key()
    except (ValueError, TypeError):
        raise CredentialsError(f"{private_file} holds no private key; remove it to have a new one made") from None
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _publish(layout, name, pem)


def _publish(layout: Layout, name: str, pem: bytes) -> None:
    files = [layout.pki / "public" / f"{name}.pub"]
    if name in KEPT:
        files.append(layout.pki / "public" / name / f"{signing.key_id_of(pem)}.pub")
    for file in files:
        if read_file(file) != pem:
            write_file(file, pem, mode=0o444)


def _admin_key(layout: Layout, renewed: list[str]) -> str:
    """The digest of the key in the client file; writes the file when it is missing or tells other than it should."""
    text = read_file(layout.client_file)
    try:
        current = tomllib.loads((text or b"").decode())
    except ValueError:
        raise CredentialsError(f"{layout.client_file} is damaged; remove it to have a new admin key made") from None
    key = current.get("api_key")
    if not isinstance(key, str) or not key:
        key = secrets.token_urlsafe(32)
        renewed.append("admin key")
    wanted = {"address": layout.address("gateway"), "api_key": key, "ca_file": str(layout.pki / "ca.crt")}
    if current != wanted:
        # A JSON string is a TOML basic string for what can be in here.
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in wanted.items()]
        write_file(layout.client_file, "".join(lines).encode(), mode=0o600)
    return hashlib.sha256(key.encode()).hexdigest()


def _left(cert: bytes, file: Path, now: datetime) -> timedelta:
    """How long the certificate is still good for."""
    try:
        return x509.load_pem_x509_certificate(cert).not_valid_after_utc - now
    except ValueError:
        raise CredentialsError(f"{file} holds no certificate; remove it to have a new one made") from None


def _issued_by(cert: bytes, authority: bytes) -> bool:
    try:
        x509.load_pem_x509_certificate(cert).verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
