import dataclasses
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from crucible_rpc import pki
from crucible_rpc.errors import StartError
from crucible_rpc.tls import ClientTls, ServerTls, public_credentials


@pytest.fixture(scope="module")
def ca():
    return pki.make_ca()


def names(pem):
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_certificate_names_its_process_by_uri_and_dns(ca):
    found = names(pki.issue(ca, "worker").cert_pem)
    assert found.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://crucible/worker"]
    assert found.get_values_for_type(x509.DNSName) == ["worker"]
    assert found.get_values_for_type(x509.IPAddress) == []


def test_a_public_certificate_has_further_names(ca):
    found = names(pki.issue(ca, "gateway", dns=["localhost"], ips=["127.0.0.1", "::1"]).cert_pem)
    assert found.get_values_for_type(x509.DNSName) == ["gateway", "localhost"]
    assert found.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1"), ip_address("::1")]


def test_an_end_certificate_cannot_issue_and_the_authority_is_no_end(ca):
    authority = x509.load_pem_x509_certificate(ca.cert_pem)
    end = x509.load_pem_x509_certificate(pki.issue(ca, "worker", days=30).cert_pem)
    constraints = [one.extensions.get_extension_for_class(x509.BasicConstraints).value for one in (authority, end)]
    assert [(one.ca, one.path_length) for one in constraints] == [(True, 0), (False, None)]
    assert not end.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    end.verify_directly_issued_by(authority)
    assert isinstance(end.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(end.public_key().curve, ec.SECP256R1)
    assert timedelta(days=29) < end.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)


@pytest.mark.parametrize("process", ["", "Worker", "a/b", "a\n", "1a", "x" * 64, "a.b"])
def test_a_malformed_process_name_is_refused(ca, process):
    with pytest.raises(ValueError, match="a process name is"):
        pki.issue(ca, process)


def test_keys_are_readable_by_openssl_and_differ(ca):
    first, second = pki.issue(ca, "worker"), pki.issue(ca, "worker")
    assert first.key_pem != second.key_pem
    assert serialization.load_pem_private_key(first.key_pem, None)


def test_good_files_load(keys):
    assert keys.server("storage").credentials()
    assert keys.public_server("edge").credentials()
    assert keys.client("worker").credentials()
    assert public_credentials(keys.ca)
    assert public_credentials(None)


@pytest.mark.parametrize("part", ["cert", "key", "ca"])
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda file: file.unlink(), "cannot read the PEM file {}: No such file or directory"),
        (lambda file: (file.unlink(), file.mkdir()), "cannot read the PEM file {}: Is a directory"),
        (lambda file: file.write_text("nonsense"), "{} holds no "),
        (lambda file: file.write_text(""), "{} holds no "),
    ],
    ids=["missing", "a folder", "nonsense", "empty"],
)
def test_a_file_that_is_not_usable_is_one_clear_line(keys, tmp_path, part, spoil, text):
    good = keys.client("worker")
    files = {}
    for name in ("cert", "key", "ca"):
        files[name] = tmp_path / name
        files[name].write_bytes(getattr(good, name).read_bytes())
    spoil(files[part])
    expected = text.format(files[part])
    for tls in (ClientTls(**files), ServerTls(files["cert"], files["key"], files["ca"])):
        with pytest.raises(StartError) as caught:
            tls.credentials()
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)


def test_a_key_of_another_certificate_is_told(keys):
    mixed = dataclasses.replace(keys.client("worker"), key=keys.client("gateway").key)
    with pytest.raises(StartError, match=r"gateway.key is not the private key of the certificate .*worker.crt"):
        mixed.credentials()


def test_an_expired_certificate_is_told(ca, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    for start, end, text in ((-3, -1, "expired at"), (1, 3, "is valid from")):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.Name([]))
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now + timedelta(days=start))
            .not_valid_after(now + timedelta(days=end))
            .sign(key, hashes.SHA256())
        )
        cert_file, key_file = tmp_path / "c", tmp_path / "k"
        cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(pki.issue(ca, "worker").key_pem)
        with pytest.raises(StartError, match=text):
            ServerTls(cert_file, key_file, None).credentials()
