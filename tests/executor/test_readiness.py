"""An executor whose default engine fails its self-test says so everywhere, takes no work, and comes back by itself."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crucible.executor.v1 import executor_service_pb2 as ex
from crucible_executor.catalog import Catalog, OfferedEngine, checked
from crucible_executor.engines.base import Capabilities
from crucible_executor.readiness import Readiness
from crucible_rpc.channel import connect
from crucible_rpc.errors import FailedPreconditionError
from tests.executor.support import ScriptedEngine, running

pytestmark = pytest.mark.slow

SERVICE = "crucible.executor.v1.ExecutorService"


async def health(executor, service: str) -> int:
    async with connect(f"127.0.0.1:{executor.service.port}", executor.keys.tls("worker"), "executor") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def readyz(executor) -> str:
    async with asyncio.timeout(10):
        while not executor.service.admin_port:  # noqa: ASYNC110  # it listens a moment after the start
            await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", executor.service.admin_port)
    writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def about(executor):
    return (await executor.stub.GetExecutor(ex.GetExecutorRequest())).executor


async def test_a_failed_self_test_keeps_the_executor_from_serving_until_it_passes(keys, tmp_path, caplog):
    engine = ScriptedEngine(tmp_path / "starts")
    engine.broken = "the program printed nothing"
    async with running(keys, tmp_path / "state", engine) as executor:
        failed = "its self-test failed: it works: the program printed nothing"
        reason = f"the default engine scripted cannot be used: {failed}"
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        assert [await health(executor, "")] == [await health(executor, SERVICE)] == [not_serving]
        answer = await readyz(executor)
        assert answer.startswith("HTTP/1.1 503 ")
        assert reason in answer
        told = await about(executor)
        assert told.not_serving_reason == reason
        assert not told.engines[0].available
        assert any("takes no work" in record.message for record in caplog.records)
        with pytest.raises(FailedPreconditionError) as refused:
            await executor.execute()
        assert refused.value.reason == "ENGINE_NOT_AVAILABLE"
        assert engine.created == 0
        engine.broken = ""
        async with asyncio.timeout(20):
            while (await about(executor)).not_serving_reason:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.05)
        assert (await about(executor)).engines[0].available
        assert await health(executor, "") == health_pb2.HealthCheckResponse.SERVING
        assert (await readyz(executor)).startswith("HTTP/1.1 200 ")
        assert (await executor.execute()).record.termination.exited.code == 0


async def test_a_default_engine_that_does_not_exist_is_named(keys, tmp_path):
    async with running(keys, tmp_path / "state", default_engine="gvisor") as executor:
        told = await about(executor)
        assert "there is no engine 'gvisor'" in told.not_serving_reason
        assert "there is no engine 'gvisor'" in told.engines[0].unavailable_reason


async def test_another_engine_that_fails_does_not_keep_the_executor_from_serving(tmp_path):
    offers = Catalog([OfferedEngine(ScriptedEngine(tmp_path / "starts"), "")], [], "scripted")
    assert offers.not_serving == ""


async def test_another_engine_is_offered_as_soon_as_it_works_and_swept_before(tmp_path):
    default, other = ScriptedEngine(tmp_path / "starts"), Other(tmp_path / "others")
    offers = Catalog([OfferedEngine(default, ""), OfferedEngine(other, "no daemon")], [], "scripted")
    told: list[str] = []

    async def tell(why: str) -> None:
        told.append(why)

    other.broken = "no daemon"
    readiness = Readiness(offers, lambda engines: [], tell, first_pause_s=0.01)
    await readiness.begin()
    async with asyncio.timeout(20):
        while other.tests < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert "no daemon" in offers.unavailable("other")
        other.sweeping = RuntimeError("a container cannot be removed")
        while "a container cannot be removed" not in offers.unavailable("other"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        other.sweeping, other.broken = None, ""
        while offers.unavailable("other"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert offers.engine("other") is other
    assert other.swept >= 4
    await asyncio.sleep(0.05)
    assert other.tests == other.swept  # each after a sweep, and none any more once it works
    assert (default.tests, default.swept, told) == (0, 0, [""])
    await readiness.end()


async def test_an_engine_that_never_works_is_logged_once(tmp_path, caplog):
    engine = ScriptedEngine(tmp_path / "starts")
    engine.broken = "no"
    offered = await checked(engine)
    offers = Catalog([offered], [], "another")
    readiness = Readiness(offers, lambda engines: [], lambda why: asyncio.sleep(0), first_pause_s=0.01)
    await readiness.begin()
    async with asyncio.timeout(20):
        while engine.tests < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await readiness.end()
    assert len([one for one in caplog.records if one.message == "engine cannot be used"]) == 1


class Other(ScriptedEngine):
    """One beside the default engine, in which something may be left that cannot be removed."""

    sweeping: Exception | None = None

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, name="other")

    async def sweep(self) -> int:
        if self.sweeping is not None:
            raise self.sweeping
        return await super().sweep()


async def test_tries_come_at_growing_intervals_and_end_with_the_executor(tmp_path):
    engine = ScriptedEngine(tmp_path / "starts")
    engine.broken = "no"
    offers = Catalog([OfferedEngine(engine, "no")], [], "scripted")
    told: list[str] = []

    async def tell(why: str) -> None:
        told.append(why)

    readiness = Readiness(offers, lambda engines: [], tell, first_pause_s=0.05)
    began = asyncio.get_running_loop().time()
    await readiness.begin()
    async with asyncio.timeout(20):
        while engine.tests < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert asyncio.get_running_loop().time() - began >= 0.05 + 0.1 + 0.2 + 0.4
    await readiness.end()
    tests = engine.tests
    await asyncio.sleep(0.1)
    assert engine.tests == tests
    assert all(told)
