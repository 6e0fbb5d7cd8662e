"""What it costs to store a batch: by storage alone, as the gateway calls it, and through the gateway by the client."""

import time
from collections.abc import Sequence
from datetime import timedelta

from crucible.evaluation.v1 import batch_pb2, evaluation_pb2
from crucible.storage.v1 import batch_store_service_pb2 as store
from crucible.storage.v1 import batch_store_service_pb2_grpc
from crucible_client import BatchItem, BatchState, EvaluationSpec, File, Program
from crucible_deploy.bench import processes
from crucible_deploy.bench.errors import BenchError
from crucible_deploy.bench.report import Measured, Row
from crucible_deploy.bench.stand import Stand
from crucible_deploy.layout import Layout
from crucible_rpc.channel import connect
from crucible_rpc.tls import ClientTls

PART = 200
TARGET = 2000
_TENANT = "bench"
_ENDS_WITHIN_S = 120.0


async def measure(stand: Stand) -> Measured:
    """Both rates; the items wait until all are stored, so that nothing runs beside, and are cancelled then."""
    count = stand.sizes.batch
    alone_s, cpu_ms = await _alone(stand.stack.layout, stand.stack.pid("storage"), count)
    through_s = await _through_the_gateway(stand, count)
    return Measured(tuple(rows(count, alone_s, cpu_ms, through_s)))


def rows(count: int, alone_s: float, cpu_ms: float, through_s: float) -> list[Row]:
    """The figures of `count` items."""
    rate = count / alone_s
    each = f"{count} items, {PART} in one transaction, fsync on"
    return [
        Row(
            "batch: created by storage alone",
            rate,
            "per s",
            target=f"at least {TARGET} per s",
            met=rate >= TARGET,
            note=each,
        ),
        Row("batch: CPU of storage", cpu_ms / count, "ms per item"),
        Row("batch: created through the gateway", count / through_s, "per s", rate, "storage alone", note="one client"),
    ]


async def _alone(layout: Layout, pid: int, count: int) -> tuple[float, float]:
    """Seconds and milliseconds of CPU that storage takes to store them, called as the gateway calls it.

    The messages are made before.
    """
    own = layout.pki / "gateway"
    tls = ClientTls(own / "tls.crt", own / "tls.key", own / "ca.crt")
    async with connect(layout.address("storage"), tls, "storage", timedelta(seconds=60)) as channel:
        stub = batch_store_service_pb2_grpc.BatchStoreServiceStub(channel)
        header = store.OpenBatchRequest(
            tenant=_TENANT, creator="bench", request_id=f"bench.{time.time_ns()}", start_when_complete=True
        )
        name = (await stub.OpenBatch(header)).batch.name
        parts = _parts(name, count)
        begun, cpu_ms = time.perf_counter(), processes.cpu_ms(pid)
        for part in parts:
            await stub.AddBatchItems(part)
        seconds, cpu_ms = time.perf_counter() - begun, processes.cpu_ms(pid) - cpu_ms
        batch = (await stub.CancelBatch(store.CancelBatchRequest(tenant=_TENANT, name=name, by="bench"))).batch
        if batch.items != count:
            raise BenchError(f"{count} items were sent and {batch.items} are stored")
        watch = store.WatchBatchRequest(
            tenant=_TENANT, name=name, order=batch_pb2.BATCH_ORDER_END, after_cursor=(1 << 62) - 1
        )
        async for _ in stub.WatchBatch(watch, timeout=_ENDS_WITHIN_S):
            pass
    return seconds, cpu_ms


def _parts(name: str, count: int) -> Sequence[store.AddBatchItemsRequest]:
    limits = evaluation_pb2.Limits(output_bytes=1 << 20, memory_bytes=512 << 20, cpus=1, processes=64)
    limits.wall_time.FromTimedelta(timedelta(seconds=30))
    items = []
    for number in range(count):
        file = evaluation_pb2.File(path="main.py", content=b"print(%d)\n" % number)
        program = evaluation_pb2.Program(runtime="python", files=[file], entrypoint="main.py")
        spec = evaluation_pb2.EvaluationSpec(program=program, limits=limits, engine="gvisor", labels={"suite": "bench"})
        items.append(batch_pb2.BatchItem(spec=spec))
    return [
        store.AddBatchItemsRequest(
            tenant=_TENANT, name=name, creator="bench", first_index=first, items=items[first : first + PART]
        )
        for first in range(0, count, PART)
    ]


async def _through_the_gateway(stand: Stand, count: int) -> float:
    """Seconds from the first item that the client is given to the answer that all are stored."""
    items = [_item(number) for number in range(count)]
    begun = time.perf_counter()
    batch = await stand.client.create_batch(items, start_when_complete=True)
    seconds = time.perf_counter() - begun
    await stand.client.cancel_batch(batch.name)
    async for one in stand.client.watch_batch(batch.name, after_cursor=(1 << 62) - 1):
        if getattr(one, "state", None) is BatchState.ENDED:
            break
    return seconds


def _item(number: int) -> BatchItem:
    file = File("main.py", b"print(%d)\n" % number)
    return BatchItem(EvaluationSpec(Program("python", (file,)), labels={"suite": "bench"}))
