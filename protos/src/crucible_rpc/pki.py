"""A small certificate authority for one installation: pure functions from names to PEM bytes, nothing is stored."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "crucible"
_PROCESS = re.compile(r"[a-z][a-z0-9-]{0,62}")
_BACKDATE = timedelta(minutes=5)  # machines' clocks differ a little


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its unencrypted private key (PKCS#8), both PEM."""

    cert_pem: bytes
    key_pem: bytes


def spiffe_id(process: str) -> str:
    """The URI that names a process in its certificate."""
    return f"spiffe://{TRUST_DOMAIN}/{process}"


def make_ca(name: str = "Crucible development CA", *, days: int = 3650) -> Certificate:
    """A new self-signed authority that can issue end certificates only; ECDSA P-256, valid for `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = (
        _builder(subject, key.public_key(), days)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _sealed(builder, key, key)


def issue(
    ca: Certificate, process: str, *, dns: Iterable[str] = (), ips: Iterable[str] = (), days: int = 825
) -> Certificate:
    """A certificate for one process, for serving and for calling; ECDSA P-256.

    Args:
        ca: what `make_ca` returned.
        process: its name, `[a-z][a-z0-9-]*`; becomes the URI SAN `spiffe://crucible/<process>` and the first DNS SAN.
        dns: further DNS names, as `localhost` for what outsiders call.
        ips: IP addresses.
        days: how long it is valid.

    Raises:
        ValueError: the name of the process or an address is malformed.
    """
    if not _PROCESS.fullmatch(process):
        raise ValueError(f"a process name is [a-z][a-z0-9-]*, at most 63 characters, not {process[:80]!r}")
    ca_cert = x509.load_pem_x509_certificate(ca.cert_pem)
    ca_key = serialization.load_pem_private_key(ca.key_pem, password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is not an elliptic curve key")  # noqa: TRY004  # the bytes are wrong
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(process)), x509.DNSName(process)]
    names += [x509.DNSName(name) for name in dns if name != process]
    names += [x509.IPAddress(ip_address(ip)) for ip in ips]
    builder = (
        _builder(_name(process), key.public_key(), days)
        .issuer_name(ca_cert.subject)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return _sealed(builder, key, ca_key)


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Crucible"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sealed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey
) -> Certificate:
    cert = builder.sign(issuer, hashes.SHA256())
    return Certificate(
        cert.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
