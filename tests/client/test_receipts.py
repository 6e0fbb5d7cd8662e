"""Receipts: what is proved offline, and that any changed byte of the file is noticed."""

import dataclasses

import pytest

from crucible_client import receipts
from crucible_client.public_keys import PublicKeys
from crucible_rpc import signing
from tests.client import audit_proofs as made
from tests.client.audit_proofs import HEADS, RECORDS


def refused(receipt, keys=None):
    data = receipt if isinstance(receipt, bytes) else receipts.encode(receipt)
    with pytest.raises(receipts.ReceiptError) as caught:
        receipts.verify(data, keys or made.key_set())
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_receipt_that_holds_says_what_the_executor_signed():
    proven = receipts.verify(receipts.encode(made.good_receipt()), made.key_set())
    assert (proven.evaluation, proven.state, proven.attempt) == (made.NAME, "SUCCEEDED", 1)
    assert (proven.position, proven.log_size) == (4, 6)
    assert (proven.head_key, proven.record_key) == (HEADS.key_id, RECORDS.key_id)
    assert proven.final_record["code_sha256"] == made.final_record().code_sha256.hex()
    assert proven.final_record["termination"] == {"exited": {}}
    assert proven.final_record["isolation"] == "USER_KERNEL"
    assert proven.final_record["limits"] == {"wall_time": "30s"}
    assert proven.final_record["start_time"] == "2027-01-15T08:00:00Z"


def test_any_changed_byte_of_the_file_fails():
    data = receipts.encode(made.good_receipt())
    keys = made.key_set()
    receipts.verify(data, keys)
    for at in range(len(data)):
        for mask in (0x01, 0x20, 0x80) if at % 8 == 0 else (0x01,):
            changed = bytearray(data)
            changed[at] ^= mask
            with pytest.raises(receipts.ReceiptError):
                receipts.verify(bytes(changed), keys)


def test_any_byte_removed_or_added_fails():
    data = receipts.encode(made.good_receipt())
    for at in range(0, len(data), 7):
        for changed in (data[:at], data[:at] + data[at + 1 :], data[:at] + b" " + data[at:]):
            refused(changed)
    refused(data + b"\n")
    refused(b"")
    refused(b"[" * 100_000)
    refused(b" " * (2 << 20))


def test_the_sentence_names_the_part_that_failed():
    receipt = made.good_receipt()
    receipt.head.signature = bytes(64)
    assert "head of the log does not hold" in refused(receipt)

    receipt = made.good_receipt()
    receipt.position = 5
    assert "not in the signed log at its position" in refused(receipt)

    receipt = made.good_receipt()
    receipt.record = made.finish(subject=made.OTHER).SerializeToString(deterministic=True)
    assert "not in the signed log at its position" in refused(receipt)

    receipt = made.good_receipt()
    receipt.final_record.payload += b"x"
    assert "not the one that the log names" in refused(receipt)

    receipt = made.good_receipt()
    receipt.final_record.signature = bytes(64)
    assert "not signed by its executor" in refused(receipt)

    receipt = made.good_receipt()
    receipt.ClearField("final_record")
    assert "not the one that the log names" in refused(receipt)


def test_a_record_that_proves_something_else_is_refused():
    final = made.signed(RECORDS, "crucible.record.v1", made.final_record(made.OTHER))
    assert "of another evaluation" in refused(made.receipt(made.finish(final), final))
    final = made.signed(RECORDS, "crucible.record.v1", made.final_record(attempt=2))
    assert "another evaluation or attempt" in refused(made.receipt(made.finish(final), final))
    other = made.finish()
    other.action = "evaluation.create"
    assert "not that of an evaluation's end" in refused(made.receipt(other))
    stray = made.signed(RECORDS, "crucible.record.v1", made.final_record())
    assert "not the one that the log names" in refused(made.receipt(made.finish(), stray))


def test_each_key_does_its_own_work_alone():
    executor_signs_head = made.good_receipt()
    forged = made.receipt(
        made.finish(executor_signs_head.final_record), executor_signs_head.final_record, heads=RECORDS
    )
    assert "head of the log" in refused(forged)
    storage_signs_record = made.signed(HEADS, "crucible.record.v1", made.final_record())
    forged = made.receipt(made.finish(storage_signs_record), storage_signs_record)
    assert "not signed by its executor" in refused(forged)
    wrong_context = made.signed(RECORDS, "crucible.ticket.v1", made.final_record())
    assert "not signed by its executor" in refused(made.receipt(made.finish(wrong_context), wrong_context))
    assert "head of the log" in refused(made.good_receipt(), made.key_set(heads=signing.generate()))
    assert "not signed by its executor" in refused(made.good_receipt(), made.key_set(records=signing.generate()))


def test_an_end_that_no_executor_signed_says_so():
    record = made.finish(state="CANCELLED", termination="cancelled", attempt="0")
    proven = receipts.verify(receipts.encode(made.receipt(record, at=0, size=1)), made.key_set())
    assert (proven.state, proven.record_key, proven.final_record) == ("CANCELLED", None, None)
    assert dataclasses.asdict(proven)["termination"] == "cancelled"


@pytest.fixture
def key_folder(tmp_path):
    for use, key in {"heads": HEADS, "records": RECORDS}.items():
        (tmp_path / "keys" / use).mkdir(parents=True)
        (tmp_path / "keys" / use / f"{key.key_id}.pub").write_bytes(key.public_pem)
    return tmp_path / "keys"


def test_keys_that_were_replaced_still_check_what_they_signed(key_folder):
    for use in ("heads", "records"):
        new = signing.generate()
        (key_folder / use / f"{new.key_id}.pub").write_bytes(new.public_pem)
    receipts.verify(receipts.encode(made.good_receipt()), PublicKeys.of_folder(key_folder))


async def test_the_commands_fetch_a_receipt_and_its_keys_and_check_it_offline(crucible, gateway, tmp_path):
    gateway.receipt, gateway.public_keys = made.good_receipt(), (HEADS, RECORDS)
    file, folder = tmp_path / "r.json", tmp_path / "fetched"
    got = await crucible("receipt", "get", made.NAME, "--out", str(file))
    assert got.code == 0, got.err
    fetched = await crucible("receipt", "keys", "--out", str(folder))
    assert len(fetched.lines) == 2
    checked = await crucible("receipt", "verify", str(file), "--keys", str(folder))
    assert checked.code == 0, checked.err
    assert b"executor and storage" in checked.out
    assert made.final_record().code_sha256.hex().encode() in checked.out
    by_file = ("--head-key", str(folder / "heads" / f"{HEADS.key_id}.pub"))
    by_file += ("--record-key", str(folder / "records" / f"{RECORDS.key_id}.pub"))
    assert (await crucible("receipt", "verify", str(file), *by_file, "--json")).code == 0
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    spoilt = await crucible("receipt", "verify", str(file), "--keys", str(folder))
    assert spoilt.code == 1
    assert len(spoilt.err.decode().splitlines()) == 1


async def test_missing_keys_and_files_are_one_clear_line(crucible, tmp_path):
    file = tmp_path / "r.json"
    absent = await crucible("receipt", "verify", str(file), "--keys", str(tmp_path))
    assert (absent.code, b"has no public keys in heads/*.pub" in absent.err) == (1, True)
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "a.pub").write_text("not a key")
    damaged = await crucible("receipt", "verify", str(file), "--keys", str(tmp_path))
    assert b"a.pub holds no Ed25519 public key" in damaged.err
    (tmp_path / "heads" / "a.pub").write_bytes(HEADS.public_pem)
    unread = await crucible("receipt", "verify", str(file), "--keys", str(tmp_path))
    assert f"cannot read {file}: No such file".encode() in unread.err


async def test_a_server_that_names_a_key_by_another_id_is_not_believed(crucible, gateway, tmp_path):
    wrong = dataclasses.replace(HEADS, key_id=RECORDS.key_id)
    gateway.public_keys = (wrong, RECORDS)
    ran = await crucible("receipt", "keys", "--out", str(tmp_path / "k"))
    assert (ran.code, b"under an id that is not its own" in ran.err) == (1, True)
