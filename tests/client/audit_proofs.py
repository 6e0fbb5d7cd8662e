"""A small signed log made by hand: heads, receipts, and the keys to check them with."""

import hashlib
import json

from crucible.audit.v1 import audit_pb2 as pb
from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible.executor.v1.executor_service_pb2 import FinalRecord, RunOutput
from crucible_client.public_keys import PublicKey, PublicKeys
from crucible_rpc import merkle, signing

HEADS, RECORDS = signing.generate(), signing.generate()
NAME = "evaluations/0b9d2f6e-4f43-4c32-9f0e-5a0d7f1b2c3d"
OTHER = "evaluations/1b9d2f6e-4f43-4c32-9f0e-5a0d7f1b2c3d"


def signed(keys, context, message):
    payload = message.SerializeToString(deterministic=True)
    made = signing.Signer(keys.private_pem).sign(context, payload)
    return SignedBytes(payload=payload, key_id=made.key_id, signature=made.signature)


def key_set(heads=HEADS, records=RECORDS):
    return PublicKeys.of(
        [
            PublicKey(heads.key_id, "heads", heads.public_pem.decode(), current=True),
            PublicKey(records.key_id, "records", records.public_pem.decode(), current=True),
        ]
    )


def final_record(evaluation=NAME, attempt=1):
    output = RunOutput(bytes_total=2, bytes_kept=2, sha256=hashlib.sha256(b"1\n").digest())
    final = FinalRecord(
        run_id=f"{evaluation.removeprefix('evaluations/')}.{attempt}",
        evaluation=evaluation,
        attempt=attempt,
        code_sha256=hashlib.sha256(b"print(1)").digest(),
        engine="gvisor",
        engine_version="20260527",
        isolation=ev.ISOLATION_USER_KERNEL,
        stdout=output,
        executor_id="x1",
    )
    final.termination.exited.code = 0
    final.limits.wall_time.FromSeconds(30)
    final.start_time.FromSeconds(1_800_000_000)
    final.usage.peak_memory_bytes = 1 << 20
    return final


def finish(record=None, *, subject=NAME, **details):
    """The log's record of an end; of `record`, a signed final record, when there is one."""
    told = {"attempt": "1", "state": "SUCCEEDED", "termination": "exited 0"} | details
    if record is not None:
        told["final_record_sha256"] = hashlib.sha256(record.payload).hexdigest()
    made = pb.AuditRecord(tenant="t", actor="executor/x1", action="evaluation.finish", subject=subject)
    made.time.FromSeconds(1_800_000_001)
    made.details = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return made


def leaves(count):
    return [pb.AuditRecord(action="x.y", subject=f"s{number}").SerializeToString() for number in range(count)]


def tree(data):
    frontier, nodes = merkle.Frontier(), {}
    for one in data:
        nodes |= {(node.level, node.number): node.hash for node in frontier.append(merkle.leaf_hash(one))}
    return frontier.root(), lambda level, number: nodes[level, number]


def head(data, keys=HEADS):
    """The signed head over these leaves."""
    made = pb.Checkpoint(size=len(data), root_sha256=tree(data)[0], chain_sha256=bytes(32), previous_sha256=bytes(32))
    made.time.FromSeconds(1_800_000_002)
    return signed(keys, "crucible.head.v1", made)


def receipt(audit_record=None, final=None, *, at=3, size=6, heads=HEADS):
    """A receipt of `audit_record` as the log's leaf `at` of `size`."""
    data = leaves(size)
    data[at] = audit_record.SerializeToString(deterministic=True)
    root, subtree = tree(data)
    made = pb.Receipt(record=data[at], position=at + 1, inclusion=merkle.inclusion(at, size, subtree))
    made.head.CopyFrom(head(data, heads))
    assert root == pb.Checkpoint.FromString(made.head.payload).root_sha256
    if final is not None:
        made.final_record.CopyFrom(final)
    return made


def good_receipt():
    final = signed(RECORDS, "crucible.record.v1", final_record())
    return receipt(finish(final), final)
