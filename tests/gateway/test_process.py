import asyncio
import os
import socket
import sys
from contextlib import suppress

import pytest

from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible.gateway.v1 import evaluation_service_pb2_grpc
from crucible_rpc.channel import connect_public
from tests.gateway.conftest import USER_KEY

PREFIX = "CRUCIBLE_GATEWAY_"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def started(environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "crucible_gateway", env=kept | environment, stderr=asyncio.subprocess.PIPE
    )


async def ended(process):
    async with asyncio.timeout(20):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


@pytest.fixture
def environment(keys, storage, monitor):
    cert, key, ca = keys.files("gateway")
    values = {
        "TLS_CERT": cert,
        "TLS_KEY": key,
        "TLS_CA": ca,
        "LISTEN": f"127.0.0.1:{free_port()}",
        "ADMIN": f"127.0.0.1:{free_port()}",
        "STORAGE": storage.address,
        "MONITOR": monitor.address,
    }
    return {PREFIX + name: str(value) for name, value in values.items()}


async def http(address, path):
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def ready(address):
    async with asyncio.timeout(20):
        while True:
            with suppress(OSError):
                if " 200 " in (await http(address, "/readyz")).split("\r\n")[0]:
                    return
            await asyncio.sleep(0.05)


async def test_serves_and_ends_cleanly_on_sigterm(environment, keys, spec):
    process = await started(environment)
    try:
        await ready(environment[PREFIX + "ADMIN"])
        address = "localhost:" + environment[PREFIX + "LISTEN"].split(":")[1]
        metadata = (("authorization", f"Bearer {USER_KEY}"),)
        async with connect_public(address, keys.ca, metadata=metadata) as channel:
            stub = evaluation_service_pb2_grpc.EvaluationServiceStub(channel)
            assert (await stub.RunEvaluation(api.RunEvaluationRequest(spec=spec))).evaluation.name
        metrics = await http(environment[PREFIX + "ADMIN"], "/metrics")
        assert 'crucible_rpc_calls_total{code="OK",method="/crucible.gateway.v1.EvaluationService/RunEv' in metrics
        process.terminate()
        code, _ = await ended(process)
        assert code == 0
    finally:
        with suppress(ProcessLookupError):
            process.kill()


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"TLS_CERT": None}, 2, "CRUCIBLE_GATEWAY_TLS_CERT"),
        ({"TLS_KEY": "/nonexistent/key"}, 1, "/nonexistent/key"),
        ({"KEY_TTL": "60s"}, 2, "key_ttl"),
        ({"PUBLIC_CERT": "/x"}, 2, "public_key"),
        ({"LISTEN": "192.0.2.1:8443"}, 1, "192.0.2.1:8443"),
    ],
)
async def test_start_that_cannot_succeed_ends_with_one_clear_line(environment, change, code, text):
    for name, value in change.items():
        environment.pop(PREFIX + name, None)
        if value is not None:
            environment[PREFIX + name] = value
    returned, stderr = await ended(await started(environment))
    last = stderr.strip().splitlines()[-1]
    assert returned == code
    assert last.startswith("crucible-gateway: ")
    assert text in last
    assert "Traceback" not in stderr
