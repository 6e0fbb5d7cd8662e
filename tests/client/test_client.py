"""The SDK against a server that keeps the contract."""

import asyncio
from datetime import timedelta

import pytest

from crucible_client import (
    AsyncClient,
    Cancelled,
    Client,
    ClientSettings,
    EvaluationSpec,
    Exited,
    File,
    Limit,
    LimitExceeded,
    Limits,
    Program,
    ProgramError,
    Role,
    Signalled,
    State,
    Stream,
    program_from_files,
    results,
)
from crucible_client import errors as sdk_errors
from crucible_rpc import errors
from tests.client.gateway_servicer import KEY, script, serve

pytestmark = pytest.mark.slow


def spec(**plan) -> EvaluationSpec:
    return EvaluationSpec(Program("python", (File("main.py", script(**plan).encode()),)))


class Calls:
    """Both clients with one face, so that each test says once what both must do."""

    def __init__(self, client) -> None:
        self._client = client

    async def __call__(self, method: str, *args, **kwargs):
        found = getattr(self._client, method)
        if isinstance(self._client, AsyncClient):
            return await found(*args, **kwargs)
        return await asyncio.to_thread(found, *args, **kwargs)

    async def all(self, method: str, *args, **kwargs) -> list:
        found = getattr(self._client, method)(*args, **kwargs)
        if isinstance(self._client, AsyncClient):
            return [one async for one in found]
        return await asyncio.to_thread(list, found)


@pytest.fixture(params=["async", "sync"])
async def calls(request, config):
    retry_for = timedelta(seconds=10)
    if request.param == "async":
        async with AsyncClient(config, retry_for=retry_for) as client:
            yield Calls(client)
    else:
        with Client(config, retry_for=retry_for) as client:
            yield Calls(client)


async def test_run_returns_how_the_program_ended(calls):
    evaluation = await calls("run", spec(out=[(1, b"hi")], end={"limitExceeded": {"limit": "LIMIT_MEMORY"}}))
    assert evaluation.termination == LimitExceeded(Limit.MEMORY)
    assert (evaluation.state, evaluation.stdout.preview) == (State.FAILED, b"hi")
    assert evaluation.usage.wall_time == timedelta(milliseconds=12)
    assert evaluation.usage.sandbox_cpu_time is None
    assert evaluation.create_time < evaluation.end_time


@pytest.mark.parametrize(
    ("end", "termination"),
    [
        ({"exited": {"code": 9}}, Exited(9)),
        ({"signalled": {"signal": 9}}, Signalled(9)),
        ({"cancelled": {"by": "k", "reason": "r", "confirmed": True}}, Cancelled("k", "r", True)),
        ({"infrastructureFailure": {"reason": "r"}}, results.InfrastructureFailure("r")),
    ],
)
async def test_each_termination_has_its_type(client, end, termination):
    assert (await client.run(spec(end=end))).termination == termination


async def test_submit_wait_output_and_cancel(calls):
    submitted = await calls("submit", spec(out=[(1, b"a" * 100_000), (2, b"err")], hang=True))
    assert submitted.state is State.QUEUED
    await calls("cancel", submitted.name, reason="enough")
    ended = await calls("wait", submitted.name, within=timedelta(seconds=10))
    assert isinstance(ended.termination, Cancelled)
    assert await calls("output", submitted.name) == b"a" * 100_000
    assert await calls("output", submitted.name, Stream.STDERR, offset=1) == b"rr"
    with pytest.raises(sdk_errors.ResourceExhaustedError, match="max_bytes"):
        await calls("output", submitted.name, max_bytes=99_999)


async def test_message_that_is_too_large_is_told_with_the_limit_and_not_sent_again(calls, gateway):
    with pytest.raises(sdk_errors.ResourceExhaustedError) as caught:
        await calls("submit", spec(out=[(1, b"x" * (5 << 20))]))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert caught.value.metadata["limit"] == str(4 << 20)
    assert str(4 << 20) in caught.value.message
    assert gateway.records == {}


async def test_wait_within_a_time_that_passes(calls):
    submitted = await calls("submit", spec(hang=True))
    with pytest.raises(sdk_errors.DeadlineExceededError):
        await calls("wait", submitted.name, within=timedelta(seconds=0.2))


async def test_list_goes_through_all_pages(calls):
    names = []
    for _ in range(5):
        names.append((await calls("run", spec())).name)  # noqa: PERF401
    listed = await calls.all("list", page_size=2, states=[State.SUCCEEDED])
    assert [one.name for one in listed] == names[::-1]
    assert await calls.all("list", states=[State.FAILED]) == []


@pytest.mark.parametrize("how", ["unavailable", "fell_behind", "end"])
async def test_watch_goes_on_by_position_without_loss_or_repetition(calls, gateway, how):
    gateway.watch_limit, gateway.break_watch = 2, how
    evaluation = await calls("submit", spec(out=[(1, bytes([n])) for n in range(6)]))
    events = await calls.all("watch", evaluation.name)
    written = b"".join(event.data for event in events if isinstance(event, results.OutputChunk))
    assert written == bytes(range(6))
    assert [event.position for event in events] == [10 * (n + 1) for n in range(len(events))]
    assert events[-1].state is State.SUCCEEDED
    assert gateway.watched_after[:3] == [0, 20, 40]


async def test_watch_behind_the_last_event_ends(calls):
    evaluation = await calls("run", spec())
    last = (await calls.all("watch", evaluation.name))[-1]
    assert await calls.all("watch", evaluation.name, after_position=last.position) == []


async def test_watch_survives_a_restart_of_the_server(gateway, tls):
    async with serve(gateway, tls.server.credentials) as port:
        config = ClientSettings(f"127.0.0.1:{port}", KEY, tls.ca_file)
        client = AsyncClient(config, retry_for=timedelta(seconds=20))
        evaluation = await client.submit(spec(out=[(1, b"x")]))
        events = client.watch(evaluation.name)
        seen = [await anext(events)]
    async with serve(gateway, tls.server.credentials, port):
        seen += [event async for event in events]
    assert len({event.position for event in seen}) == len(seen)
    assert seen[-1].state is State.SUCCEEDED
    await client.close()


async def test_unavailable_and_full_queue_are_borne_and_nothing_starts_twice(calls, gateway):
    soon = timedelta(milliseconds=10)
    gateway.faults["RunEvaluation"] = [
        *[errors.UnavailableError("PEER_UNAVAILABLE", "storage is away", retry_after=soon)] * 4,
        errors.ResourceExhaustedError("QUEUE_FULL", "the queue is full", retry_after=soon),
    ]
    assert (await calls("run", spec())).state is State.SUCCEEDED
    assert len(gateway.records) == 1


async def test_what_will_not_pass_is_raised_at_once(calls, gateway):
    gateway.faults["RunEvaluation"] = [errors.ResourceExhaustedError("STORAGE_FULL", "no room")]
    with pytest.raises(sdk_errors.ResourceExhaustedError, match="no room"):
        await calls("run", spec())
    with pytest.raises(sdk_errors.NotFoundError) as caught:
        await calls("get", "evaluations/none")
    assert caught.value.reason == "EVALUATION_NOT_FOUND"
    assert gateway.calls["RunEvaluation"] == 1


async def test_violations_reach_the_caller(calls, gateway):
    violation = errors.FieldViolation("spec.program.files[0].path", "no `..`")
    gateway.faults["CreateEvaluation"] = [errors.InvalidArgumentError("INVALID_FIELD", "wrong", [violation])]
    with pytest.raises(sdk_errors.InvalidArgumentError) as caught:
        await calls("submit", spec())
    assert caught.value.violations == (violation,)


async def test_wrong_key_is_refused(config):
    wrong = ClientSettings(config.address, "wrong", config.ca_file)
    with Client(wrong) as client, pytest.raises(sdk_errors.UnauthenticatedError):
        await asyncio.to_thread(client.get, "x")


async def test_keys_and_platform(calls):
    made = await calls("create_api_key", "team", role=Role.ADMIN)
    assert made.secret not in repr(made)
    assert (await calls("revoke_api_key", made.api_key.id)).revoke_time is not None
    assert [one.role for one in await calls("list_api_keys")] == [Role.ADMIN]
    capabilities = await calls("capabilities")
    assert capabilities.engines[0].enforces == (Limit.WALL_TIME, Limit.MEMORY)
    assert capabilities.default_limits == Limits(wall_time=timedelta(seconds=30), memory_bytes=512 << 20)
    assert (await calls("status")).queue == results.QueueStatus(1, 2, 3)
    listed = [(one.name, one.unavailable_reason) for one in await calls("runtimes")]
    assert listed == [("node", "no image"), ("python", "")]


async def test_a_key_or_a_tenant_is_never_asked_for_twice(calls, gateway):
    gateway.faults["CreateApiKey"] = [errors.UnavailableError("STORAGE_UNAVAILABLE", "storage does not answer")]
    with pytest.raises(sdk_errors.UnavailableError, match="does not answer"):
        await calls("create_api_key", "team", role=Role.ADMIN)
    assert gateway.calls["CreateApiKey"] == 1
    gateway.faults["CreateTenant"] = [errors.UnavailableError("STORAGE_UNAVAILABLE", "storage does not answer")]
    with pytest.raises(sdk_errors.UnavailableError, match="does not answer"):
        await calls("create_tenant", "team")
    assert gateway.calls["CreateTenant"] == 1


async def test_run_many_keeps_its_bound_and_yields_everything(client, gateway):
    specs = [spec(end={"exited": {"code": n}}, meet=3) for n in range(20)]
    outcomes = [outcome async for outcome in client.run_many(specs, concurrency=3)]
    assert {one.index: one.evaluation.termination.code for one in outcomes} == {n: n for n in range(20)}
    assert gateway.most_running == 3
    assert len(gateway.records) == 20


async def test_run_many_tells_a_refused_spec_and_goes_on(client, gateway):
    gateway.faults["RunEvaluation"] = [errors.FailedPreconditionError("ENGINE_NOT_AVAILABLE", "none")]
    outcomes = [outcome async for outcome in client.run_many([spec()] * 4, concurrency=2)]
    assert sorted(outcome.error is None for outcome in outcomes) == [False, True, True, True]


async def test_run_many_that_is_left_cancels_what_is_under_way(client, gateway):
    outcomes = client.run_many([spec(), spec(hang=True), spec(hang=True)], concurrency=3)
    assert (await anext(outcomes)).index == 0
    await outcomes.aclose()
    assert gateway.calls["CancelEvaluation"] == 2
    assert len(gateway.records) == 3


def test_program_from_files(tmp_path):
    (tmp_path / "a.sh").write_text("echo")
    (tmp_path / "b.txt").write_text("data")
    program = program_from_files(tmp_path / "a.sh", tmp_path / "b.txt", args=("x",))
    assert (program.runtime, program.entrypoint, [file.path for file in program.files]) == (
        "bash",
        "a.sh",
        ["a.sh", "b.txt"],
    )
    with pytest.raises(ProgramError, match="name one"):
        program_from_files(tmp_path / "b.txt")
    with pytest.raises(ProgramError, match="same name"):
        program_from_files(tmp_path / "a.sh", tmp_path / "a.sh")
