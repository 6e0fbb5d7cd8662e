"""Whoever can write to the database is found out, and what he did is named."""

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from crucible.audit.v1 import audit_pb2 as pb
from crucible_rpc import merkle, signing
from crucible_storage import audit, audit_heads
from crucible_storage.audit import Sealed
from crucible_storage.audit_check import Check
from crucible_storage.state import FILE
from tests.storage import world as w
from tests.storage.test_audit import verify

# What judges is the same for both: only some tests show that it is given the same to judge.
pytestmark = [pytest.mark.database("sqlite"), pytest.mark.slow]
both = pytest.mark.database("sqlite", "postgresql")

RECORDS = 40
STEP = 10
_COLUMNS = "tenant, time, actor, action, subject, details, leaf, chain"


@pytest.fixture
async def logged(world):
    """A log of 40 records under four heads."""
    for step in range(RECORDS // STEP):

        def some(transaction, first=step * STEP):
            for number in range(first, first + STEP):
                row = {"time": number, "tenant": "t", "actor": "key/k", "action": "x.y", "subject": f"s{number + 1}"}
                audit.record(transaction, **row, n=number)

        await world.service.database.write(some)
        await world.service.sealer.seal()
    return world


async def tamper(world, *statements):
    def run(transaction):
        for one in statements:
            transaction.execute(text(one))

    await world.service.database.write(run)


def renumber(first, by):
    """Moves the records from `first` on; through negative numbers, so that none meets another."""
    return (
        f"UPDATE audit_record SET position = -(position + {by}) WHERE position >= {first}",
        "UPDATE audit_record SET position = -position WHERE position < 0",
    )


def forged(position, like):
    """A record put at `position`, whose other columns are those of record `like`."""
    copied = _COLUMNS.replace("subject", "'forged'")
    return (
        f"INSERT INTO audit_record (position, {_COLUMNS}) SELECT {position}, {copied} "
        f"FROM audit_record WHERE position = {like}"
    )


async def found(world, since=None):
    findings, summary = await verify(world, since)
    assert summary.findings == len(findings)
    names = [(pb.AuditFault.Name(one.fault).removeprefix("AUDIT_FAULT_"), one.position) for one in findings]
    assert all(str(position) in one.message for one, (_, position) in zip(findings, names, strict=True) if position > 1)
    return names


async def test_an_honest_log_has_no_findings(logged):
    assert await found(logged) == []


@pytest.mark.parametrize(
    "column", ["tenant = 'u'", "time = 99", "actor = 'nobody'", "action = 'y.z'", "subject = 's'", "details = '{}'"]
)
async def test_a_changed_column_names_its_record(logged, column):
    await tamper(logged, f"UPDATE audit_record SET {column} WHERE position = 17")
    assert await found(logged) == [("CHANGED", 17)]


@both
async def test_every_changed_record_is_named(logged):
    await tamper(logged, "UPDATE audit_record SET actor = 'x' WHERE position IN (1, 8, 9, 40)")
    assert await found(logged) == [("CHANGED", 1), ("CHANGED", 8), ("CHANGED", 9), ("CHANGED", 40)]


async def test_a_record_that_was_changed_with_its_leaf_hash_is_named(logged):
    await rewrite(logged, 17, 17)
    assert await found(logged) == [("CHANGED", 17)]


async def test_a_removed_record_is_named_by_its_number(logged):
    await tamper(logged, "DELETE FROM audit_record WHERE position IN (12, 13, 30)")
    assert await found(logged) == [("MISSING", 12), ("MISSING", 30)]


@both
async def test_a_removed_record_is_found_when_the_rest_was_renumbered(logged):
    await tamper(logged, "DELETE FROM audit_record WHERE position = 12", *renumber(13, -1))
    assert await found(logged) == [("REMOVED", 12)]


async def test_the_first_record_removed(logged):
    await tamper(logged, "DELETE FROM audit_record WHERE position = 1", *renumber(2, -1))
    assert await found(logged) == [("REMOVED", 1)]


async def test_a_record_that_was_put_in_is_named_whether_its_hashes_fit_or_not(logged):
    await tamper(logged, *renumber(20, 1), forged(20, 5))
    assert await found(logged) == [("INSERTED", 20)]
    await rewrite(logged, 20, 20, chain=True)
    assert await found(logged) == [("INSERTED", 20)]


async def test_two_records_that_were_exchanged_are_named(logged):
    await tamper(
        logged,
        "UPDATE audit_record SET position = -1 WHERE position = 8",
        "UPDATE audit_record SET position = 8 WHERE position = 9",
        "UPDATE audit_record SET position = 9 WHERE position = -1",
    )
    assert await found(logged) == [("MOVED", 8)]


async def test_two_records_far_from_each_other_that_were_exchanged_are_named(logged):
    await tamper(
        logged,
        "UPDATE audit_record SET position = -1 WHERE position = 8",
        "UPDATE audit_record SET position = 8 WHERE position = 31",
        "UPDATE audit_record SET position = 31 WHERE position = -1",
    )
    assert await found(logged) == [("MOVED", 8), ("MOVED", 31)]


async def rewrite(world, first, last, *, chain=False):
    """Gives records other contents and hashes that fit: the leaf's, and with `chain` those of all behind it too."""

    def run(transaction):
        query = text(f"SELECT position, {_COLUMNS} FROM audit_record WHERE position >= {first - 1} ORDER BY position")
        rows = [Sealed(*row) for row in transaction.execute(query)]
        before = rows.pop(0).chain if first > 1 else audit.CHAIN_START
        for row in rows:
            if row.position > last:
                break
            changed = row._replace(actor="somebody else")
            leaf = merkle.leaf_hash(audit.leaf_data(changed))
            before = audit.chained(before, leaf) if chain else row.chain
            update = text("UPDATE audit_record SET actor = :a, leaf = :l, chain = :c WHERE position = :p")
            transaction.execute(update, {"a": changed.actor, "l": leaf, "c": before, "p": row.position})

    await world.service.database.write(run)


async def test_an_end_that_was_written_anew_with_all_hashes_fails_at_its_head(logged):
    await rewrite(logged, 25, RECORDS, chain=True)
    names = await found(logged)
    assert names[0] == ("ROOT", 21)  # the first head that does not fit is over 30 records, the one before over 20
    assert [one for one in names if one[0] != "TREE"] == [("ROOT", 21)]


async def test_a_new_head_over_a_rewritten_log_needs_the_key(logged):
    """Whoever rewrites everything must sign it: with another key than storage's it does not verify."""
    await rewrite(logged, 25, RECORDS, chain=True)

    def run(transaction):
        rows = transaction.execute(text("SELECT size, payload FROM audit_checkpoint WHERE size > 20 ORDER BY size"))
        for size, payload in rows.fetchall():
            signature = signing.Signer(w.RECORDS.private_pem).sign(audit_heads.CONTEXT, payload)
            update = text("UPDATE audit_checkpoint SET signature = :s, key_id = :k WHERE size = :n")
            transaction.execute(update, {"s": signature.signature, "k": signature.key_id, "n": size})

    await logged.service.database.write(run)
    assert [one for one in await found(logged) if one[0] == "CHECKPOINT"] == [("CHECKPOINT", 30), ("CHECKPOINT", 40)]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM audit_checkpoint WHERE size = 20", [("CHECKPOINT", 30)]),
        ("UPDATE audit_checkpoint SET signature = payload WHERE size = 20", [("CHECKPOINT", 20)]),
        ("UPDATE audit_checkpoint SET key_id = 'another' WHERE size = 40", [("CHECKPOINT", 40)]),
        ("UPDATE audit_checkpoint SET size = 19 WHERE size = 20", [("CHECKPOINT", 19)]),
        ("DELETE FROM audit_checkpoint WHERE size = 40", [("END", 31)]),
        ("DELETE FROM audit_checkpoint", [("END", 1)]),
    ],
)
async def test_a_head_that_was_changed_or_removed_is_named(logged, statement, expected):
    await tamper(logged, statement)
    assert await found(logged) == expected


async def test_a_payload_of_a_head_that_was_exchanged_is_named(logged):
    await tamper(
        logged,
        "UPDATE audit_checkpoint SET payload = (SELECT payload FROM audit_checkpoint WHERE size = 10) WHERE size = 30",
    )
    assert await found(logged) == [("CHECKPOINT", 30)]


async def test_an_end_that_was_cut_off_is_found_by_the_last_head(logged):
    await tamper(logged, "DELETE FROM audit_record WHERE position > 36")
    assert await found(logged) == [("END", 37)]


async def test_records_behind_the_last_head_are_found(logged):
    await tamper(logged, forged(RECORDS + 1, RECORDS))
    assert await found(logged) == [("CHANGED", 41), ("END", 41)]


@both
async def test_an_end_that_was_cut_off_with_its_heads_is_found_by_a_head_that_was_kept(logged):
    _, kept = await verify(logged)
    await tamper(
        logged,
        "DELETE FROM audit_record WHERE position > 30",
        "DELETE FROM audit_checkpoint WHERE size > 30",
        "DELETE FROM audit_node WHERE (number + 1) * 16 > 30",
    )
    assert await found(logged) == []  # nothing that is there is wrong
    assert await found(logged, kept.head) == [("HISTORY", 31)]


async def test_a_log_that_was_written_anew_by_who_has_the_key_is_found_by_a_head_that_was_kept(logged, tmp_path):
    _, kept = await verify(logged)
    async with w.storage(tmp_path / "other") as other:
        for number in range(50):
            await other.create(code=b"%d" % number)
        assert await found(other) == []
        assert await found(other, kept.head) == [("HISTORY", 1)]


@both
async def test_a_changed_node_of_the_tree_is_named(logged):
    await tamper(logged, "UPDATE audit_node SET hash = 'x' WHERE level = 4 AND number = 1")
    assert await found(logged) == [("TREE", 17)]
    await tamper(logged, "DELETE FROM audit_node WHERE level = 4 AND number = 1")
    assert await found(logged) == [("TREE", 17)]


async def test_the_file_itself_tampered_with_while_storage_is_down(tmp_path):
    async with w.storage(tmp_path) as world:
        for _ in range(5):
            await world.create()
        assert await found(world) == []
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE audit_record SET actor = 'key/another' WHERE position = 3")
    connection.close()
    async with w.storage(tmp_path) as world:
        assert await found(world) == [("CHANGED", 3)]


async def test_only_the_first_hundred_findings_are_told_and_all_are_counted(world):
    def many(transaction):
        for number in range(150):
            audit.record(transaction, time=number, tenant="t", actor="a", action="x.y", subject="s")

    await world.service.database.write(many)
    await world.service.sealer.seal()
    await tamper(world, "UPDATE audit_record SET actor = 'x'")
    findings, summary = await verify(world)
    assert (len(findings), summary.findings) == (100, 150)


def a_log(size):
    """A sealed log without a database: records, and a head behind every fifth."""
    frontier, chain, previous = merkle.Frontier(), audit.CHAIN_START, audit.CHAIN_START
    rows, heads = [], []
    for number in range(1, size + 1):
        bare = Sealed(number, "t", number, "a", "x.y", f"s{number}", "{}", b"", b"")
        leaf = merkle.leaf_hash(audit.leaf_data(bare))
        chain = audit.chained(chain, leaf)
        rows.append(bare._replace(leaf=leaf, chain=chain))
        frontier.append(leaf)
        if number % 5 == 0 or number == size:
            head = pb.Checkpoint(size=number, root_sha256=frontier.root(), chain_sha256=chain, previous_sha256=previous)
            signed = audit_heads.sign(head, signing.Signer(w.HEADS.private_pem))
            previous = audit_heads.digest(signed)
            heads.append((number, signed))
    return rows, heads


def check(rows, heads):
    done = Check(
        w.head_keys().verifier,
        last_position=rows[-1].position if rows else 0,
        last_head=heads[-1][0] if heads else 0,
    )
    for row in rows:
        done.take([row], [head for head in heads if head[0] == row.position])
    done.beyond([head for head in heads if not rows or head[0] > rows[-1].position])
    done.finish()
    return done.findings


LOG = a_log(24)
CHANGES = st.sampled_from(["change", "remove", "remove and renumber", "swap", "insert", "cut", "leaf", "chain"])


@settings(max_examples=150)
@given(st.lists(st.tuples(CHANGES, st.integers(0, 23), st.integers(0, 23)), min_size=1, max_size=3))
def test_no_tampering_with_the_records_goes_unnoticed(changes):
    rows, heads = list(LOG[0]), LOG[1]
    for what, at, other in changes:
        if not rows:
            break
        here, there = at % len(rows), other % len(rows)
        if what == "change":
            rows[here] = rows[here]._replace(actor="x")
        elif what == "remove":
            del rows[here]
        elif what == "remove and renumber":
            del rows[here]
            rows = renumbered(rows)
        elif what == "swap":
            rows[here], rows[there] = rows[there], rows[here]
            rows = renumbered(rows)
        elif what == "insert":
            rows.insert(here, rows[there])
            rows = renumbered(rows)
        elif what == "cut":
            rows = rows[:here]
        else:
            rows[here] = rows[here]._replace(**{what: rows[there].leaf})
    assert bool(check(rows, heads)) == (rows != list(LOG[0]))


def renumbered(rows):
    return [row._replace(position=number) for number, row in enumerate(rows, start=1)]
