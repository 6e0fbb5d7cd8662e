"""Keys and certificates from PEM files, checked when they are loaded so that a mistake is one clear line."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from crucible_rpc.errors import StartError

_MAX_PEM_BYTES = 1 << 20


class TlsError(StartError):
    """A PEM file is missing, unreadable, damaged, expired, or does not match its partner."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a server shows and whom it trusts.

    Attributes:
        cert: its certificate.
        key: the certificate's private key.
        client_ca: the authority whose client certificates are demanded; None: clients need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None

    def credentials(self) -> grpc.ServerCredentials:
        """Reads and checks the files.

        Raises:
            TlsError: see the class.
        """
        pair = _key_pair(self.cert, self.key)
        if self.client_ca is None:
            return grpc.ssl_server_credentials([pair])
        roots = _authority(self.client_ca)
        return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=True)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What a calling process shows and whom it trusts.

    Attributes:
        cert: its own certificate.
        key: the certificate's private key.
        ca: the authority that the server's certificate must come from.
    """

    cert: Path
    key: Path
    ca: Path

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads and checks the files.

        Raises:
            TlsError: see the class.
        """
        key, cert = _key_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(_authority(self.ca), key, cert)


def public_credentials(ca_file: Path | None) -> grpc.ChannelCredentials:
    """Credentials of a client without a certificate; trusts `ca_file`, or gRPC's own roots when None.

    Raises:
        TlsError: see the class.
    """
    return grpc.ssl_channel_credentials(None if ca_file is None else _authority(ca_file))


def _key_pair(cert_file: Path, key_file: Path) -> tuple[bytes, bytes]:
    cert_pem, key_pem = _read(cert_file), _read(key_file)
    certificate = _certificate(cert_file, cert_pem)
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        raise TlsError(f"{key_file} holds no unencrypted private key in PEM form") from None
    public = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*public) != certificate.public_key().public_bytes(*public):
        raise TlsError(f"{key_file} is not the private key of the certificate {cert_file}")
    return key_pem, cert_pem


def _authority(file: Path) -> bytes:
    pem = _read(file)
    _certificate(file, pem)
    return pem


def _certificate(file: Path, pem: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise TlsError(f"{file} holds no certificate in PEM form") from None
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise TlsError(
            f"the certificate {file} expired at {certificate.not_valid_after_utc.isoformat()}; issue a new one"
        )
    if now < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc.isoformat()
        raise TlsError(f"the certificate {file} is valid from {start} on; is this machine's clock right?")
    return certificate


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise TlsError(f"cannot read the PEM file {file}: {error.strerror}") from None
