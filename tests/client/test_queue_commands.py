"""`crucible tenant` and `crucible queue`, and the SDK's calls behind them."""

import json
from datetime import timedelta

import pytest

from crucible.evaluation.v1 import evaluation_pb2, tenant_pb2
from crucible_client import Quota, errors

pytestmark = pytest.mark.slow


@pytest.fixture
def dead(gateway):
    """Two dead letters, the newest end first."""
    for number in (2, 1):
        letter = tenant_pb2.DeadLetter(
            evaluation=f"evaluations/{number}", tenant="t", attempts=3, reason="gone\x1b[31m"
        )
        letter.failed_attempts.append(evaluation_pb2.FailedAttempt(attempt=1, reason="first"))
        letter.end_time.GetCurrentTime()
        gateway.dead.append(letter)


async def test_tenant_create_list_and_quota(crucible):
    made = await crucible(
        "tenant", "create", "team", "--weight", "3", "--max-queued", "50", "--max-stored-bytes", "1GiB"
    )
    assert (made.code, made.out) == (0, b"made tenant team\n")
    row = ["team", "3", "100", "0", "0/50", "0", "0 s", "1.5 KiB/1.0 GiB"]
    assert (await crucible("tenant", "list")).lines == ["\t".join(row)]
    changed = await crucible(
        "tenant", "quota", "team", "--max-queued", "0", "--max-running", "7", "--max-stored-bytes", "0"
    )
    assert changed.code == 0
    pairs = dict(line.split("\t") for line in changed.lines)
    assert (pairs["queued"], pairs["running"], pairs["weight"], pairs["stored"]) == ("0", "0/7", "3", "1.5 KiB")
    shown = json.loads((await crucible("tenant", "quota", "team", "--json")).out)
    assert (shown["name"], shown["quota"]["max_running"], shown["use"]["stored_bytes"]) == ("team", 7, 1536)
    assert json.loads((await crucible("tenant", "list", "--json")).out) == shown


async def test_a_quota_that_is_not_given_is_not_sent(client, gateway):
    await client.create_tenant("team", Quota(weight=5))
    changed = await client.set_quota("team", Quota(max_running=0))
    assert (changed.quota.weight, changed.quota.max_running) == (5, 0)
    assert not gateway.tenants["team"].quota.HasField("max_queued")
    assert [one.name for one in await client.list_tenants()] == ["team"]


@pytest.mark.parametrize("option", [("--weight", "0"), ("--max-running", "-1"), ("--max-stored-bytes", "x")])
async def test_quotas_that_cannot_be_are_refused_before_the_call(crucible, gateway, option):
    ran = await crucible("tenant", "create", "team", *option)
    assert (ran.code, gateway.calls["CreateTenant"]) == (2, 0)


async def test_an_unknown_tenant_is_one_line(crucible):
    ran = await crucible("tenant", "quota", "nobody")
    assert (ran.code, ran.err) == (1, b"crucible: there is no tenant nobody\n")


async def test_queue_status_pause_and_resume(crucible, dead):
    paused = await crucible("queue", "pause", "--reason", "new disks")
    assert paused.code == 0
    assert b"paused for everybody since" in paused.out
    status = (await crucible("queue", "status")).lines
    assert status[0].split("\t") == ["t", "2", "4", "0/3", "0:00:00", "yes"]
    assert status[1] == "queue: 4 of at most 9 queued, 0 running"
    assert status[2].endswith("by key9: new disks")
    assert status[3].startswith("2 dead letters")
    shown = json.loads((await crucible("queue", "status", "--json")).out)
    assert (shown["max_queued"], shown["pauses"][0]["reason"], shown["tenants"][0]["queued"]) == (9, "new disks", 4)
    assert (await crucible("queue", "resume")).out == b"resumed for everybody\n"
    assert (await crucible("queue", "resume", "--tenant", "t")).out == b"t: nothing was paused\n"


async def test_a_reason_reaches_no_terminal_as_a_command(crucible, dead):
    paused = await crucible("queue", "pause", "--reason", "x\x1b[2Jy")
    status = await crucible("queue", "status")
    for said in (paused.out, status.out):
        assert b"\\x1b[2J" in said
        assert b"\x1b" not in said


async def test_drain_pauses_waits_until_nothing_runs_and_stays_paused(crucible, gateway):
    gateway.still_running = [2, 1]
    ran = await crucible("queue", "drain", "--tenant", "t", "--reason", "upgrade")
    assert (ran.code, ran.out) == (0, b"drained: nothing runs; `crucible queue resume` ends the pause\n")
    assert ran.err.splitlines()[1:] == [b"2 still running", b"1 still running"]
    assert list(gateway.pauses) == ["t"]


async def test_drain_that_takes_too_long_says_so_and_stays_paused(crucible, gateway):
    gateway.still_running = [3] * 100
    ran = await crucible("queue", "drain", "--within", "600ms")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == b"crucible: 3 evaluations still run; the queue stays paused"
    assert list(gateway.pauses) == [""]


async def test_dead_letters_are_listed_without_what_a_terminal_would_obey(crucible, dead):
    lines = (await crucible("queue", "dead")).lines
    assert [line.split("\t")[0] for line in lines] == ["evaluations/2", "evaluations/1"]
    assert "\x1b" not in lines[0]
    first = json.loads((await crucible("queue", "dead", "--json")).lines[0])
    assert (first["attempts"], first["failed_attempts"][0]["reason"], first["retried_as"]) == (3, "first", None)


async def test_retry_names_the_new_evaluation_and_the_same_one_again(crucible, dead, gateway):
    assert (await crucible("queue", "retry", "evaluations/1")).out == b"evaluations/new-1\n"
    again = json.loads((await crucible("queue", "retry", "evaluations/1", "--json")).out)
    assert again == {"evaluation": "evaluations/1", "retried_as": "evaluations/new-1", "repeated": True}
    assert (await crucible("queue", "retry", "--all")).out == b"evaluations/new-2\n"
    assert (await crucible("queue", "dead")).lines == []
    assert len((await crucible("queue", "dead", "--retried")).lines) == 2


@pytest.mark.parametrize("args", [(), ("evaluations/1", "--all"), ("evaluations/1", "--tenant", "t")])
async def test_retry_without_a_clear_choice_is_refused(crucible, dead, gateway, args):
    assert (await crucible("queue", "retry", *args)).code == 2
    assert gateway.calls["RetryDeadLetter"] == 0


@pytest.mark.parametrize("command", ["tenant list", "queue status", "queue pause", "queue drain", "queue dead"])
async def test_a_plain_key_is_refused_in_one_line(crucible, gateway, command):
    refused = errors.PermissionDeniedError("NOT_PERMITTED", "this call needs an administrator's API key")
    for rpc in ("ListTenants", "GetQueueStatus", "PauseQueue", "ListDeadLetters"):
        gateway.faults[rpc] = [refused]
    ran = await crucible(*command.split())
    assert (ran.code, ran.err) == (1, b"crucible: this call needs an administrator's API key\n")


async def test_a_quota_that_is_used_up_until_midnight_is_told_at_once(crucible, gateway, tmp_path):
    refused = errors.ResourceExhaustedError("QUOTA_EXCEEDED", "used up until midnight", retry_after=timedelta(hours=5))
    gateway.faults["CreateEvaluation"] = [refused]
    program = tmp_path / "main.py"
    program.write_text("print(1)")
    ran = await crucible("submit", str(program))
    assert (ran.code, ran.err) == (1, b"crucible: used up until midnight\n")
    assert gateway.calls["CreateEvaluation"] == 1


def test_both_clients_have_the_same_calls():
    from crucible_client import AsyncClient, Client

    public = {name for name in vars(AsyncClient) if not name.startswith("_")} - {"run_many"}
    assert public == {name for name in vars(Client) if not name.startswith("_")}


async def test_the_blocking_client_reads_all_pages(config, dead):
    import asyncio

    from crucible_client import Client

    with Client(config) as client:
        letters = await asyncio.to_thread(lambda: list(client.dead_letters()))
    assert [letter.evaluation for letter in letters] == ["evaluations/2", "evaluations/1"]
