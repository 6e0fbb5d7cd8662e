import io
import json
import logging

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from crucible_rpc import errors, identity, logs
from crucible_rpc.channel import connect, connect_public
from crucible_rpc.interceptors import PeerPermissions
from crucible_rpc.server import Server
from crucible_rpc.tls import ClientTls
from tests.rpc.conftest import REFLECTION
from tests.rpc.echo_servicer import METHODS, EchoStub, add_echo, call_each_kind, full, say, within

pytestmark = pytest.mark.slow


async def test_the_permitted_process_is_known_to_the_handler(stub, servicer):
    seen = []

    async def act(context, text):
        seen.append(identity.current())

    servicer.act = act
    await within(call_each_kind(stub, "x"))
    assert seen == [identity.Identity("worker")] * 4


async def test_a_process_without_permission_is_refused_for_all_kinds(server, dial, servicer, caplog):
    stub = EchoStub(await dial(server, "gateway"))
    for arrived in (await within(call_each_kind(stub, "x"))).values():
        assert type(arrived) is errors.PermissionDeniedError
        assert arrived.reason == "PEER_NOT_PERMITTED"
        assert "gateway may not call /test.Echo/" in arrived.message
    assert servicer.calls == []
    assert caplog.text.count("call refused") == 4


async def test_permission_is_per_method(serve, dial):
    table = {full(method): frozenset({"worker"}) for method in METHODS} | {full("Up"): frozenset({"gateway", "worker"})}
    server = await serve(authentication=PeerPermissions(table))
    answers = await within(call_each_kind(EchoStub(await dial(server, "gateway")), "x"))
    assert answers["stream-unary"] == ["x"]
    assert [type(answers.pop(kind)) for kind in ("unary-unary", "unary-stream", "stream-stream")] == [
        errors.PermissionDeniedError
    ] * 3


async def test_a_client_without_certificate_is_refused(server, servicer, resources, keys):
    credentials = grpc.ssl_channel_credentials(keys.ca.read_bytes())
    channel = grpc.aio.secure_channel(
        f"127.0.0.1:{server.port}", credentials, [("grpc.ssl_target_name_override", "storage")]
    )
    resources.push_async_callback(channel.close)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await within(EchoStub(channel).unary(say("x")))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert servicer.calls == []


async def test_a_client_of_another_authority_is_refused(server, servicer, other_keys, keys, resources):
    mixed = other_keys.client("worker")
    channel = connect(f"127.0.0.1:{server.port}", ClientTls(mixed.cert, mixed.key, keys.ca), "storage")
    resources.push_async_callback(channel.close)
    with pytest.raises(errors.UnavailableError):
        await within(EchoStub(channel).unary(say("x")))
    assert servicer.calls == []


async def test_a_server_of_another_authority_is_refused(serve, other_keys, servicer, dial):
    server = await serve(tls=other_keys.server("storage"))
    with pytest.raises(errors.UnavailableError, match="storage cannot be reached"):
        await within(EchoStub(await dial(server)).unary(say("x")))
    assert servicer.calls == []


async def test_a_server_that_shows_another_processes_certificate_is_refused(serve, keys, servicer, dial):
    server = await serve(tls=keys.server("gateway"))
    with pytest.raises(errors.UnavailableError, match="storage cannot be reached") as caught:
        await within(EchoStub(await dial(server, peer="storage")).unary(say("x")))
    assert "127.0.0.1" not in str(caught.value)
    assert servicer.calls == []
    answer = await within(EchoStub(await dial(server, peer="gateway")).unary(say("x")))
    assert answer.value == "x"


async def test_everybody_with_a_certificate_may_ask_for_health(server, dial):
    health = health_pb2_grpc.HealthStub(await dial(server, "gateway"))
    for service in ("", "test.Echo"):
        answer = await within(health.Check(health_pb2.HealthCheckRequest(service=service)))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(errors.NotFoundError):
        await within(health.Check(health_pb2.HealthCheckRequest(service="none")))


async def test_reflection_is_only_for_those_in_the_table(serve, keys, registry, servicer, dial, resources):
    server = Server(
        "storage",
        "127.0.0.1:0",
        keys.server("storage"),
        authentication=PeerPermissions({REFLECTION: frozenset({"worker"})}),
        registry=registry,
    )
    server.reflect()
    server.add(add_echo, servicer)
    await server.start()
    resources.push_async_callback(server.drain)

    async def services(process):
        stub = reflection_pb2_grpc.ServerReflectionStub(await dial(server, process))
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            names = {service.name for service in answer.list_services_response.service}
        return names

    assert await within(services("worker")) == {
        "test.Echo",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    with pytest.raises(errors.PermissionDeniedError):
        await within(services("gateway"))


async def test_a_permission_for_a_method_that_does_not_exist_stops_the_start(serve):
    with pytest.raises(ValueError, match=r"/test\.Echo/Unari"):
        await serve(authentication=PeerPermissions({"/test.Echo/Unari": frozenset({"worker"})}))


async def test_a_public_client_needs_no_certificate_and_checks_the_host_name(serve, keys, resources):
    class Everybody:
        def intercept(self, method, call):
            async def admitted(request, context):
                if dict(context.invocation_metadata()).get("authorization") != "Bearer k":
                    raise errors.UnauthenticatedError("NO_KEY", "send an API key")
                return await call(request, context)

            return admitted

    server = await serve(tls=keys.public_server("edge"), authentication=Everybody())
    for host in ("localhost", "127.0.0.1"):
        channel = connect_public(f"{host}:{server.port}", keys.ca, metadata=(("authorization", "Bearer k"),))
        resources.push_async_callback(channel.close)
        assert (await within(call_each_kind(EchoStub(channel), "x")))["stream-stream"] == ["x"]
    unknown = connect_public(f"localhost:{server.port}", keys.ca)
    resources.push_async_callback(unknown.close)
    with pytest.raises(errors.UnauthenticatedError):
        await within(EchoStub(unknown).unary(say("x")))
    internal = await serve(tls=keys.public_server("storage"), authentication=Everybody())
    missing_name = connect_public(f"127.0.0.2:{internal.port}", keys.ca)
    resources.push_async_callback(missing_name.close)
    with pytest.raises(errors.UnavailableError):
        await within(EchoStub(missing_name).unary(say("x")))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([b"spiffe://crucible/worker", b"worker"], "worker"),
        ([b"worker"], None),
        ([b"spiffe://elsewhere/worker"], None),
        ([b"spiffe://crucible/worker/x"], None),
        ([b"spiffe://crucible/worker\n"], None),
        ([b"xspiffe://crucible/worker"], None),
        ([b"spiffe://crucible/worker", b"spiffe://crucible/storage"], None),
        ([], None),
    ],
)
def test_exactly_one_id_of_the_trust_domain_counts(names, expected):
    class Context:
        def auth_context(self):
            return {"x509_subject_alternative_name": names}

    if expected:
        assert identity.peer_process(Context()) == expected
    else:
        with pytest.raises(errors.UnauthenticatedError):
            identity.peer_process(Context())


async def test_a_call_is_logged_once_with_its_caller_and_bound_fields(server, dial, servicer):
    async def act(context, text):
        logs.bind(evaluation="evaluations/1")

    servicer.act = act
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter("storage"))
    logger = logging.getLogger("crucible_rpc.interceptors")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        stub = EchoStub(await dial(server))
        await within(stub.unary(say("x"), metadata=(("x-request-id", "r-1"),)))
        servicer.act = _not_found
        with pytest.raises(errors.NotFoundError):
            await within(stub.unary(say("x"), metadata=(("x-request-id", "r-2"),)))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    good, bad = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert good.pop("ms") >= 0
    assert {key: good[key] for key in ("method", "code", "caller", "request_id", "evaluation", "process")} == {
        "method": "/test.Echo/Unary",
        "code": "OK",
        "caller": "worker",
        "request_id": "r-1",
        "evaluation": "evaluations/1",
        "process": "storage",
    }
    assert (bad["code"], bad["request_id"], "evaluation" in bad) == ("NOT_FOUND", "r-2", False)


async def _not_found(context, text):
    raise errors.NotFoundError("NONE", "none")
