"""The audit log as administrators see it, and the part of its check that is made by the client."""

import pytest

from crucible.audit.v1 import audit_pb2 as pb
from crucible_client import AuditFault, AuditSummary
from crucible_client import audit as log
from crucible_rpc import merkle, signing
from tests.client import audit_proofs as made
from tests.client.audit_proofs import HEADS, RECORDS


def summary(size, since=0, *, data=None):
    data = made.leaves(size) if data is None else data
    found = pb.AuditSummary(records=size, checkpoints=2, head=made.head(data))
    if since:
        found.consistency.extend(merkle.consistency(since, size, made.tree(data)[1]))
    return found


def earlier(size):
    return log.verified_head(made.head(made.leaves(size)), made.key_set().heads)


@pytest.fixture
def sealed(gateway):
    gateway.public_keys = (HEADS, RECORDS)
    gateway.audit_summary = summary(6)
    return gateway


async def test_records_come_newest_first_page_by_page(client, gateway):
    for number in range(1, 6):
        gateway.audit_records.append(pb.LoggedRecord(position=number, record=made.finish(n=str(number))))
    found = [one async for one in client.audit_records(page_size=2)]
    assert [one.position for one in found] == [5, 4, 3, 2, 1]
    assert found[0].details == {"attempt": "1", "n": "5", "state": "SUCCEEDED", "termination": "exited 0"}
    assert [one.subject for one in found] == [made.NAME] * 5


async def test_a_check_ends_with_its_summary(client, sealed):
    sealed.audit_findings = [pb.AuditFinding(fault=pb.AUDIT_FAULT_CHANGED, position=3, message="record 3 was changed")]
    finding, end = [one async for one in client.verify_audit()]
    assert (finding.fault, finding.position) == (AuditFault.CHANGED, 3)
    assert isinstance(end, AuditSummary)
    assert (end.records, end.heads) == (6, 2)


def test_an_earlier_head_is_proved_to_be_the_beginning_and_not_believed():
    keys = made.key_set().heads
    end = log.verify_result
    honest = end(_response(summary(6, 4)))
    assert log.check_history(earlier(4), honest, keys) is None
    shorter = end(_response(summary(3)))
    assert log.check_history(earlier(4), shorter, keys).fault is AuditFault.HISTORY
    rewritten = [b"another", *made.leaves(6)[1:]]
    lie = end(_response(summary(6, 4, data=rewritten)))
    assert log.check_history(earlier(4), lie, keys).fault is AuditFault.HISTORY
    without_proof = end(_response(summary(6)))
    assert log.check_history(earlier(4), without_proof, keys).fault is AuditFault.HISTORY
    with pytest.raises(log.BadHeadError):
        log.check_history(earlier(4), honest, signing.Verifier.of(RECORDS.public_pem))


def _response(found):
    from crucible.gateway.v1.admin_service_pb2 import VerifyAuditResponse

    return VerifyAuditResponse(summary=found)


def test_nothing_sealed_is_the_beginning_of_nothing_but_itself():
    nothing = log.verify_result(_response(pb.AuditSummary()))
    assert log.check_history(earlier(4), nothing, made.key_set().heads).fault is AuditFault.HISTORY


async def test_the_command_keeps_a_head_and_holds_the_log_against_it_later(crucible, sealed, tmp_path):
    kept = tmp_path / "head.json"
    first = await crucible("audit", "verify", "--save", str(kept))
    assert first.code == 0, first.err
    assert b"the audit log holds: 6 records under 2 heads" in first.out
    assert b"those that the server names are taken" in first.err
    sealed.audit_summary = summary(9, 6)
    second = await crucible("audit", "verify", "--since", str(kept))
    assert (second.code, b"begins with the 6 of" in second.out) == (0, True)
    assert sealed.audit_since.payload == made.head(made.leaves(6)).payload
    sealed.audit_summary = summary(9, 6, data=[b"another", *made.leaves(9)[1:]])
    rewritten = await crucible("audit", "verify", "--since", str(kept), "--save", str(kept))
    assert rewritten.code == 1
    assert rewritten.lines[0].startswith("HISTORY\t6\t")
    assert kept.read_bytes() == log.encode_head(made.head(made.leaves(6)))  # not overwritten


async def test_the_command_names_what_is_wrong_and_fails(crucible, sealed):
    sealed.audit_findings = [pb.AuditFinding(fault=pb.AUDIT_FAULT_MOVED, position=8, message="record 8 \x1b[31m moved")]
    sealed.audit_summary.findings = 1
    ran = await crucible("audit", "verify")
    assert ran.code == 1
    assert ran.lines == ["MOVED\t8\trecord 8 \\x1b[31m moved"]
    assert b"does not hold: 1 finding" in ran.err


async def test_a_head_that_no_known_key_signed_fails(crucible, sealed, tmp_path):
    sealed.audit_summary.head.CopyFrom(made.head(made.leaves(6), RECORDS))
    ran = await crucible("audit", "verify")
    assert (ran.code, b"the log's head does not hold: no public key is known" in ran.err) == (1, True)
    (tmp_path / "x.json").write_text("{}")
    ran = await crucible("audit", "verify", "--since", str(tmp_path / "x.json"))
    assert (ran.code, len(ran.err.decode().splitlines())) == (1, 2)
    assert b"x.json" in ran.err


async def test_the_list_is_one_line_for_each_record(crucible, gateway):
    gateway.audit_records.append(pb.LoggedRecord(position=1, record=made.finish()))
    ran = await crucible("audit", "list", "--subject", made.NAME)
    [line] = ran.lines
    cells = line.split("\t")
    assert cells[:6] == ["1", "2027-01-15T08:00:01.000Z", "t", "executor/x1", "evaluation.finish", made.NAME]
    assert gateway.audit_subject == made.NAME
    assert (await crucible("audit", "list", "--json")).code == 0
