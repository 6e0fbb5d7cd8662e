"""Keys and certificates on disk: who can read what, what is renewed and what stays."""

import os
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from crucible_deploy import credentials
from crucible_deploy.layout import make_home
from crucible_deploy.users import Account
from crucible_rpc import signing

pytestmark = pytest.mark.root

# Ids without names are enough: nothing here looks them up.
ACCOUNTS = {
    name: Account(f"crucible-{name}", 61000 + number, 61000 + number)
    for number, name in enumerate(("gateway", "storage", "monitor", "worker"))
}


def tree(folder):
    """Every path below with its mode, owner and bytes."""
    return {
        str(path.relative_to(folder)): (
            oct(stat.S_IMODE(path.lstat().st_mode)), path.lstat().st_uid, path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def try_reading(path, account) -> bool:
    """Whether a process of this user can read the file, tried as that user."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
            path.read_bytes()
            os._exit(0)
        except PermissionError:
            os._exit(1)
        finally:
            os._exit(2)
    return {0: True, 1: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


@pytest.fixture
def made(layout):
    make_home(layout)
    return credentials.ensure(layout, ACCOUNTS)


def test_each_process_reads_its_own_key_and_no_other(layout, made):
    keys = {path.parent.name: path for path in layout.pki.glob("*/tls.key")}
    assert set(keys) == {"gateway", "storage", "monitor", "worker", "executor"}
    for process, account in ACCOUNTS.items():
        assert {owner for owner, key in keys.items() if try_reading(key, account)} == {process}
        assert not try_reading(layout.pki / "ca.key", account)
        assert not try_reading(layout.client_file, account)
        assert try_reading(layout.pki / "ca.crt", account)
        assert try_reading(layout.pki / "public" / "tickets.pub", account)
        assert try_reading(layout.pki / process / "ca.crt", account)
    assert try_reading(layout.pki / "storage" / "tickets.key", ACCOUNTS["storage"])
    assert try_reading(layout.pki / "storage" / "heads.key", ACCOUNTS["storage"])
    assert not try_reading(layout.pki / "storage" / "heads.key", ACCOUNTS["gateway"])
    assert not try_reading(layout.pki / "executor" / "records.key", ACCOUNTS["storage"])


def test_certificates_name_their_process_and_the_gateways_also_this_machine(layout, made):
    for process in ("gateway", "storage", "monitor", "worker", "executor"):
        cert = x509.load_pem_x509_certificate((layout.pki / process / "tls.crt").read_bytes())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"spiffe://crucible/{process}"]
        dns = names.get_values_for_type(x509.DNSName)
        assert dns[0] == process
        assert ("localhost" in dns) == (process == "gateway")


def test_a_second_time_changes_nothing(layout, made):
    before = tree(layout.home)
    again = credentials.ensure(layout, ACCOUNTS)
    assert again.renewed == ()
    assert again.admin_key_sha256 == made.admin_key_sha256
    assert tree(layout.home) == before


def test_certificates_about_to_expire_are_renewed_and_signing_keys_are_not(layout, made):
    before = tree(layout.pki)
    soon = datetime.now(UTC) + timedelta(days=825 - 29)
    renewed = credentials.ensure(layout, ACCOUNTS, now=soon).renewed
    assert sorted(renewed) == sorted(f"certificate of {p}" for p in (*ACCOUNTS, "executor"))
    after = tree(layout.pki)
    changed = {path for path in after if before[path] != after[path]}
    assert changed == {f"{p}/{name}" for p in (*ACCOUNTS, "executor") for name in ("tls.key", "tls.crt")}


def test_a_new_authority_renews_every_certificate(layout, made):
    (layout.pki / "ca.key").unlink()
    renewed = credentials.ensure(layout, ACCOUNTS).renewed
    assert "authority" in renewed
    assert len(renewed) == 6
    assert (layout.pki / "gateway" / "ca.crt").read_bytes() == (layout.pki / "ca.crt").read_bytes()


def test_the_client_file_holds_the_key_whose_digest_storage_is_told(layout, made):
    told = tomllib.loads(layout.client_file.read_text())
    assert sha256(told["api_key"].encode()).hexdigest() == made.admin_key_sha256
    assert told["address"] == "127.0.0.1:8443"
    assert len(told["api_key"]) == 43  # 256 bits
    assert stat.S_IMODE(layout.client_file.stat().st_mode) == 0o600


def test_a_link_that_a_service_put_in_place_of_its_key_is_not_followed(layout, made):
    victim = layout.home / "victim"
    victim.write_text("untouched")
    own = layout.pki / "gateway"
    (own / "tls.crt").unlink()
    (own / "tls.key").unlink()
    (own / "tls.key").symlink_to(victim)
    credentials.ensure(layout, ACCOUNTS)
    assert not (own / "tls.key").is_symlink()
    assert victim.read_text() == "untouched"


def test_a_damaged_key_is_one_clear_line(layout, made):
    file = layout.pki / "executor" / "records.key"
    file.chmod(0o600)
    file.write_text("not a key")
    with pytest.raises(credentials.CredentialsError, match=r"records\.key holds no private key; remove it"):
        credentials.ensure(layout, ACCOUNTS)


def test_public_halves_belong_to_the_private_ones(layout, made):
    for name, process in credentials.SIGNERS.items():
        private = load_pem_private_key((layout.pki / process / f"{name}.key").read_bytes(), password=None)
        public = load_pem_public_key((layout.pki / "public" / f"{name}.pub").read_bytes())
        assert private.public_key() == public


def test_a_key_that_is_replaced_leaves_its_public_half_so_that_old_proofs_can_be_checked(layout, made):
    public = layout.pki / "public"
    kept = {}
    for name in credentials.KEPT:
        [file] = (public / name).glob("*.pub")
        kept[name] = (file, file.read_bytes())
        (layout.pki / credentials.SIGNERS[name] / f"{name}.key").unlink()
    renewed = credentials.ensure(layout, ACCOUNTS).renewed
    assert sorted(renewed) == ["key of heads", "key of records"]
    for name, (file, pem) in kept.items():
        assert file.read_bytes() == pem
        assert len([*(public / name).glob("*.pub")]) == 2
        current = (public / f"{name}.pub").read_bytes()
        assert current != pem
        assert (public / name / f"{signing.key_id_of(current)}.pub").read_bytes() == current
        assert all(try_reading(one, ACCOUNTS["storage"]) for one in (public / name).iterdir())
