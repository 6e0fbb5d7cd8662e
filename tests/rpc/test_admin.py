import asyncio

import pytest
from prometheus_client import CollectorRegistry, Counter

from crucible_rpc.admin import MAX_HEAD_BYTES, AdminServer
from crucible_rpc.errors import StartError
from tests.rpc.echo_servicer import within


@pytest.fixture
async def admin():
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    server = AdminServer("127.0.0.1:0", ready=lambda: server.is_ready, registry=registry)
    server.is_ready = True
    async with server:
        yield server


async def ask(admin, request, *, end=True):
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(request)
    if end:
        writer.write_eof()
    answer = await within(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), head.decode(), body.decode()


async def get(admin, path):
    return await ask(admin, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), end=False)


async def test_health_and_metrics_are_served(admin):
    assert (await get(admin, "/healthz"))[0] == 200
    code, head, body = await get(admin, "/metrics")
    assert code == 200
    assert "things_total 3.0" in body
    assert f"Content-Length: {len(body)}" in head


async def test_readiness_follows_its_callable(admin):
    assert (await get(admin, "/readyz"))[0] == 200
    admin.is_ready = False
    assert (await get(admin, "/readyz"))[0] == 503
    assert (await get(admin, "/healthz"))[0] == 200


async def test_what_keeps_a_process_from_its_work_is_said():
    server = AdminServer(
        "127.0.0.1:0", ready=lambda: False, why_not=lambda: "the engine failed", registry=CollectorRegistry()
    )
    async with server:
        code, _, body = await get(server, "/readyz")
    assert (code, body) == (503, "not ready: the engine failed\n")


async def test_a_readiness_that_fails_ends_the_request_only(admin):
    del admin.is_ready
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
    assert await within(reader.read()) == b""
    writer.close()
    assert (await get(admin, "/healthz"))[0] == 200


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/../metrics", "//healthz", "/debug", "http://x/healthz"])
async def test_any_other_path_is_404(admin, path):
    assert (await get(admin, path))[0] == 404


async def test_a_query_is_ignored_and_head_has_no_body(admin):
    assert (await get(admin, "/healthz?x=1"))[0] == 200
    code, head, body = await ask(admin, b"HEAD /healthz HTTP/1.1\r\n\r\n")
    assert (code, body) == (200, "")
    assert "Content-Length: 3" in head


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"POST /healthz HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n", 400),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /" + b"a" * 900_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 4000 + b"\r\n", 431),
    ],
)
async def test_what_is_not_a_small_get_is_refused(admin, request_bytes, code):
    assert (await ask(admin, request_bytes))[0] == code
    assert (await get(admin, "/healthz"))[0] == 200


async def test_a_client_that_says_nothing_is_dropped(admin, monkeypatch):
    monkeypatch.setattr("crucible_rpc.admin._TIMEOUT_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", admin.port)
    assert await within(reader.read()) == b""
    writer.close()


async def test_connections_are_bounded(admin, monkeypatch):
    monkeypatch.setattr("crucible_rpc.admin.MAX_CONNECTIONS", 2)
    idle = [await asyncio.open_connection("127.0.0.1", admin.port) for _ in range(2)]
    reader, extra = await asyncio.open_connection("127.0.0.1", admin.port)
    assert await within(reader.read()) == b""
    extra.close()
    for _, writer in idle:
        writer.close()
        await writer.wait_closed()

    async def until_free():
        while True:
            try:
                return await get(admin, "/healthz")
            except (ConnectionError, IndexError):
                await asyncio.sleep(0.01)

    assert (await within(until_free()))[0] == 200


async def test_a_taken_port_and_a_malformed_address_are_one_clear_line(admin):
    for listen in (f"127.0.0.1:{admin.port}", "nonsense", "127.0.0.1:99999", "203.0.113.7:1"):
        with pytest.raises(StartError, match="the admin port cannot listen on") as caught:
            await AdminServer(listen, ready=lambda: True).start()
        assert "\n" not in str(caught.value)
