"""What is noted, how it is sealed, and receipts."""

import asyncio
import hashlib
import json
from datetime import timedelta

import pytest

from crucible.audit.v1 import audit_pb2 as pb
from crucible.evaluation.v1.tenant_pb2 import Quota
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_rpc import merkle, signing
from crucible_rpc.errors import (
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
)
from crucible_storage import audit, audit_heads, audit_tables, login_failures, models
from crucible_storage.database import Database
from crucible_storage.sealer import Sealer
from tests.storage import world as w

pytestmark = pytest.mark.slow


async def log(world, subject=""):
    """All sealed records, oldest first."""
    found, token = [], ""
    while True:
        page, token = await world.service.audit_log.page(subject, 7, token)
        found += page
        if not token:
            return found[::-1]


async def verify(world, since=None):
    """Findings and the summary."""
    answers = [one async for one in world.service.audit_log.verify(since)]
    return [one for one in answers if isinstance(one, pb.AuditFinding)], answers[-1]


async def finished_evaluation(world, **parts):
    assignment = await world.running(**parts)
    assert await world.report(w.report(assignment, w.output(b"1\n"), w.finished(assignment, stdout=b"1\n"))) == []
    return assignment


def checked(receipt):
    """A receipt's head and record, after the proofs that anybody can make."""
    head = audit_heads.verified(receipt.head, w.head_keys().verifier)
    leaf = merkle.leaf_hash(receipt.record)
    merkle.check_inclusion(leaf, receipt.position - 1, head.size, receipt.inclusion, head.root_sha256)
    return head, pb.AuditRecord.FromString(receipt.record)


async def test_each_change_is_noted_with_who_what_and_when(world):
    keys = world.service.api_keys
    await keys.bootstrap(hashlib.sha256(b"first").digest())
    made = await keys.create("t", "", hashlib.sha256(b"k").digest(), admin=False, by="key-9")
    assignment = await finished_evaluation(world)
    queued = await world.create()
    world.clock.wall += 7
    await world.cancel(queued, reason="enough")
    await keys.revoke(made.id, by="key-9")
    noted = [(one.record.tenant, one.record.actor, one.record.action, one.record.subject) for one in await log(world)]
    assert noted[0][:3] == ("default", "process/storage", "key.create")
    assert noted[1:] == [
        ("t", "key/key-9", "key.create", f"keys/{made.id}"),
        ("t", "key/key-1", "evaluation.create", assignment.evaluation),
        ("t", "executor/ex-1", "evaluation.finish", assignment.evaluation),
        ("t", "key/key-1", "evaluation.create", queued.name),
        ("t", "key/key-2", "evaluation.cancel", queued.name),
        ("t", "key/key-2", "evaluation.finish", queued.name),
        ("t", "key/key-9", "key.revoke", f"keys/{made.id}"),
    ]
    last = (await log(world))[-1]
    assert last.record.time.ToMicroseconds() == world.clock.now()
    assert [one.position for one in await log(world)] == list(range(1, 9))


async def test_what_administrators_change_is_noted_with_who_asked(world):
    tenants, pauses = world.service.tenants, world.service.pauses
    await tenants.create("acme", Quota(weight=2), "key-1")
    await tenants.set_quota("acme", Quota(max_queued=5), "key-2")
    await pauses.pause("acme", "key-3", "too much")
    await pauses.pause("acme", "key-4", "a pause that is there already")
    await pauses.resume("acme", "key-5")
    await pauses.resume("acme", "key-6")
    await pauses.pause("", "key-7", "")
    await pauses.resume("")
    assignment = await finished_evaluation(world)
    await world.service.deletion.delete(assignment.evaluation.removeprefix("evaluations/"), "key-8", "asked to")
    noted = [one.record for one in await log(world)]
    changes = [(one.actor, one.action, one.subject, json.loads(one.details)) for one in noted[:6]]
    assert changes == [
        ("key/key-1", "tenant.create", "tenants/acme", {"weight": "2"}),
        ("key/key-2", "tenant.quota", "tenants/acme", {"max_queued": "5"}),
        ("key/key-3", "queue.pause", "tenants/acme", {"reason": "too much"}),
        ("key/key-5", "queue.resume", "tenants/acme", {}),
        ("key/key-7", "queue.pause", "queue", {}),
        (audit.STORAGE, "queue.resume", "queue", {}),
    ]
    last = noted[-1]
    assert (last.actor, last.action, last.subject) == ("key/key-8", "evaluation.delete", assignment.evaluation)
    assert json.loads(last.details)["stdout_sha256"] == hashlib.sha256(b"1\n").hexdigest()
    [use] = [one.use for one in await tenants.list() if one.name == "t"]
    assert use.stored_bytes == 0


async def test_what_changes_nothing_is_not_noted(world):
    first = await world.create(request_id="r")
    assert (await world.create(request_id="r")).name == first.name
    await world.cancel(first)
    await world.cancel(first)
    assert [one.record.action for one in await log(world)] == [
        "evaluation.create",
        "evaluation.cancel",
        "evaluation.finish",
    ]


async def test_a_change_that_is_undone_is_not_noted(world):
    def fails(transaction):
        audit.record(transaction, time=1, tenant="t", actor="a", action="x.y", subject="s")
        raise NotFoundError("EVALUATION_NOT_FOUND", "no")

    def works(transaction):
        audit.record(transaction, time=1, tenant="t", actor="a", action="x.y", subject="kept")

    results = await asyncio.gather(
        world.service.database.write(works), world.service.database.write(fails), return_exceptions=True
    )
    assert isinstance(results[1], NotFoundError)
    assert [one.record.subject for one in await log(world)] == ["kept"]


async def test_no_program_no_variable_and_no_key_gets_into_the_log(world):
    await world.service.api_keys.create("t", "", hashlib.sha256(b"k").digest(), admin=False)
    await finished_evaluation(world, code=b"print('a very secret program')")
    text = repr(await log(world))
    assert "secret" not in text
    assert hashlib.sha256(b"k").hexdigest() not in text


async def test_details_have_one_form_and_are_bounded(world):
    assert audit.canonical({"b": 2, "a": "x" * 1000, "empty": "", "none": None, "no": False}) == (
        '{"a":"' + "x" * 256 + '","b":"2","no":"False"}'
    )
    assert "\\u0000" in audit.canonical({"a": "\0"})


async def test_failed_logins_are_counted_by_the_minute_and_cannot_flood_the_log(world):
    keys = world.service.api_keys
    revoked = [(await keys.create("t", "", bytes([n]) * 32, admin=False)).id for n in range(20)]
    for key_id in revoked:
        await keys.revoke(key_id)
    before = len(await log(world))
    for _ in range(50):
        with pytest.raises(UnauthenticatedError):
            await keys.authenticate(bytes([255]) * 32)
    for number in range(20):
        with pytest.raises(UnauthenticatedError):
            await keys.authenticate(bytes([number]) * 32)
    await world.service.login_failures.note()
    await world.service.login_failures.note()
    noted = (await log(world))[before:]
    counts = {one.record.subject: int(json.loads(one.record.details)["count"]) for one in noted}
    assert counts["keys/unknown"] == 50
    assert sum(counts.values()) == 70
    assert len(noted) <= 18
    assert {one.record.action for one in noted} == {"login.failure"}
    assert counts[f"keys/{revoked[0]}"] == 1


async def test_failed_logins_are_noted_after_what_nobody_foresaw(world, monkeypatch):
    monkeypatch.setattr(login_failures, "INTERVAL", timedelta(seconds=0.01))
    failures = login_failures.LoginFailures(world.service.database, world.clock)
    stored, written, loop = [], asyncio.Event(), asyncio.get_running_loop()

    def record(*arguments, **facts):
        stored.append(facts["count"])
        if len(stored) == 1:
            raise RuntimeError("nobody foresaw it")
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(audit, "record", record)
    failures.count()
    failures.count()
    running = asyncio.create_task(failures.run())
    async with asyncio.timeout(10):
        await written.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert stored == [2, 2]


async def test_failed_logins_are_noted_when_storage_stops(tmp_path):
    async with w.storage(tmp_path) as world:
        with pytest.raises(UnauthenticatedError):
            await world.service.api_keys.authenticate(bytes(32))
        await asyncio.sleep(0)  # the job has begun
    async with w.storage(tmp_path) as world:
        [one] = await log(world)
        assert one.record.action == "login.failure"


async def test_two_sealers_at_once_number_without_gaps_and_each_record_once(world):
    await asyncio.gather(*(world.create() for _ in range(60)))
    await asyncio.gather(*(world.service.sealer.seal() for _ in range(4)), *(world.create() for _ in range(60)))
    found = await log(world)
    assert [one.position for one in found] == list(range(1, 121))
    assert len({one.record.subject for one in found}) == 120
    findings, summary = await verify(world)
    assert (findings, summary.records) == ([], 120)


async def test_a_log_of_more_than_one_step_and_page_verifies(world):
    def many(transaction):
        for number in range(1100):
            audit.record(transaction, time=number, tenant="t", actor="a", action="x.y", subject=f"s{number}", n=number)

    await world.service.database.write(many)
    findings, summary = await verify(world)
    assert (findings, summary.records, summary.findings) == ([], 1100, 0)
    assert summary.checkpoints == 3
    head = audit_heads.verified(summary.head, w.head_keys().verifier)
    assert head.size == 1100
    again, _ = await verify(world)
    assert again == []


async def test_the_stored_tree_gives_the_proofs_of_the_rfc(world):
    def many(transaction):
        for number in range(601):
            audit.record(transaction, time=number, tenant="t", actor="a", action="x.y", subject=f"s{number}")

    await world.service.database.write(many)
    await world.service.sealer.seal()

    def proofs(connection):
        rows = audit_tables.records(connection, 0, 1000, 1000)
        frontier, nodes = merkle.Frontier(), {}
        for row in rows:
            nodes |= {(node.level, node.number): node.hash for node in frontier.append(row.leaf)}
        stored, naive = audit_tables.subtrees(connection), lambda level, index: nodes[level, index]
        for index in (0, 1, 255, 256, 511, 512, 599, 600):
            assert merkle.inclusion(index, 601, stored) == merkle.inclusion(index, 601, naive)
        for old in (1, 2, 16, 255, 256, 600):
            assert merkle.consistency(old, 601, stored) == merkle.consistency(old, 601, naive)
        return connection.execute(models.audit_node.select()).fetchall()

    kept = await world.service.database.read(proofs)
    assert len(kept) == 601 // 16 + 601 // 256


async def test_a_receipt_shows_the_executors_record_in_the_log(world):
    assignment = await finished_evaluation(world)
    evaluation_id = assignment.evaluation.removeprefix("evaluations/")
    receipt = await world.service.receipts.get("t", evaluation_id)  # sealed for it
    head, record = checked(receipt)
    assert head.size >= receipt.position
    details = json.loads(record.details)
    assert (record.action, record.subject) == ("evaluation.finish", assignment.evaluation)
    assert details["final_record_sha256"] == hashlib.sha256(receipt.final_record.payload).hexdigest()
    assert (details["state"], details["termination"], details["attempt"]) == ("SUCCEEDED", "exited 0", "1")
    signed = receipt.final_record
    signing.Verifier.of(w.RECORDS.public_pem).verify(
        "crucible.record.v1", signed.payload, signed.key_id, signed.signature
    )
    assert ex.FinalRecord.FromString(signed.payload).evaluation == assignment.evaluation
    for _ in range(20):
        await world.create()
    await world.service.sealer.seal()
    later = await world.service.receipts.get("t", evaluation_id)
    assert (later.record, later.position) == (receipt.record, receipt.position)
    assert checked(later)[0].size > head.size


async def test_what_no_executor_signed_has_a_receipt_that_says_so(world):
    queued = await world.create()
    await world.cancel(queued, reason="no more")
    receipt = await world.service.receipts.get("t", queued.name.removeprefix("evaluations/"))
    _, record = checked(receipt)
    details = json.loads(record.details)
    assert not receipt.HasField("final_record")
    assert "final_record_sha256" not in details
    assert (details["state"], details["termination"], record.actor) == ("CANCELLED", "cancelled", "key/key-2")

    await world.create()
    await world.register()
    for _ in range(w.POLICY.max_attempts):
        world.clock.advance(w.POLICY.backoff_limit * 2)
        assignment = await world.lease_one()
        lost = w.work.RunLost(reason="the executor is gone", confirmed_gone=True)
        assert await world.report(w.report(assignment, lost=lost)) == []
    receipt = await world.service.receipts.get("t", assignment.evaluation.removeprefix("evaluations/"))
    _, record = checked(receipt)
    details = json.loads(record.details)
    assert not receipt.HasField("final_record")
    assert (details["termination"], details["attempt"]) == ("infrastructure_failure", "3")
    assert "the executor is gone" in details["reason"]


async def test_a_receipt_needs_an_end_and_the_right_tenant(world):
    queued = await world.create()
    evaluation_id = queued.name.removeprefix("evaluations/")
    with pytest.raises(FailedPreconditionError) as unfinished:
        await world.service.receipts.get("t", evaluation_id)
    assert unfinished.value.reason == "EVALUATION_NOT_FINISHED"
    await world.cancel(queued)
    with pytest.raises(NotFoundError) as foreign:
        await world.service.receipts.get("u", evaluation_id)
    assert foreign.value.reason == "EVALUATION_NOT_FOUND"


async def test_an_end_from_before_there_were_receipts_has_none(world):
    queued = await world.create()
    await world.cancel(queued)
    await world.service.database.write(lambda transaction: transaction.execute(models.audit_pending.delete()))
    with pytest.raises(NotFoundError) as caught:
        await world.service.receipts.get("t", queued.name.removeprefix("evaluations/"))
    assert caught.value.reason == "RECEIPT_NOT_FOUND"


async def test_heads_of_a_key_that_was_replaced_still_verify(tmp_path):
    new = signing.generate()
    async with w.storage(tmp_path) as world:
        assignment = await finished_evaluation(world)
        _, first = await verify(world)
    async with w.storage(tmp_path, heads=w.head_keys(new, w.HEADS)) as world:
        await world.create()
        findings, summary = await verify(world, first.head)
        assert findings == []
        assert (summary.head.key_id, first.head.key_id) == (new.key_id, w.HEADS.key_id)
        receipt = await world.service.receipts.get("t", assignment.evaluation.removeprefix("evaluations/"))
        assert receipt.head.key_id == new.key_id
        old, head = audit_heads.verified(first.head, w.head_keys().verifier), None
        head = audit_heads.verified(summary.head, w.head_keys(new).verifier)
        merkle.check_consistency(old.size, old.root_sha256, head.size, head.root_sha256, summary.consistency)
    async with w.storage(tmp_path, heads=w.head_keys(new)) as world:  # the old public key was lost
        findings, _ = await verify(world)
        assert {one.fault for one in findings} == {pb.AUDIT_FAULT_CHECKPOINT}
        assert "no public key is known" in findings[0].message
        with pytest.raises(InvalidArgumentError):
            await verify(world, first.head)


async def test_one_check_at_a_time(world):
    await world.create()
    one = world.service.audit_log.verify(None)
    await anext(one)
    with pytest.raises(Exception, match="checked already") as caught:
        await verify(world)
    assert caught.value.reason == "AUDIT_CHECK_RUNNING"
    await one.aclose()
    assert (await verify(world))[0] == []


async def test_nothing_is_sealed_on_top_of_a_log_that_somebody_else_wrote(world):
    assignment = await finished_evaluation(world)
    await world.service.sealer.seal()
    row = models.audit_record
    await world.service.database.write(lambda transaction: transaction.execute(row.delete().where(row.c.position == 2)))
    await world.create()
    with pytest.raises(DataLossError) as caught:
        await world.service.sealer.seal()
    assert caught.value.reason == "AUDIT_LOG_DAMAGED"
    with pytest.raises(DataLossError):
        await world.service.receipts.get("t", assignment.evaluation.removeprefix("evaluations/"))


@pytest.mark.database("postgresql")
async def test_processes_that_share_a_database_seal_one_log(world, tmp_path, databases):
    """Each with its own connections; all write and seal at once."""
    others = [Database(databases.backend(tmp_path / "state"), lambda _: None) for _ in range(2)]
    for one in others:
        one.start()
    try:
        sealers = [Sealer(one, w.head_keys().signer, world.clock) for one in others]

        def note(number):
            row = {"time": number, "tenant": "t", "actor": "a", "action": "x.y", "subject": f"s{number}"}
            return lambda transaction: audit.record(transaction, **row)

        async def writes(database, first):
            for number in range(first, first + 30):
                await database.write(note(number))

        async def seals(sealer):
            return sum([await sealer.seal() for _ in range(10)])

        everybody = (world.service.database, *others)
        writing = [writes(one, 1000 * number) for number, one in enumerate(everybody)]
        await asyncio.gather(*writing, *map(seals, (world.service.sealer, *sealers)))
        findings, summary = await verify(world)
        assert (findings, summary.records) == ([], 90)
        assert len({one.record.subject for one in await log(world)}) == 90
    finally:
        for one in others:
            await one.close()
