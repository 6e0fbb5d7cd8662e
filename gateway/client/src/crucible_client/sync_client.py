"""The client for programs without an event loop: as `AsyncClient`, but each call blocks."""

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_client import (
    audit,
    calls,
    errors,
    inspections,
    public_keys,
    receipts,
    results,
    settings,
    streams,
    tenants,
)
from crucible_client.async_client import DEFAULT_RETRY_FOR
from crucible_client.retry import Patience
from crucible_client.specs import EvaluationSpec
from crucible_client.sync_batches import BatchCalls
from crucible_client.usage_samples import UsageSamples
from crucible_rpc.channel import calling
from crucible_rpc.tls import public_credentials

R = TypeVar("R")

_MAX_MESSAGE_BYTES = 64 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Client(BatchCalls):
    """Calls one Crucible; use it as `with Client.from_settings() as client:`. Safe to share between threads.

    Methods, arguments and errors are those of `AsyncClient`, without `run_many`.
    """

    def __init__(self, config: settings.ClientSettings, *, retry_for: timedelta = DEFAULT_RETRY_FOR) -> None:
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", 10_000),  # as the async client's: a lost server is noticed within 15 s
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]
        if config.address.rpartition(":")[0] in _LOOPBACK:
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.secure_channel(config.address, public_credentials(config.ca_file), options)
        self._stubs = calls.Stubs(self._channel)
        self._metadata = (("authorization", f"Bearer {config.api_key}"),)
        self._address = config.address
        self._retry_for = retry_for

    @classmethod
    def from_settings(cls, *, retry_for: timedelta = DEFAULT_RETRY_FOR, **explicit: Any) -> Self:
        """A client with the settings of `settings.load(**explicit)`."""
        return cls(settings.load(**explicit), retry_for=retry_for)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; calls under way fail."""
        self._channel.close()

    def run(
        self, spec: EvaluationSpec, *, request_id: str | None = None, within: timedelta | None = None
    ) -> results.Evaluation:
        """See `AsyncClient.run`."""
        return self._call(calls.run(spec, request_id), Patience(self._retry_for, within=within))

    def submit(self, spec: EvaluationSpec, *, request_id: str | None = None) -> results.Evaluation:
        """See `AsyncClient.submit`."""
        return self._call(calls.create(spec, request_id))

    def get(self, name: str) -> results.Evaluation:
        """See `AsyncClient.get`."""
        return self._call(calls.get(name))

    def usage_samples(self, name: str, *, attempt: int = 0) -> UsageSamples:
        """See `AsyncClient.usage_samples`."""
        return self._call(calls.usage_list(name, attempt))

    def list(
        self,
        *,
        states: Iterable[results.State] = (),
        labels: Mapping[str, str] | None = None,
        batch: str = "",
        page_size: int = calls.PAGE_SIZE,
    ) -> Iterator[results.Evaluation]:
        """See `AsyncClient.list`."""
        token, wanted = "", tuple(states)
        while True:
            page = self._call(calls.list_page(wanted, labels or {}, page_size, token, batch))
            yield from page.evaluations
            token = page.next_token
            if not token:
                return

    def cancel(self, name: str, *, reason: str = "") -> results.Evaluation:
        """See `AsyncClient.cancel`."""
        return self._call(calls.cancel(name, reason))

    def watch(self, name: str, *, after_position: int = 0, within: timedelta | None = None) -> Iterator[results.Event]:
        """See `AsyncClient.watch`; DeadlineExceededError after `within`."""
        cursor, patience = streams.WatchCursor(after_position), Patience(self._retry_for, within=within)
        while not cursor.ended:
            try:
                request = calls.watch_request(name, cursor.position)
                for message in self._messages(self._stubs.evaluations.WatchEvaluation, request, patience):
                    patience.renew()
                    event = cursor.accept(message)
                    if event is not None:
                        yield event
                if cursor.ended or cursor.resumes_at_once():
                    continue
                if cursor.stream_ended(self.get(name).state):
                    return
                raise streams.cut_off()
            except errors.CallError as error:
                self._pause(patience, error)

    def wait(self, name: str, *, within: timedelta | None = None, after_position: int = 0) -> results.Evaluation:
        """See `AsyncClient.wait`."""
        for _event in self.watch(name, within=within, after_position=after_position):
            pass
        return self.get(name)

    def stream_output(
        self, name: str, stream: results.Stream = results.Stream.STDOUT, *, offset: int = 0, attempt: int = 0
    ) -> Iterator[bytes]:
        """See `AsyncClient.stream_output`."""
        cursor, patience = streams.OutputCursor(offset), Patience(self._retry_for)
        while True:
            try:
                request = calls.output_request(name, stream, cursor.offset, attempt)
                for message in self._messages(self._stubs.evaluations.ReadOutput, request, patience):
                    patience.renew()
                    yield cursor.accept(message)
                return
            except errors.CallError as error:
                self._pause(patience, error)

    def output(
        self,
        name: str,
        stream: results.Stream = results.Stream.STDOUT,
        *,
        offset: int = 0,
        attempt: int = 0,
        max_bytes: int = streams.MAX_OUTPUT_BYTES,
    ) -> bytes:
        """See `AsyncClient.output`."""
        pieces = bytearray()
        for data in self.stream_output(name, stream, offset=offset, attempt=attempt):
            pieces += data
            if len(pieces) > max_bytes:
                raise streams.too_large(max_bytes)
        return bytes(pieces)

    def capabilities(self) -> results.Capabilities:
        """See `AsyncClient.capabilities`."""
        return self._call(calls.capabilities())

    def status(self) -> results.PlatformStatus:
        """See `AsyncClient.status`."""
        return self._call(calls.status())

    def runtimes(self) -> tuple[results.Runtime, ...]:
        """See `AsyncClient.runtimes`."""
        return self._call(calls.runtimes())

    def self_test(
        self, *, engine: str = "", service: str = ""
    ) -> Iterator[inspections.CheckResult | inspections.SelfTestSummary]:
        """See `AsyncClient.self_test`."""
        request = inspections.self_test_request(engine, service)
        for message in self._messages(self._stubs.platform.RunSelfTest, request, Patience(self._retry_for)):
            result = inspections.self_test_result(message)
            yield result
            if isinstance(result, inspections.SelfTestSummary):
                return
        raise inspections.without_summary()

    def verify_isolation(
        self, *, engine: str = "", attempts: Iterable[str] = ()
    ) -> Iterator[inspections.AttemptResult | inspections.VerificationSummary]:
        """See `AsyncClient.verify_isolation`."""
        request = inspections.verify_request(engine, attempts)
        for message in self._messages(self._stubs.platform.VerifyIsolation, request, Patience(self._retry_for)):
            result = inspections.verify_result(message)
            yield result
            if isinstance(result, inspections.VerificationSummary):
                return
        raise inspections.without_summary()

    def create_api_key(
        self, tenant: str, *, role: results.Role = results.Role.USER, description: str = ""
    ) -> results.NewApiKey:
        """See `AsyncClient.create_api_key`."""
        return self._call(calls.create_api_key(tenant, role, description))

    def list_api_keys(self) -> tuple[results.ApiKey, ...]:
        """See `AsyncClient.list_api_keys`."""
        return self._call(calls.list_api_keys())

    def revoke_api_key(self, key_id: str) -> results.ApiKey:
        """See `AsyncClient.revoke_api_key`."""
        return self._call(calls.revoke_api_key(key_id))

    def receipt(self, name: str) -> bytes:
        """See `AsyncClient.receipt`."""
        return receipts.encode(self._call(calls.receipt(name)))

    def public_keys(self) -> tuple[public_keys.PublicKey, ...]:
        """See `AsyncClient.public_keys`."""
        return self._call(calls.list_public_keys())

    def audit_records(self, *, subject: str = "", page_size: int = calls.PAGE_SIZE) -> Iterator[audit.AuditRecord]:
        """See `AsyncClient.audit_records`."""
        token = ""
        while True:
            page = self._call(calls.audit_page(subject, page_size, token))
            yield from page.records
            token = page.next_token
            if not token:
                return

    def create_tenant(self, name: str, quota: tenants.Quota | None = None) -> tenants.Tenant:
        """See `AsyncClient.create_tenant`."""
        return self._call(tenants.create_tenant(name, quota or tenants.Quota()))

    def list_tenants(self) -> tuple[tenants.Tenant, ...]:
        """See `AsyncClient.list_tenants`."""
        return self._call(tenants.list_tenants())

    def set_quota(self, name: str, quota: tenants.Quota) -> tenants.Tenant:
        """See `AsyncClient.set_quota`."""
        return self._call(tenants.set_quota(name, quota))

    def pause_queue(self, *, tenant: str = "", reason: str = "") -> tenants.QueuePause:
        """See `AsyncClient.pause_queue`."""
        return self._call(tenants.pause_queue(tenant, reason))

    def resume_queue(self, *, tenant: str = "") -> tenants.QueuePause | None:
        """See `AsyncClient.resume_queue`."""
        return self._call(tenants.resume_queue(tenant))

    def queue(self) -> tenants.Queue:
        """See `AsyncClient.queue`."""
        return self._call(tenants.queue())

    def dead_letters(self, *, tenant: str = "", retried: bool = False) -> Iterator[tenants.DeadLetter]:
        """See `AsyncClient.dead_letters`."""
        token = ""
        while True:
            page = self._call(tenants.dead_letters_page(tenant, calls.PAGE_SIZE, token, retried=retried))
            yield from page.dead_letters
            token = page.next_token
            if not token:
                return

    def verify_audit(self, *, since: SignedBytes | None = None) -> Iterator[audit.AuditFinding | audit.AuditSummary]:
        """See `AsyncClient.verify_audit`."""
        request = audit.verify_request(since)
        for message in self._messages(self._stubs.admin.VerifyAudit, request, Patience(self._retry_for)):
            found = audit.verify_result(message)
            if found is not None:
                yield found
            if isinstance(found, audit.AuditSummary):
                return
        raise audit.without_summary()

    def retry_dead_letter(self, name: str) -> tenants.Retried:
        """See `AsyncClient.retry_dead_letter`."""
        return self._call(tenants.retry_dead_letter(name))

    def delete_evaluation(self, name: str, *, reason: str = "") -> results.DeletedEvaluation:
        """See `AsyncClient.delete_evaluation`."""
        return self._call(calls.delete_evaluation(name, reason))

    def _call(self, call: calls.Call[R], patience: Patience | None = None) -> R:
        patience = patience or Patience(self._retry_for)
        longest = calls.HOLD_SECONDS if call.waits else calls.DEADLINE_SECONDS
        while True:
            try:
                with calling(self._address):
                    timeout = patience.timeout(longest)
                    method = call.method(self._stubs)
                    return call.decode(method(call.request, timeout=timeout, metadata=self._metadata))
            except errors.CallError as error:
                if not call.repeatable:
                    raise
                self._pause(patience, error, waits=call.waits)

    def _messages(self, method: Any, request: Any, patience: Patience) -> Iterator[Any]:
        call = method(request, timeout=patience.timeout(None), metadata=self._metadata)
        try:
            with calling(self._address):
                yield from call
        finally:
            call.cancel()

    def _pause(self, patience: Patience, error: errors.CallError, *, waits: bool = False) -> None:
        delay = patience.delay(error, waits=waits)
        if delay is None:
            raise error
        time.sleep(delay)
