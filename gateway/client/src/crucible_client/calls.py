"""Every unary call of the API as a value, made here once for both clients."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from crucible.audit.v1.audit_pb2 import Receipt
from crucible.evaluation.v1 import evaluation_pb2
from crucible.gateway.v1 import admin_service_pb2 as admin
from crucible.gateway.v1 import admin_service_pb2_grpc as admin_grpc
from crucible.gateway.v1 import artifact_service_pb2 as artifacts
from crucible.gateway.v1 import artifact_service_pb2_grpc as artifacts_grpc
from crucible.gateway.v1 import batch_service_pb2_grpc as batches_grpc
from crucible.gateway.v1 import evaluation_service_pb2 as evaluations
from crucible.gateway.v1 import evaluation_service_pb2_grpc as evaluations_grpc
from crucible.gateway.v1 import platform_service_pb2 as platform
from crucible.gateway.v1 import platform_service_pb2_grpc as platform_grpc
from crucible_client import audit, convert, public_keys, results, usage_samples
from crucible_client.specs import EvaluationSpec

R = TypeVar("R")

DEADLINE_SECONDS = 30.0
# `RunEvaluation` is held for as long as the evaluation takes: it is called again after this long.
HOLD_SECONDS = 300.0
PAGE_SIZE = 100


class Stubs:
    """The stubs of one channel, of `grpc` or of `grpc.aio`."""

    def __init__(self, channel: Any) -> None:
        self.evaluations: Any = evaluations_grpc.EvaluationServiceStub(channel)
        self.artifacts: Any = artifacts_grpc.ArtifactServiceStub(channel)
        self.batches: Any = batches_grpc.BatchServiceStub(channel)
        self.platform: Any = platform_grpc.PlatformServiceStub(channel)
        self.admin: Any = admin_grpc.AdminServiceStub(channel)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One unary call.

    Attributes:
        method: picks it from the stubs.
        request: its message.
        decode: makes the answer's plain value.
        repeatable: whether a second call does no harm.
        waits: whether it is held until something happens, so that its deadline is no failure.
    """

    method: Callable[[Stubs], Any]
    request: Any
    decode: Callable[[Any], R]
    repeatable: bool = True
    waits: bool = False


@dataclass(frozen=True, slots=True)
class AuditPage:
    """One page of the audit log; `next_token` is empty on the last."""

    records: tuple[audit.AuditRecord, ...]
    next_token: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `next_token` is empty on the last."""

    evaluations: tuple[results.Evaluation, ...]
    next_token: str


def new_request_id() -> str:
    """An id that no other call has: it makes a creation repeatable."""
    return secrets.token_hex(16)


def create(spec: EvaluationSpec, request_id: str | None) -> Call[results.Evaluation]:
    """`CreateEvaluation`."""
    request = evaluations.CreateEvaluationRequest(
        request_id=request_id or new_request_id(), spec=convert.spec_message(spec)
    )
    return Call(lambda stubs: stubs.evaluations.CreateEvaluation, request, _evaluation)


def run(spec: EvaluationSpec, request_id: str | None) -> Call[results.Evaluation]:
    """`RunEvaluation`."""
    request = evaluations.RunEvaluationRequest(
        request_id=request_id or new_request_id(), spec=convert.spec_message(spec)
    )
    return Call(lambda stubs: stubs.evaluations.RunEvaluation, request, _evaluation, waits=True)


def get(name: str) -> Call[results.Evaluation]:
    """`GetEvaluation`."""
    request = evaluations.GetEvaluationRequest(name=full_name(name))
    return Call(lambda stubs: stubs.evaluations.GetEvaluation, request, _evaluation)


def usage_list(name: str, attempt: int) -> Call[usage_samples.UsageSamples]:
    """`ListUsageSamples`."""
    request = evaluations.ListUsageSamplesRequest(name=full_name(name), attempt=attempt)
    return Call(lambda stubs: stubs.evaluations.ListUsageSamples, request, usage_samples.decoded)


def cancel(name: str, reason: str) -> Call[results.Evaluation]:
    """`CancelEvaluation`."""
    request = evaluations.CancelEvaluationRequest(name=full_name(name), reason=reason)
    return Call(lambda stubs: stubs.evaluations.CancelEvaluation, request, _evaluation)


def list_page(
    states: Iterable[results.State], labels: Mapping[str, str], page_size: int, page_token: str, batch: str = ""
) -> Call[Page]:
    """`ListEvaluations`."""
    request = evaluations.ListEvaluationsRequest(
        page_size=page_size,
        page_token=page_token,
        states=[convert.state_number(state) for state in states],
        labels=dict(labels),
        batch=batch if not batch or "/" in batch else f"batches/{batch}",
    )
    return Call(
        lambda stubs: stubs.evaluations.ListEvaluations,
        request,
        lambda answer: Page(
            tuple(convert.evaluation(message) for message in answer.evaluations), answer.next_page_token
        ),
    )


def capabilities() -> Call[results.Capabilities]:
    """`GetCapabilities`."""
    request = platform.GetCapabilitiesRequest()
    return Call(lambda stubs: stubs.platform.GetCapabilities, request, convert.capabilities)


def status() -> Call[results.PlatformStatus]:
    """`GetStatus`."""
    return Call(lambda stubs: stubs.platform.GetStatus, platform.GetStatusRequest(), convert.platform_status)


def runtimes() -> Call[tuple[results.Runtime, ...]]:
    """`ListRuntimes`."""
    return Call(
        lambda stubs: stubs.platform.ListRuntimes,
        platform.ListRuntimesRequest(),
        lambda answer: tuple(convert.runtime(message) for message in answer.runtimes),
    )


def create_api_key(tenant: str, role: results.Role, description: str) -> Call[results.NewApiKey]:
    """`CreateApiKey`; not repeated, as a second call would make a second key."""
    request = admin.CreateApiKeyRequest(
        tenant=tenant, role=admin.Role.Value(f"ROLE_{role.value}"), description=description
    )
    return Call(
        lambda stubs: stubs.admin.CreateApiKey,
        request,
        lambda answer: results.NewApiKey(convert.api_key(answer.api_key), answer.secret),
        repeatable=False,
    )


def list_api_keys() -> Call[tuple[results.ApiKey, ...]]:
    """`ListApiKeys`."""
    return Call(
        lambda stubs: stubs.admin.ListApiKeys,
        admin.ListApiKeysRequest(),
        lambda answer: tuple(convert.api_key(message) for message in answer.api_keys),
    )


def revoke_api_key(key_id: str) -> Call[results.ApiKey]:
    """`RevokeApiKey`."""
    return Call(
        lambda stubs: stubs.admin.RevokeApiKey,
        admin.RevokeApiKeyRequest(id=key_id),
        lambda answer: convert.api_key(answer.api_key),
    )


def receipt(name: str) -> Call[Receipt]:
    """`GetReceipt`."""
    request = evaluations.GetReceiptRequest(name=full_name(name))
    return Call(lambda stubs: stubs.evaluations.GetReceipt, request, lambda answer: answer.receipt)


def list_public_keys() -> Call[tuple[public_keys.PublicKey, ...]]:
    """`ListPublicKeys`."""
    return Call(
        lambda stubs: stubs.platform.ListPublicKeys,
        platform.ListPublicKeysRequest(),
        lambda answer: public_keys.decode(answer.public_keys),
    )


def audit_page(subject: str, page_size: int, page_token: str) -> Call[AuditPage]:
    """`ListAuditRecords`."""
    request = admin.ListAuditRecordsRequest(subject=subject, page_size=page_size, page_token=page_token)
    return Call(
        lambda stubs: stubs.admin.ListAuditRecords,
        request,
        lambda answer: AuditPage(tuple(audit.record(one) for one in answer.records), answer.next_page_token),
    )


def delete_evaluation(name: str, reason: str) -> Call[results.DeletedEvaluation]:
    """`DeleteEvaluation`."""
    request = admin.DeleteEvaluationRequest(name=full_name(name), reason=reason)
    return Call(
        lambda stubs: stubs.admin.DeleteEvaluation, request, lambda answer: convert.deleted(request.name, answer)
    )


def list_artifacts(name: str) -> Call[results.Artifacts]:
    """`ListArtifacts`."""
    return Call(
        lambda stubs: stubs.artifacts.ListArtifacts,
        artifacts.ListArtifactsRequest(evaluation=full_name(name)),
        convert.artifacts,
    )


def artifact_request(name: str, path: str, offset: int, limit: int) -> artifacts.ReadArtifactRequest:
    """What `ReadArtifact` takes."""
    return artifacts.ReadArtifactRequest(evaluation=full_name(name), path=path, offset=offset, limit=limit)


def watch_request(name: str, after_position: int) -> evaluations.WatchEvaluationRequest:
    """What `WatchEvaluation` takes."""
    return evaluations.WatchEvaluationRequest(name=full_name(name), after_position=after_position)


def output_request(name: str, stream: results.Stream, offset: int, attempt: int) -> evaluations.ReadOutputRequest:
    """What `ReadOutput` takes."""
    number = evaluation_pb2.OutputStream.Name(stream.value)  # type: ignore[arg-type]  # the enum's numbers are the contract's
    return evaluations.ReadOutputRequest(name=full_name(name), stream=number, offset=offset, attempt=attempt)  # type: ignore[arg-type]


def full_name(name: str) -> str:
    """`evaluations/{uuid}`, also of a bare uuid."""
    return name if "/" in name else f"evaluations/{name}"


def _evaluation(answer: Any) -> results.Evaluation:
    return convert.evaluation(answer.evaluation)
