"""What a signed record says of how a run ended, and who saw it."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor import model, records
from crucible_executor.behaviour import Action, Actions, Behaviour, Observation
from crucible_executor.ceilings import AskedLimits, in_force
from crucible_executor.output import KeptOutput
from crucible_executor.run import KillCause
from crucible_rpc import signing

USAGE = model.Usage(timedelta(seconds=1), timedelta(seconds=0.5), None, 1 << 20)


@pytest.mark.parametrize(
    ("outcome", "cause", "kind", "source"),
    [
        (model.Exited(0), None, "exited", ev.EVIDENCE_SOURCE_SANDBOX_INIT),
        (model.Signalled(11), None, "signalled", ev.EVIDENCE_SOURCE_SANDBOX_INIT),
        (model.LimitExceeded(model.Limit.WALL_TIME, "1 s"), None, "limit_exceeded", ev.EVIDENCE_SOURCE_EXECUTOR_CLOCK),
        (model.LimitExceeded(model.Limit.MEMORY, "oom"), None, "limit_exceeded", ev.EVIDENCE_SOURCE_CGROUP),
        (model.LimitExceeded(model.Limit.OUTPUT, "16x"), None, "limit_exceeded", ev.EVIDENCE_SOURCE_OUTPUT_COUNT),
        (model.Killed(), KillCause.REQUESTED, "killed", ev.EVIDENCE_SOURCE_EXECUTOR),
        (model.SandboxFailed("x" * 5000), None, "sandbox_failed", ev.EVIDENCE_SOURCE_EXECUTOR),
    ],
)
def test_every_end_has_evidence_and_its_source(outcome, cause, kind, source):
    message = records.termination(model.Outcome(outcome, (), USAGE), cause, started=True)
    assert message.WhichOneof("kind") == kind
    assert message.evidence.source == source
    assert 0 < len(message.evidence.detail) <= records.MAX_DETAIL_CHARACTERS


def test_code_digest_is_as_the_contract_describes_it():
    files = [model.File("b.py", b"two"), model.File("a.py", b"one")]
    expected = b""
    for path, content in ((b"a.py", b"one"), (b"b.py", b"two")):
        expected += len(path).to_bytes(8, "big") + path + len(content).to_bytes(8, "big") + content
    assert records.code_sha256(files) == hashlib.sha256(expected).digest()
    assert records.code_sha256(reversed(files)) == records.code_sha256(files)


def test_limit_hit_keeps_who_saw_it(tmp_path):
    keys = signing.generate()
    hits = (
        model.LimitHit(model.Limit.PROCESSES, model.Source.PIDS_CGROUP, "3 refused"),
        model.LimitHit(model.Limit.DISK, model.Source.SANDBOX_INIT, "full"),
        model.LimitHit(model.Limit.PROCESSES, model.Source.SANDBOX_KERNEL, "2 refused"),
        model.LimitHit(model.Limit.DISK_INODES, model.Source.HOST_FILE_SYSTEM, "none free"),
    )
    output = KeptOutput(10, tmp_path / "o")
    record = ex.FinalRecord(run_id="r")
    now = datetime.now(UTC)
    outcome = model.Outcome(model.Exited(0), hits, USAGE, unobserved=frozenset({model.Limit.OPEN_FILES}))
    signed = records.Records(signing.Signer(keys.private_pem)).of_outcome(
        record, outcome, None, stdout=output, stderr=output, started=now, ended=now
    )
    signing.Verifier.of(keys.public_pem).verify(records.CONTEXT, signed.payload, signed.key_id, signed.signature)
    back = ex.FinalRecord.FromString(signed.payload)
    assert [hit.limit for hit in back.limit_hits] == [
        ev.LIMIT_PROCESSES,
        ev.LIMIT_DISK,
        ev.LIMIT_PROCESSES,
        ev.LIMIT_DISK_INODES,
    ]
    assert [hit.evidence.source for hit in back.limit_hits] == [
        ev.EVIDENCE_SOURCE_CGROUP,
        ev.EVIDENCE_SOURCE_SANDBOX_INIT,
        ev.EVIDENCE_SOURCE_SANDBOX_KERNEL,
        ev.EVIDENCE_SOURCE_HOST_FILE_SYSTEM,
    ]
    assert list(back.unobserved_limits) == [ev.LIMIT_OPEN_FILES]
    assert not back.usage.HasField("sandbox_cpu_time")


def behaviour_in_record(tmp_path, outcome, *, started=True):
    keys, now = signing.generate(), datetime.now(UTC)
    output = KeptOutput(10, tmp_path / "o")
    signed = records.Records(signing.Signer(keys.private_pem)).of_outcome(
        ex.FinalRecord(run_id="r", engine="docker"),
        outcome,
        None,
        stdout=output,
        stderr=output,
        started=now if started else None,
        ended=now,
    )
    return ex.FinalRecord.FromString(signed.payload).behaviour


def test_engine_without_a_trace_says_so_and_shows_no_empty_counts(tmp_path):
    said = behaviour_in_record(tmp_path, model.Outcome(model.Exited(0), (), USAGE))
    assert said == ev.Behaviour(observation=ev.OBSERVATION_NOT_OBSERVED, reason="the engine docker has no trace")
    said = behaviour_in_record(tmp_path, model.Outcome(model.Killed(), (), USAGE), started=False)
    assert said.reason == "the program was never started"


def test_what_was_observed_is_in_the_record_with_zeros_where_nothing_was(tmp_path):
    seen = dict.fromkeys(Action, Actions()) | {Action.PROBES: Actions(2, datetime.now(UTC), ("/etc/shadow",))}
    told = Behaviour(Observation.PARTIAL, "1 was dropped", seen, dropped=1)
    said = behaviour_in_record(tmp_path, model.Outcome(model.Exited(0), (), USAGE, told))
    assert (said.observation, said.dropped, said.reason) == (ev.OBSERVATION_PARTIAL, 1, "1 was dropped")
    assert (said.probes.count, list(said.probes.examples)) == (2, ["/etc/shadow"])
    assert said.HasField("programs")
    assert (said.programs.count, said.programs.HasField("first_time")) == (0, False)


def test_limits_that_an_engine_cannot_enforce_are_not_claimed():
    limits = model.Limits(timedelta(seconds=1), None, 1.0, 1, 1, 1, 1, 1, None)
    assert in_force(limits, {model.Limit.WALL_TIME, model.Limit.OUTPUT}) == AskedLimits(
        wall_time=timedelta(seconds=1), output_bytes=1
    )
