"""Batches through a gateway over a real storage, both served over TLS."""

import asyncio
from datetime import timedelta

import grpc
import pytest

from crucible.evaluation.v1 import batch_pb2 as ev
from crucible.evaluation.v1 import evaluation_pb2
from crucible.gateway.v1 import batch_service_pb2 as api
from crucible.gateway.v1 import batch_service_pb2_grpc
from crucible.gateway.v1 import evaluation_service_pb2 as evaluations_api
from crucible.storage.v1 import batch_store_service_pb2 as store_api
from crucible.storage.v1 import batch_store_service_pb2_grpc
from crucible_gateway import batches as gateway_batches
from crucible_rpc.channel import connect
from crucible_rpc.errors import (
    AlreadyExistsError,
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.gateway import real_storage
from tests.gateway.conftest import OTHER_KEY, USER_KEY

pytestmark = pytest.mark.slow

UNKNOWN = "batches/0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture
async def world(tmp_path, resources):
    tenants = {USER_KEY: "acme", OTHER_KEY: "other"}
    return await resources.enter_async_context(real_storage.storage_with(tmp_path / "state", tenants))


@pytest.fixture
async def storage_server(world, keys, resources):
    return await resources.enter_async_context(real_storage.served(world, keys))


@pytest.fixture
async def serve(keys, storage_server, resources):
    async def start(**options):
        return await resources.enter_async_context(real_storage.gateway(storage_server, keys, **options))

    return start


@pytest.fixture
async def client(serve, dial):
    return dial(await serve())


@pytest.fixture
def batches(client):
    return stub(client)


def stub(client):
    return batch_service_pb2_grpc.BatchServiceStub(client.channel)


def item(code=b"print(1)", *, key="", after=(), **more):
    program = evaluation_pb2.Program(runtime="python", files=[evaluation_pb2.File(path="main.py", content=code)])
    return ev.BatchItem(key=key, spec=evaluation_pb2.EvaluationSpec(program=program, **more), after=after)


def header(request_id="r1", **more):
    return api.CreateBatchRequest(header=api.BatchHeader(request_id=request_id, **more))


def items(*some, first=0):
    return api.CreateBatchRequest(items=api.BatchItems(items=some, first_index=first))


def end(count=0):
    return api.CreateBatchRequest(end=api.BatchEnd(items=count))


async def create(batches, *messages):
    async def stream():
        for message in messages:
            yield message

    return await create_with(batches, stream())


async def create_with(batches, stream):
    return (await batches.CreateBatch(stream, timeout=60)).batch


async def test_a_stream_becomes_a_batch_whose_results_are_watched_to_the_end(batches, client, world):
    some = [item(b"%d" % n, key=f"k{n}") for n in range(220)]  # more than storage takes in one part
    batch = await create(batches, header(labels={"a": "b"}), items(*some[:210]), items(*some[210:]), end(220))
    assert (batch.state, batch.items, dict(batch.labels)) == (ev.BATCH_STATE_RUNNING, 220, {"a": "b"})
    assert (batch.tenant, batch.progress.queued) == ("acme", 220)
    running = asyncio.create_task(real_storage.run_all(world, 220))
    watching = batches.WatchBatch(api.WatchBatchRequest(name=batch.name, order=ev.BATCH_ORDER_ITEM))
    got = [answer async for answer in watching]
    await running
    assert [one.result.key for one in got if one.HasField("result")] == [f"k{n}" for n in range(220)]
    assert got[-1].progress.progress.succeeded == 220
    page = await client.evaluations.ListEvaluations(
        evaluations_api.ListEvaluationsRequest(batch=batch.name, page_size=2)
    )
    assert [one.batch for one in page.evaluations] == [batch.name] * 2
    filled = page.evaluations[0].spec
    assert (filled.engine, filled.limits.memory_bytes) == ("gvisor", 512 << 20)


async def test_a_stream_that_breaks_is_gone_on_with(batches, world, dial, serve):
    some = [item(b"%d" % n) for n in range(30)]
    sent = asyncio.Event()

    async def broken():
        yield header()
        yield items(*some[:10])
        yield items(*some[10:20])
        sent.set()
        await asyncio.Event().wait()

    call = batches.CreateBatch(broken())
    await asyncio.wait_for(sent.wait(), 10)
    stored = 0
    while stored < 20:
        stored = sum(one.items for one in (await batches.ListBatches(api.ListBatchesRequest())).batches)
        await asyncio.sleep(0.01)
    call.cancel()
    [seen] = (await batches.ListBatches(api.ListBatchesRequest())).batches
    assert (seen.state, seen.items) == (ev.BATCH_STATE_OPEN, 20), "a broken stream is no end of the batch"
    elsewhere = stub(dial(await serve()))  # another gateway
    done = await create(elsewhere, header(), items(*some[:15]), items(*some[15:]), end(30))
    assert (done.name, done.state, done.items) == (seen.name, ev.BATCH_STATE_RUNNING, 30)


async def test_a_stream_without_end_leaves_the_batch_open(batches):
    batch = await create(batches, header(), items(item()))
    assert (batch.state, batch.items) == (ev.BATCH_STATE_OPEN, 1)
    batch = await create(batches, header(), items(item(b"2"), first=1), end())
    assert (batch.state, batch.items) == (ev.BATCH_STATE_RUNNING, 2)


async def test_streams_without_a_request_id_are_different_batches(batches):
    names = {(await create(batches, header(""), items(item()), end())).name for _ in range(2)}
    assert len(names) == 2


WRONG_ITEMS = [
    ([item(), item(limits=evaluation_pb2.Limits(memory_bytes=1))], "items[1].spec.limits.memory_bytes"),
    ([item(), item(limits=evaluation_pb2.Limits(memory_bytes=1 << 50))], "items[1].spec.limits.memory_bytes"),
    ([item(), ev.BatchItem()], "items[1].spec.program.runtime"),
    ([item(key="7")], "items[0].key"),
    ([item(key="a b")], "items[0].key"),
    ([item(key="a" * 129)], "items[0].key"),
    ([item(key="a"), item(after=["b"])], "items[1].after[0]"),
    ([item(key="a"), item(after=["a"] * 65)], "items[1].after"),
    ([ev.BatchItem(spec=item().spec, on_failure=9)], "items[0].on_failure"),
    ([item()] * 1001, "items"),
]


async def test_a_wrong_item_is_named_and_nothing_of_its_message_is_stored(batches):
    for some, field in WRONG_ITEMS:
        with pytest.raises(InvalidArgumentError) as caught:
            await create(batches, header(), items(*some), end())
        assert caught.value.reason == "INVALID_FIELD"
        assert caught.value.violations[0].field == field
        [batch] = (await batches.ListBatches(api.ListBatchesRequest())).batches
        assert (caught.value.metadata["batch"], batch.items) == (batch.name, 0)


async def test_numbers_in_errors_are_those_of_the_batch(batches):
    with pytest.raises(InvalidArgumentError) as caught:
        await create(batches, header(), items(item(), item()), items(item(), item(priority=101, key="bad")))
    assert caught.value.violations[0].field == "items[3].spec.priority"
    assert caught.value.metadata["key"] == "bad"
    with pytest.raises(FailedPreconditionError) as refused:
        await create(batches, header("r2"), items(item(), item(engine="none")))
    assert refused.value.metadata["field"] == "items[1].spec.engine"


WRONG_STREAMS = [
    ([], "header"),
    ([items(item())], "header"),
    ([header("no spaces")], "header.request_id"),
    ([header(labels={"A": "b"})], "header.labels['A']"),
    ([header(), header()], "items"),
    ([header(), api.CreateBatchRequest()], "items"),
    ([header(), items(item(), first=-1)], "items.first_index"),
    ([header(), end(-1)], "end.items"),
    ([header(), end(), items(item())], "end"),
]


async def test_a_stream_in_another_order_is_refused(batches):
    for messages, field in WRONG_STREAMS:
        with pytest.raises(InvalidArgumentError) as caught:
            await create(batches, *messages)
        assert caught.value.violations[0].field == field


async def test_what_storage_says_of_items_passes(batches):
    batch = await create(batches, header(), items(item(key="a")))
    with pytest.raises(AlreadyExistsError) as caught:
        await create(batches, header(), items(item(b"other", key="a")))
    assert caught.value.metadata["evaluation"].startswith("evaluations/")
    assert caught.value.metadata["batch"] == batch.name
    with pytest.raises(OutOfRangeError):
        await create(batches, header(), items(item(), first=5))
    with pytest.raises(OutOfRangeError):
        await create(batches, header(), end(2))


async def test_a_stream_that_brings_nothing_is_ended(serve, dial):
    batches = stub(dial(await serve(watcher_patience=timedelta(seconds=0.2))))

    async def silent():
        yield header()
        await asyncio.Event().wait()

    with pytest.raises(UnavailableError) as caught:
        await batches.CreateBatch(silent(), timeout=10)
    assert caught.value.reason == "STREAM_STALLED"


async def test_a_gateway_that_stops_ends_streams_and_watches(serve, dial):
    server = await serve()
    batches = stub(dial(server))
    watched = await create(batches, header(), items(item()), end())
    watching = batches.WatchBatch(api.WatchBatchRequest(name=watched.name))
    assert (await watching.read()).progress.items == 1

    async def endless():
        yield header("r2")
        await asyncio.Event().wait()

    streaming = asyncio.ensure_future(create_with(batches, endless()))
    while len((await batches.ListBatches(api.ListBatchesRequest())).batches) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await server.drain(timedelta(seconds=5))
    for call in (streaming, watching.read()):
        with pytest.raises(UnavailableError) as caught:
            await call
        assert caught.value.reason == "SHUTTING_DOWN"


async def test_another_tenants_batch_is_not_there(batches, dial, serve):
    batch = await create(batches, header(), items(item()), end())
    other = stub(dial(await serve(), OTHER_KEY))
    assert not (await other.ListBatches(api.ListBatchesRequest())).batches
    for call in (
        other.GetBatch(api.GetBatchRequest(name=batch.name)),
        other.CancelBatch(api.CancelBatchRequest(name=batch.name)),
        batches.GetBatch(api.GetBatchRequest(name=UNKNOWN)),
        other.WatchBatch(api.WatchBatchRequest(name=batch.name)).read(),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert caught.value.reason == "BATCH_NOT_FOUND"
    mine = await create(other, header(), items(item(b"mine")), end())
    assert mine.name != batch.name, "request ids are a tenant's own"


async def test_without_a_key_nothing_is_answered(serve, dial):
    batches = stub(dial(await serve(), key=None))

    async def stream():
        yield header()

    for call in (
        batches.CreateBatch(stream()),
        batches.GetBatch(api.GetBatchRequest(name=UNKNOWN)),
        batches.ListBatches(api.ListBatchesRequest()),
        batches.CancelBatch(api.CancelBatchRequest(name=UNKNOWN)),
        batches.WatchBatch(api.WatchBatchRequest(name=UNKNOWN)).read(),
    ):
        with pytest.raises(UnauthenticatedError):
            await call


async def test_only_the_gateway_reaches_the_store_of_batches(keys, storage_server, resources):
    channel = connect(f"127.0.0.1:{storage_server.port}", keys.client("worker"), "storage")
    resources.push_async_callback(channel.close)
    worker = batch_store_service_pb2_grpc.BatchStoreServiceStub(channel)
    with pytest.raises(PermissionDeniedError):
        await worker.GetBatch(store_api.GetBatchRequest(tenant="acme", name=UNKNOWN))


MALFORMED = [
    (lambda b: b.GetBatch(api.GetBatchRequest(name="evaluations/x")), "name"),
    (lambda b: b.CancelBatch(api.CancelBatchRequest(name=UNKNOWN, reason="x" * 257)), "reason"),
    (lambda b: b.ListBatches(api.ListBatchesRequest(page_size=1001)), "page_size"),
    (lambda b: b.ListBatches(api.ListBatchesRequest(page_token="forged")), "page_token"),
    (lambda b: b.WatchBatch(api.WatchBatchRequest(name=UNKNOWN, order=7)).read(), "order"),
    (lambda b: b.WatchBatch(api.WatchBatchRequest(name=UNKNOWN, after_cursor=-1)).read(), "after_cursor"),
]


async def test_malformed_requests_are_refused(batches):
    for call, field in MALFORMED:
        with pytest.raises(InvalidArgumentError) as caught:
            await call(batches)
        assert caught.value.violations[0].field == field


async def test_a_filter_by_something_that_is_no_batch_is_refused(client):
    with pytest.raises(InvalidArgumentError) as caught:
        await client.evaluations.ListEvaluations(evaluations_api.ListEvaluationsRequest(batch="x"))
    assert caught.value.violations[0].field == "batch"


async def test_cancel_ends_all_and_a_watch_tells_so(batches):
    batch = await create(batches, header(), items(*(item(b"%d" % n) for n in range(5))))
    cancelled = (await batches.CancelBatch(api.CancelBatchRequest(name=batch.name, reason="enough"))).batch
    assert cancelled.cancel_reason == "enough"
    got = [answer async for answer in batches.WatchBatch(api.WatchBatchRequest(name=batch.name))]
    assert got[-1].progress.state == ev.BATCH_STATE_ENDED
    assert got[-1].progress.progress.cancelled == 5
    assert len([one for one in got if one.HasField("result")]) == 5


def test_parts_are_bounded_by_items_and_bytes():
    big = item(b"x" * (1 << 20))
    sizes = [(first, len(part)) for first, part in gateway_batches._parts(7, [big] * 3)]
    assert sizes == [(7, 1), (8, 1), (9, 1)]
    assert [(first, len(part)) for first, part in gateway_batches._parts(0, [item()] * 401)] == [
        (0, 200),
        (200, 200),
        (400, 1),
    ]


async def test_a_message_that_is_no_message_is_the_callers_fault(client):
    call = client.channel.stream_unary("/crucible.gateway.v1.BatchService/CreateBatch")

    async def garbage():
        yield b"\xff\xff"

    with pytest.raises(CallError) as caught:
        await call(garbage())
    assert caught.value.reason == "MALFORMED_MESSAGE"
    assert isinstance(caught.value.__cause__, grpc.RpcError)
