import asyncio
import logging
from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import event_pb2
from crucible.evaluation.v1 import platform_pb2 as platform
from crucible.evaluation.v1.usage_samples_pb2 import UsagePoint
from crucible.gateway.v1 import admin_service_pb2 as admin_api
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible.gateway.v1 import platform_service_pb2 as platform_api
from crucible.monitor.v1 import monitor_service_pb2 as monitor_api
from crucible.storage.v1 import evaluation_store_service_pb2 as store_api
from crucible_rpc import logs
from crucible_rpc.channel import connect_public
from crucible_rpc.errors import (
    AlreadyExistsError,
    CallError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.gateway.conftest import ADMIN_KEY, OTHER_KEY, USER_KEY, a_spec
from tests.gateway.fake_servicer import MIB, an_executor

pytestmark = pytest.mark.slow

UNKNOWN = "evaluations/0f8fad5b-d9cb-469f-a165-70867728950e"
RUN = "/crucible.gateway.v1.EvaluationService/RunEvaluation"


async def test_run_returns_the_terminal_evaluation(client, store, spec):
    answer = await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
    assert answer.evaluation.state == ev.EVALUATION_STATE_SUCCEEDED
    assert answer.evaluation.termination.exited.code == 0
    stored = store.requests[0]
    assert (stored.tenant, stored.creator) == ("acme", "key-0")
    assert (stored.spec.engine, stored.spec.limits.memory_bytes) == ("gvisor", 512 * MIB)


async def test_create_returns_at_once_and_get_list_cancel_find_it(client, spec, store):
    store.finish = False
    made = (await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))).evaluation
    assert made.state == ev.EVALUATION_STATE_QUEUED
    got = await client.evaluations.GetEvaluation(api.GetEvaluationRequest(name=made.name))
    assert got.evaluation == made
    page = await client.evaluations.ListEvaluations(api.ListEvaluationsRequest())
    assert [each.name for each in page.evaluations] == [made.name]
    request = api.CancelEvaluationRequest(name=made.name, reason="enough")
    cancelled = (await client.evaluations.CancelEvaluation(request)).evaluation
    assert cancelled.termination.cancelled.by == "key-0"
    assert cancelled.termination.cancelled.reason == "enough"


async def test_pages_follow_each_other_and_a_token_from_elsewhere_is_refused(client, spec):
    for _ in range(5):
        await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    seen, token = [], ""
    while True:
        request = api.ListEvaluationsRequest(page_size=2, page_token=token)
        page = await client.evaluations.ListEvaluations(request)
        seen += [each.name for each in page.evaluations]
        token = page.next_page_token
        if not token:
            break
    assert len(set(seen)) == len(seen) == 5
    with pytest.raises(InvalidArgumentError) as caught:
        await client.evaluations.ListEvaluations(api.ListEvaluationsRequest(page_token="forged"))
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


async def test_output_is_streamed_from_an_offset(client, spec):
    name = (await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))).evaluation.name
    request = api.ReadOutputRequest(name=name, stream=ev.OUTPUT_STREAM_STDOUT, offset=4)
    parts = [part async for part in client.evaluations.ReadOutput(request)]
    assert parts[0].offset == 4
    assert b"".join(part.data for part in parts) == b"".join(b"%d " % number for number in range(50_000))[4:]


async def test_usage_samples_are_passed_on_as_storage_has_them(client, store, spec):
    name = (await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))).evaluation.name
    point = UsagePoint(samples=3, memory_bytes=2, min_memory_bytes=1, max_memory_bytes=4, tasks=5, max_tasks=6)
    store.usage_samples = store_api.ListUsageSamplesResponse(
        attempt=2, observation=ev.OBSERVATION_PARTIAL, reason="3 of 9 samples are kept", points=[point]
    )
    answer = await client.evaluations.ListUsageSamples(api.ListUsageSamplesRequest(name=name, attempt=2))
    assert (answer.attempt, answer.observation, answer.reason) == (2, 3, "3 of 9 samples are kept")
    assert list(answer.points) == [point]
    asked = store.requests[-1]
    assert (asked.tenant, asked.name, asked.attempt) == ("acme", name, 2)
    for wrong in (api.ListUsageSamplesRequest(name="x"), api.ListUsageSamplesRequest(name=name, attempt=-1)):
        with pytest.raises(InvalidArgumentError):
            await client.evaluations.ListUsageSamples(wrong)


async def test_watch_passes_events_and_the_word_that_it_fell_behind(client, watched):
    watched.answers = [
        monitor_api.WatchResponse(event=event_pb2.Event(position=7, output=event_pb2.OutputChunk(data=b"hi"))),
        monitor_api.WatchResponse(fell_behind_resume_after_position=7),
    ]
    call = client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN, after_position=3))
    event, behind = [answer async for answer in call]
    assert event.event.output.data == b"hi"
    assert behind.fell_behind.resume_after_position == 7
    assert [(each.tenant, each.after_position) for each in watched.requests] == [("acme", 3)]


@pytest.mark.parametrize("key", [None, "crucible_wrong", "x" * 300])
async def test_without_a_good_key_nothing_is_answered(gateway, dial, spec, store, key):
    client = dial(gateway, key)
    calls = [
        lambda: client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec)),
        lambda: client.platform.GetStatus(platform_api.GetStatusRequest()),
        lambda: client.admin.ListApiKeys(admin_api.ListApiKeysRequest()),
        lambda: anext(aiter(client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN)))),
    ]
    for call in calls:
        with pytest.raises(UnauthenticatedError) as caught:
            await call()
        assert caught.value.reason == "INVALID_API_KEY"
    assert store.requests == []


async def test_health_and_reflection_need_no_key(gateway, dial):
    channel = dial(gateway, None).channel
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
    async for answer in reflection:
        names = {service.name for service in answer.list_services_response.service}
        break
    assert {f"crucible.gateway.v1.{name}Service" for name in ("Evaluation", "Platform", "Admin")} <= names


async def test_method_that_is_not_there_is_unimplemented_also_without_a_key(gateway, dial):
    call = dial(gateway, None).channel.unary_unary("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    with pytest.raises(CallError) as caught:
        await call(b"")
    assert type(caught.value).__name__ == "UnimplementedError"


async def test_user_may_not_administer(client, store):
    before = len(store.keys)
    for call in (
        client.admin.CreateApiKey(admin_api.CreateApiKeyRequest(tenant="acme")),
        client.admin.ListApiKeys(admin_api.ListApiKeysRequest()),
        client.admin.RevokeApiKey(admin_api.RevokeApiKeyRequest(id="key-0")),
        client.admin.DeleteEvaluation(admin_api.DeleteEvaluationRequest(name=UNKNOWN)),
    ):
        with pytest.raises(PermissionDeniedError) as caught:
            await call
        assert caught.value.reason == "NOT_PERMITTED"
    assert len(store.keys) == before


async def test_key_that_an_administrator_makes_works_until_it_is_revoked(gateway, dial, spec, store):
    admin = dial(gateway, ADMIN_KEY).admin
    made = await admin.CreateApiKey(admin_api.CreateApiKeyRequest(tenant="new", description="ci"))
    assert (made.api_key.tenant, made.api_key.role) == ("new", admin_api.ROLE_USER)
    assert made.secret.encode() not in str(store.keys).encode()
    client = dial(gateway, made.secret)
    await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    assert store.requests[-1].tenant == "new"
    await admin.RevokeApiKey(admin_api.RevokeApiKeyRequest(id=made.api_key.id))
    with pytest.raises(UnauthenticatedError):
        await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    listed = await admin.ListApiKeys(admin_api.ListApiKeysRequest())
    assert [key.HasField("revoke_time") for key in listed.api_keys] == [False, False, False, True]
    with pytest.raises(NotFoundError):
        await admin.RevokeApiKey(admin_api.RevokeApiKeyRequest(id="nobody"))


async def test_an_administrator_deletes_what_has_ended_of_any_tenant(client, gateway, dial, spec):
    admin = dial(gateway, ADMIN_KEY).admin
    created = (await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))).evaluation
    request = admin_api.DeleteEvaluationRequest(name=created.name, reason="asked to")
    with pytest.raises(FailedPreconditionError) as caught:
        await admin.DeleteEvaluation(request)
    assert caught.value.reason == "EVALUATION_NOT_TERMINAL"
    await client.evaluations.CancelEvaluation(api.CancelEvaluationRequest(name=created.name))
    answer = await admin.DeleteEvaluation(request)
    assert (answer.tenant, answer.deleted.reason) == (created.tenant, "asked to")
    assert answer.deleted.by.startswith("key-")
    with pytest.raises(NotFoundError):
        await admin.DeleteEvaluation(admin_api.DeleteEvaluationRequest(name=UNKNOWN))


async def test_another_tenants_evaluation_is_not_found(client, gateway, dial, spec):
    name = (await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))).evaluation.name
    other = dial(gateway, OTHER_KEY).evaluations
    for wanted in (name, UNKNOWN):
        for call in (
            other.GetEvaluation(api.GetEvaluationRequest(name=wanted)),
            other.CancelEvaluation(api.CancelEvaluationRequest(name=wanted)),
            other.ListUsageSamples(api.ListUsageSamplesRequest(name=wanted)),
            anext(aiter(other.ReadOutput(api.ReadOutputRequest(name=wanted, stream=1)))),
        ):
            with pytest.raises(NotFoundError) as caught:
                await call
            assert caught.value.reason == "EVALUATION_NOT_FOUND"
    assert len((await other.ListEvaluations(api.ListEvaluationsRequest())).evaluations) == 0


def bad(**changes):
    spec = a_spec()
    for path, value in changes.items():
        target = spec
        *parents, field = path.split("__")
        for parent in parents:
            target = getattr(target, parent)
        if isinstance(value, (dict, list)):
            spec_field = getattr(target, field)
            spec_field.update(value) if isinstance(value, dict) else spec_field.extend(value)
        else:
            setattr(target, field, value)
    return spec


def file(path):
    return [ev.File(path=path, content=b"x")]


@pytest.mark.parametrize(
    ("spec", "error", "reason", "field"),
    [
        (bad(program__runtime="cobol"), FailedPreconditionError, "RUNTIME_NOT_AVAILABLE", "spec.program.runtime"),
        (bad(program__runtime="C OBOL"), InvalidArgumentError, "INVALID_FIELD", "spec.program.runtime"),
        (bad(engine="kvm"), FailedPreconditionError, "ENGINE_NOT_AVAILABLE", "spec.engine"),
        (bad(engine="subprocess"), FailedPreconditionError, "ENGINE_NOT_AVAILABLE", "spec.engine"),
        (bad(priority=500), InvalidArgumentError, "INVALID_FIELD", "spec.priority"),
        (bad(limits__memory_bytes=1), InvalidArgumentError, "INVALID_FIELD", "spec.limits.memory_bytes"),
        (bad(limits__memory_bytes=1 << 40), InvalidArgumentError, "INVALID_FIELD", "spec.limits.memory_bytes"),
        (bad(limits__processes=-1), InvalidArgumentError, "INVALID_FIELD", "spec.limits.processes"),
        (bad(limits__disk_inodes=5), FailedPreconditionError, "LIMIT_NOT_ENFORCEABLE", "spec.limits.disk_inodes"),
        (bad(program__files=file("../x")), InvalidArgumentError, "INVALID_FIELD", "spec.program.files[1].path"),
        (bad(program__files=file("/x")), InvalidArgumentError, "INVALID_FIELD", "spec.program.files[1].path"),
        (bad(program__files=file("a\0")), InvalidArgumentError, "INVALID_FIELD", "spec.program.files[1].path"),
        (bad(program__stdin=b"x" * (3 * MIB)), InvalidArgumentError, "INVALID_FIELD", "spec.program"),
        (a_spec(b""), InvalidArgumentError, "INVALID_FIELD", "spec.program.files"),
        (ev.EvaluationSpec(), InvalidArgumentError, "INVALID_FIELD", "spec.program.files"),
        (bad(labels={"k": "v" * 300}), InvalidArgumentError, "INVALID_FIELD", "spec.labels['k']"),
    ],
)
async def test_bad_spec_is_refused_with_reason_and_field_before_anything_is_stored(
    client, store, spec, error, reason, field
):
    for call in (
        lambda: client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec)),
        lambda: client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec)),
    ):
        with pytest.raises(error) as caught:
            await call()
        assert caught.value.reason == reason
        named = {each.field for each in getattr(caught.value, "violations", ())} | {caught.value.metadata.get("field")}
        assert field in named
    assert store.requests == []


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x12\x05ab"])
async def test_bytes_that_are_not_the_message_are_malformed(client, store, raw):
    with pytest.raises(InvalidArgumentError) as caught:
        await client.channel.unary_unary(RUN)(raw)
    assert caught.value.reason == "MALFORMED_MESSAGE"
    assert store.requests == []


async def test_too_large_a_message_is_refused_with_the_limit_in_the_text(client, store):
    spec = a_spec(b"x" * (4 * MIB + 1))
    with pytest.raises(ResourceExhaustedError) as caught:
        await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
    assert caught.value.reason == "MESSAGE_TOO_LARGE"
    assert caught.value.message.endswith(f"takes at most {4 * MIB}")
    assert store.requests == []


async def test_short_run_is_one_call_to_storage_and_a_long_one_is_waited_for(client, store, spec):
    await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
    assert (len(store.requests), store.waits) == (1, 0)
    store.finish = False
    running = asyncio.ensure_future(_run(client, spec))
    async with asyncio.timeout(10):
        await store.waiting.wait()
        while not store.waits:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert len(store.requests) == 2
    running.cancel()


async def test_run_whose_creation_lost_its_answer_again_and_again_is_made_once(client, store, spec):
    store.lose_answers = 7  # more often than a channel tries again
    answer = await asyncio.wait_for(_run(client, spec), 20)
    assert answer.evaluation.state == ev.EVALUATION_STATE_SUCCEEDED
    assert len(store.evaluations) == 1


async def test_request_id_makes_the_call_repeatable(client, spec):
    first = await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(request_id="r1", spec=spec))
    again = await client.evaluations.RunEvaluation(api.RunEvaluationRequest(request_id="r1", spec=spec))
    assert again.evaluation.name == first.evaluation.name
    with pytest.raises(AlreadyExistsError) as caught:
        await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(request_id="r1", spec=a_spec(b"other")))
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_answer_lost_between_storage_and_gateway_makes_no_second_evaluation(client, store, spec):
    store.lose_answers = 2
    await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    assert len(store.requests) == 4
    assert len(store.evaluations) == 2


async def test_executor_that_just_registered_is_never_overlooked(start_gateway, dial, store, spec):
    client = dial(await start_gateway(executors_ttl=timedelta(minutes=1)))
    store.executors = []
    with pytest.raises(FailedPreconditionError):
        await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    store.executors = [an_executor()]
    await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))


async def test_work_for_executors_that_are_away_is_accepted(client, store, spec):
    store.executors = [an_executor(live=False)]
    made = await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    assert made.evaluation.state == ev.EVALUATION_STATE_QUEUED


async def test_with_storage_down_calls_are_unavailable_with_its_name_and_a_retry_hint(client, storage, spec):
    await client.platform.GetCapabilities(platform_api.GetCapabilitiesRequest())  # the key is remembered
    await storage.stop()
    for call in (
        lambda: client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec)),
        lambda: client.evaluations.GetEvaluation(api.GetEvaluationRequest(name=UNKNOWN)),
        lambda: client.platform.GetCapabilities(platform_api.GetCapabilitiesRequest()),
    ):
        with pytest.raises(UnavailableError) as caught:
            await call()
        assert caught.value.reason == "PEER_UNAVAILABLE"
        assert "storage" in caught.value.message
        assert caught.value.retry_after is not None
    await storage.start()
    await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))


async def test_with_monitor_down_watching_is_unavailable_and_everything_else_works(client, monitor, spec):
    await monitor.stop()
    with pytest.raises(UnavailableError) as caught:
        await anext(aiter(client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN))))
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert "monitor" in caught.value.message
    await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
    await monitor.start()
    # Its channel finds it again within its longest backoff.
    async with asyncio.timeout(10):
        while True:
            request = api.WatchEvaluationRequest(name=UNKNOWN)
            try:
                assert [answer.event.position async for answer in client.evaluations.WatchEvaluation(request)] == [1]
                break
            except UnavailableError:
                continue


async def test_run_outlives_a_storage_that_goes_away_and_comes_back(client, store, storage, spec):
    store.finish = False
    running = asyncio.ensure_future(_run(client, spec))
    await asyncio.wait_for(store.waiting.wait(), 5)
    await storage.stop()
    store.finish = True
    await storage.start()
    answer = await asyncio.wait_for(running, 15)
    assert answer.evaluation.state == ev.EVALUATION_STATE_SUCCEEDED
    assert len(store.evaluations) == 1


async def _run(client, spec, **options):
    return await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec), timeout=60, **options)


async def test_callers_deadline_ends_the_wait_but_not_the_evaluation(client, store, spec):
    store.finish = False
    with pytest.raises(CallError):
        await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec), timeout=0.3)
    async with asyncio.timeout(5):
        while not store.cancelled_waits:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert [each.state for each in store.evaluations.values()] == [ev.EVALUATION_STATE_QUEUED]


async def test_watcher_that_leaves_ends_the_stream_from_monitor(client, watched):
    watched.endless = True
    call = aiter(client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN)))
    await anext(call)
    await call.aclose()
    await asyncio.wait_for(watched.left.wait(), 5)


async def test_stopping_gateway_ends_runs_and_watches_at_once_and_says_so(gateway, client, store, watched, spec):
    store.finish = False
    watched.endless = True
    running = asyncio.ensure_future(_run(client, spec))
    call = aiter(client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN)))
    await anext(call)
    await asyncio.wait_for(store.waiting.wait(), 5)
    started = asyncio.get_running_loop().time()
    stopping = asyncio.ensure_future(gateway.drain())
    for waiting in (running, anext(call)):
        with pytest.raises(UnavailableError) as caught:
            await asyncio.wait_for(waiting, 5)
        assert caught.value.reason == "SHUTTING_DOWN"
        assert caught.value.retry_after is not None
    await asyncio.wait_for(stopping, 5)
    assert asyncio.get_running_loop().time() - started < 2


async def test_watcher_that_reads_nothing_is_given_up_and_can_go_on(start_gateway, dial, watched):
    client = dial(await start_gateway(watcher_patience=timedelta(seconds=0.3)))
    chunk = event_pb2.OutputChunk(data=b"x" * 65_536)
    events = [event_pb2.Event(position=position, output=chunk) for position in range(1, 201)]
    watched.answers = [monitor_api.WatchResponse(event=event) for event in events]
    watched.endless = True
    stalled = aiter(client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN)))
    await anext(stalled)
    await asyncio.wait_for(watched.left.wait(), 20)  # its place at monitor is somebody else's
    with pytest.raises(UnavailableError) as caught:
        await asyncio.wait_for(_drained(stalled), 10)
    assert caught.value.reason == "READER_STALLED"
    assert "call again with a position" in caught.value.message


async def test_reader_that_reads_nothing_does_not_hold_up_the_end(gateway, client, watched):
    output = event_pb2.Event(position=1, output=event_pb2.OutputChunk(data=b"x" * 65_536))
    watched.answers = [monitor_api.WatchResponse(event=output)] * 500
    watched.endless = True
    call = aiter(client.evaluations.WatchEvaluation(api.WatchEvaluationRequest(name=UNKNOWN)))
    await anext(call)
    await asyncio.wait_for(gateway.drain(), 5)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(_drained(call), 10)
    await asyncio.wait_for(watched.left.wait(), 5)


async def test_capabilities_merge_what_executors_offer(client, store):
    gvisor = platform.Engine(name="gvisor", available=False, unavailable_reason="no runsc")
    store.executors = [
        an_executor("a", engines=[gvisor], runtimes=["bash", "python"], lacks=["node", "go"]),
        an_executor("b", processes=999, runtimes=["python", "go"]),
        an_executor("c", live=False, memory_bytes=1 << 45),
    ]
    answer = await client.platform.GetCapabilities(platform_api.GetCapabilitiesRequest())
    assert [(each.name, each.available) for each in answer.engines] == [("gvisor", True), ("subprocess", False)]
    assert answer.default_engine == "gvisor"
    assert (answer.ceilings.processes, answer.ceilings.memory_bytes) == (999, 2048 * MIB)
    assert answer.default_limits.wall_time.seconds == 30
    assert (answer.max_message_bytes, answer.max_attempts) == (4 * MIB, 3)
    runtimes = await client.platform.ListRuntimes(platform_api.ListRuntimesRequest())
    assert [(each.name, each.unavailable_reason) for each in runtimes.runtimes] == [
        ("bash", ""), ("go", ""), ("node", "build the image of node"), ("python", ""),
    ]  # fmt: skip


async def test_status_names_every_process_and_the_tenants_queue(client, store, spec):
    store.executors = [an_executor("a"), an_executor("b", live=False)]
    store.finish = False
    await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))
    answer = await client.platform.GetStatus(platform_api.GetStatusRequest())
    told = {each.process: each.serving for each in answer.processes}
    assert told == {"gateway": True, "storage": True, "monitor": True, "executor/a": True, "executor/b": False}
    assert (answer.queue.queued, answer.queue.finished) == (1, 0)


async def test_status_and_capabilities_name_an_engine_that_fails_again_and_again(client, store, spec):
    broken = platform.Engine(name="gvisor", unavailable_reason="The engine gvisor fails: no runsc", breaker_open=True)
    missing = platform.Engine(name="docker", unavailable_reason="no dockerd")
    store.executors = [an_executor("a", engines=[broken, missing])]
    answer = await client.platform.GetStatus(platform_api.GetStatusRequest())
    (told,) = [each for each in answer.processes if each.process == "executor/a"]
    assert (told.serving, told.detail) == (True, "The engine gvisor fails: no runsc")
    capabilities = await client.platform.GetCapabilities(platform_api.GetCapabilitiesRequest())
    assert {each.name: (each.available, each.breaker_open) for each in capabilities.engines} == {
        "docker": (False, False),
        "gvisor": (False, True),
    }
    with pytest.raises(FailedPreconditionError, match="no runsc"):
        await client.evaluations.CreateEvaluation(api.CreateEvaluationRequest(spec=spec))


async def test_status_answers_also_while_others_are_down_and_the_key_is_old(start_gateway, dial, storage, monitor):
    client = dial(await start_gateway(key_ttl=timedelta(0)))
    await client.platform.GetStatus(platform_api.GetStatusRequest())
    await storage.stop()
    await monitor.stop()
    answer = await asyncio.wait_for(_status(client), 8)
    told = {each.process: each.serving for each in answer.processes}
    assert told == {"gateway": True, "storage": False, "monitor": False, "executor/x1": False}
    assert all(each.detail for each in answer.processes if not each.serving)
    assert not answer.HasField("queue")


async def _drained(call):
    async for _ in call:
        pass


async def _status(client):
    return await client.platform.GetStatus(platform_api.GetStatusRequest())


async def test_logs_name_the_evaluation_and_the_key_id_and_hold_no_secret(client, spec, caplog):
    formatter = logs.JsonFormatter("gateway")
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(formatter.format(record))
    root = logging.getLogger()
    root.addHandler(handler)
    caplog.set_level(logging.DEBUG)
    try:
        spec.program.env["TOKEN"] = "hunter2"
        answer = await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
        spec.program.env["TOKEN"] = "hunter2\0"
        with pytest.raises(InvalidArgumentError):
            await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
    finally:
        root.removeHandler(handler)
    calls = [line for line in lines if RUN in line and '"call"' in line]
    assert answer.evaluation.name in calls[0]
    assert '"key_id":"key-0"' in calls[0]
    assert not any("hunter2" in line or USER_KEY in line for line in lines)


async def test_process_with_another_certificate_cannot_pose_as_storage(start_gateway, dial, keys, storage, store, spec):
    await storage.stop()
    storage.process = "worker"
    await storage.start()
    storage.process = "storage"
    client = dial(await start_gateway())
    with pytest.raises(UnavailableError):
        await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))
    assert store.authentications == 0


async def test_storage_that_refuses_the_gateway_is_a_fault_of_the_installation_not_of_the_caller(storage, client, spec):
    await storage.stop()
    storage.callers = frozenset({"worker"})
    await storage.start()
    with pytest.raises(InternalError):
        await client.evaluations.RunEvaluation(api.RunEvaluationRequest(spec=spec))


async def test_client_that_does_not_trust_the_authority_gets_no_connection(gateway, spec):
    channel = connect_public(f"localhost:{gateway.port}", metadata=(("authorization", f"Bearer {USER_KEY}"),))
    with pytest.raises(UnavailableError):
        await channel.unary_unary(RUN)(api.RunEvaluationRequest(spec=spec).SerializeToString())
    await channel.close()


async def test_plain_connection_is_refused(gateway):
    async with grpc.aio.insecure_channel(f"localhost:{gateway.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(RUN)(b"", timeout=3)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
