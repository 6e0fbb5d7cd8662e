"""The client for `asyncio` programs."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from crucible.evaluation.v1.signed_pb2 import SignedBytes
from crucible_client import (
    audit,
    calls,
    errors,
    inspections,
    many,
    public_keys,
    receipts,
    results,
    settings,
    streams,
    tenants,
)
from crucible_client.async_batches import AsyncBatchCalls
from crucible_client.retry import Patience
from crucible_client.specs import EvaluationSpec
from crucible_client.usage_samples import UsageSamples
from crucible_rpc.channel import connect_public

R = TypeVar("R")

DEFAULT_RETRY_FOR = timedelta(seconds=30)


class AsyncClient(AsyncBatchCalls):
    """Calls one Crucible; use it as `async with AsyncClient.from_settings() as client:`.

    Every method raises a `CallError` of `crucible_client.errors` when the call fails. How a program ended is never an
    exception: see `Evaluation.termination`. Names are `evaluations/{uuid}` or the uuid alone.

    Args:
        config: which Crucible, and the key.
        retry_for: how long a call that finds the server away or its queue full is repeated; 0: not at all.
    """

    def __init__(self, config: settings.ClientSettings, *, retry_for: timedelta = DEFAULT_RETRY_FOR) -> None:
        self._channel = connect_public(
            config.address, config.ca_file, metadata=(("authorization", f"Bearer {config.api_key}"),)
        )
        self._stubs = calls.Stubs(self._channel)
        self._retry_for = retry_for

    @classmethod
    def from_settings(cls, *, retry_for: timedelta = DEFAULT_RETRY_FOR, **explicit: Any) -> Self:
        """A client with the settings of `settings.load(**explicit)`."""
        return cls(settings.load(**explicit), retry_for=retry_for)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; calls under way fail."""
        await self._channel.close()

    async def run(
        self,
        spec: EvaluationSpec,
        *,
        request_id: str | None = None,
        within: timedelta | None = None,
        retry_for: timedelta | None = None,
    ) -> results.Evaluation:
        """Creates an evaluation and waits until it is terminal.

        Args:
            spec: what to run.
            request_id: makes the call repeatable; None makes one, so that retries inside this call are safe.
            within: how long to wait; None: for ever. DeadlineExceededError then; the evaluation goes on.
            retry_for: instead of the client's.
        """
        patience = Patience(self._retry_for if retry_for is None else retry_for, within=within)
        return await self._call(calls.run(spec, request_id), patience)

    async def submit(
        self, spec: EvaluationSpec, *, request_id: str | None = None, retry_for: timedelta | None = None
    ) -> results.Evaluation:
        """Creates an evaluation and returns it, queued; see `run` for the arguments."""
        patience = Patience(self._retry_for if retry_for is None else retry_for)
        return await self._call(calls.create(spec, request_id), patience)

    async def get(self, name: str) -> results.Evaluation:
        """The evaluation as it is now."""
        return await self._call(calls.get(name))

    async def usage_samples(self, name: str, *, attempt: int = 0) -> UsageSamples:
        """What an attempt (0: the latest) used over time, as far as it is stored now."""
        return await self._call(calls.usage_list(name, attempt))

    async def list(
        self,
        *,
        states: Iterable[results.State] = (),
        labels: Mapping[str, str] | None = None,
        batch: str = "",
        page_size: int = calls.PAGE_SIZE,
    ) -> AsyncGenerator[results.Evaluation, None]:
        """This tenant's evaluations, newest first, without programs' contents; fetches pages as they are needed.

        Args:
            states: only those in one of these; empty: all.
            labels: only those with all of these.
            batch: only items of this one; empty: all.
            page_size: how many one call brings, at most 1000.
        """
        token, wanted = "", tuple(states)
        while True:
            page = await self._call(calls.list_page(wanted, labels or {}, page_size, token, batch))
            for evaluation in page.evaluations:
                yield evaluation
            token = page.next_token
            if not token:
                return

    async def cancel(self, name: str, *, reason: str = "") -> results.Evaluation:
        """Records the wish to end an evaluation; it has ended only when `wait` says so."""
        return await self._call(calls.cancel(name, reason))

    async def watch(self, name: str, *, after_position: int = 0) -> AsyncGenerator[results.Event, None]:
        """The evaluation's events, past ones first, until that of its terminal state.

        Goes on by position when the server is away for less than `retry_for`, or when this reader was too slow:
        nothing is lost and nothing comes twice.
        """
        cursor, patience = streams.WatchCursor(after_position), Patience(self._retry_for)
        while not cursor.ended:
            try:
                request = calls.watch_request(name, cursor.position)
                async with aclosing(streams.messages(self._stubs.evaluations.WatchEvaluation(request))) as messages:
                    async for message in messages:
                        patience.renew()
                        event = cursor.accept(message)
                        if event is not None:
                            yield event
                if cursor.ended or cursor.resumes_at_once():
                    continue
                if cursor.stream_ended((await self.get(name)).state):
                    return
                raise streams.cut_off()
            except errors.CallError as error:
                await self._pause(patience, error)

    async def wait(self, name: str, *, within: timedelta | None = None, after_position: int = 0) -> results.Evaluation:
        """Waits until the evaluation is terminal, and returns it.

        Args:
            name: the evaluation.
            within: how long; None: for ever.
            after_position: of the last event that is known, so that those before it are not read again.

        Raises:
            DeadlineExceededError: `within` passed; the evaluation goes on.
        """
        try:
            async with asyncio.timeout(None if within is None else within.total_seconds()):
                async with aclosing(self.watch(name, after_position=after_position)) as events:
                    async for _event in events:
                        pass
                return await self.get(name)
        except TimeoutError:
            raise errors.DeadlineExceededError("DEADLINE_EXCEEDED", f"{name} is not terminal yet") from None

    async def stream_output(
        self, name: str, stream: results.Stream = results.Stream.STDOUT, *, offset: int = 0, attempt: int = 0
    ) -> AsyncGenerator[bytes, None]:
        """The kept bytes of one output stream from `offset`, as far as they are stored now, in pieces.

        Args:
            name: the evaluation.
            stream: which output stream.
            offset: of the first byte.
            attempt: which attempt, from 1; 0: the latest.
        """
        cursor, patience = streams.OutputCursor(offset), Patience(self._retry_for)
        while True:
            try:
                request = calls.output_request(name, stream, cursor.offset, attempt)
                async with aclosing(streams.messages(self._stubs.evaluations.ReadOutput(request))) as messages:
                    async for message in messages:
                        patience.renew()
                        yield cursor.accept(message)
                return
            except errors.CallError as error:
                await self._pause(patience, error)

    async def output(
        self,
        name: str,
        stream: results.Stream = results.Stream.STDOUT,
        *,
        offset: int = 0,
        attempt: int = 0,
        max_bytes: int = streams.MAX_OUTPUT_BYTES,
    ) -> bytes:
        """As `stream_output`, whole; ResourceExhaustedError when there are more than `max_bytes`."""
        pieces = bytearray()
        async with aclosing(self.stream_output(name, stream, offset=offset, attempt=attempt)) as chunks:
            async for data in chunks:
                pieces += data
                if len(pieces) > max_bytes:
                    raise streams.too_large(max_bytes)
        return bytes(pieces)

    def run_many(
        self,
        specs: Iterable[EvaluationSpec],
        *,
        concurrency: int,
        retry_for: timedelta = many.DEFAULT_RETRY_FOR,
    ) -> AsyncGenerator[many.Outcome, None]:
        """Runs all `specs`, at most `concurrency` at once; yields each outcome as it comes. See `many.run_many`."""
        return many.run_many(self, specs, concurrency=concurrency, retry_for=retry_for)

    async def capabilities(self) -> results.Capabilities:
        """Engines, limits and bounds."""
        return await self._call(calls.capabilities())

    async def status(self) -> results.PlatformStatus:
        """Whether each process answers, and how much work there is."""
        return await self._call(calls.status())

    async def runtimes(self) -> tuple[results.Runtime, ...]:
        """Every runtime, with why it cannot be used where no executor can."""
        return await self._call(calls.runtimes())

    async def self_test(
        self, *, engine: str = "", service: str = ""
    ) -> AsyncGenerator[inspections.CheckResult | inspections.SelfTestSummary, None]:
        """Has an executor check its own parts: each result as it comes, then the summary.

        Ends with the loop over it. Never repeated: what came before an error is true, and there is no summary then.

        Args:
            engine: the engine to look at beside the executor's other parts; empty: all that can be used.
            service: whose parts, as `executor`; empty: all.
        """
        request = inspections.self_test_request(engine, service)
        async with aclosing(streams.messages(self._stubs.platform.RunSelfTest(request))) as messages:
            async for message in messages:
                result = inspections.self_test_result(message)
                yield result
                if isinstance(result, inspections.SelfTestSummary):
                    return
        raise inspections.without_summary()

    async def verify_isolation(
        self, *, engine: str = "", attempts: Iterable[str] = ()
    ) -> AsyncGenerator[inspections.AttemptResult | inspections.VerificationSummary, None]:
        """Runs the attack suite over an engine: each verdict as it comes, then the summary; administrators only.

        Takes about a minute, one at a time per executor. Ends with the loop over it. Never repeated.

        Args:
            engine: which; empty: the default one.
            attempts: only those with these names; empty: all.
        """
        request = inspections.verify_request(engine, attempts)
        async with aclosing(streams.messages(self._stubs.platform.VerifyIsolation(request))) as messages:
            async for message in messages:
                result = inspections.verify_result(message)
                yield result
                if isinstance(result, inspections.VerificationSummary):
                    return
        raise inspections.without_summary()

    async def create_api_key(
        self, tenant: str, *, role: results.Role = results.Role.USER, description: str = ""
    ) -> results.NewApiKey:
        """Makes a key; administrators only. Never repeated: when the answer is lost, look at `list_api_keys`."""
        return await self._call(calls.create_api_key(tenant, role, description))

    async def list_api_keys(self) -> tuple[results.ApiKey, ...]:
        """All keys without secrets, oldest first; administrators only."""
        return await self._call(calls.list_api_keys())

    async def revoke_api_key(self, key_id: str) -> results.ApiKey:
        """Refuses the key from now on; administrators only."""
        return await self._call(calls.revoke_api_key(key_id))

    async def receipt(self, name: str) -> bytes:
        """The receipt of a finished evaluation, as a file; see `receipts.verify`."""
        return receipts.encode(await self._call(calls.receipt(name)))

    async def public_keys(self) -> tuple[public_keys.PublicKey, ...]:
        """What receipts and heads can be checked with, as the server says; PublicKeysError when it lies."""
        return await self._call(calls.list_public_keys())

    async def audit_records(
        self, *, subject: str = "", page_size: int = calls.PAGE_SIZE
    ) -> AsyncGenerator[audit.AuditRecord, None]:
        """The audit log, newest first; administrators only.

        Args:
            subject: only records of this one, as `evaluations/{uuid}`; empty: all.
            page_size: how many one call brings, at most 1000.
        """
        token = ""
        while True:
            page = await self._call(calls.audit_page(subject, page_size, token))
            for record in page.records:
                yield record
            token = page.next_token
            if not token:
                return

    async def create_tenant(self, name: str, quota: tenants.Quota | None = None) -> tenants.Tenant:
        """Makes a tenant; administrators only. Not needed for one without quotas."""
        return await self._call(tenants.create_tenant(name, quota or tenants.Quota()))

    async def list_tenants(self) -> tuple[tenants.Tenant, ...]:
        """All tenants, by name, with quotas and use; administrators only."""
        return await self._call(tenants.list_tenants())

    async def set_quota(self, name: str, quota: tenants.Quota) -> tenants.Tenant:
        """Changes what of the quota is not None; administrators only."""
        return await self._call(tenants.set_quota(name, quota))

    async def pause_queue(self, *, tenant: str = "", reason: str = "") -> tenants.QueuePause:
        """Gives no more work to executors, everybody's or one tenant's, until `resume_queue`; administrators only."""
        return await self._call(tenants.pause_queue(tenant, reason))

    async def resume_queue(self, *, tenant: str = "") -> tenants.QueuePause | None:
        """Ends a pause; None when there was none; administrators only."""
        return await self._call(tenants.resume_queue(tenant))

    async def queue(self) -> tenants.Queue:
        """How much waits and runs, by tenant, and what is paused; administrators only."""
        return await self._call(tenants.queue())

    async def dead_letters(
        self, *, tenant: str = "", retried: bool = False
    ) -> AsyncGenerator[tenants.DeadLetter, None]:
        """Evaluations that ended as infrastructure failures, the newest end first; administrators only.

        Args:
            tenant: whose; empty: everybody's.
            retried: those that were retried as well.
        """
        token = ""
        while True:
            page = await self._call(tenants.dead_letters_page(tenant, calls.PAGE_SIZE, token, retried=retried))
            for letter in page.dead_letters:
                yield letter
            token = page.next_token
            if not token:
                return

    async def verify_audit(
        self, *, since: SignedBytes | None = None
    ) -> AsyncGenerator[audit.AuditFinding | audit.AuditSummary, None]:
        """Has storage check the whole audit log: what is wrong as it is found, then the summary; administrators only.

        Never repeated. Whether the log begins with `since` is proved by the summary: see `audit.check_history`.

        Args:
            since: an earlier head.
        """
        request = audit.verify_request(since)
        async with aclosing(streams.messages(self._stubs.admin.VerifyAudit(request))) as messages:
            async for message in messages:
                found = audit.verify_result(message)
                if found is not None:
                    yield found
                if isinstance(found, audit.AuditSummary):
                    return
        raise audit.without_summary()

    async def retry_dead_letter(self, name: str) -> tenants.Retried:
        """Makes a new evaluation of a dead letter, once however often it is called; administrators only."""
        return await self._call(tenants.retry_dead_letter(name))

    async def delete_evaluation(self, name: str, *, reason: str = "") -> results.DeletedEvaluation:
        """Deletes an evaluation of any tenant that has ended, for good; administrators only."""
        return await self._call(calls.delete_evaluation(name, reason))

    async def _call(self, call: calls.Call[R], patience: Patience | None = None) -> R:
        patience = patience or Patience(self._retry_for)
        longest = calls.HOLD_SECONDS if call.waits else calls.DEADLINE_SECONDS
        while True:
            try:
                return call.decode(await call.method(self._stubs)(call.request, timeout=patience.timeout(longest)))
            except errors.CallError as error:
                if not call.repeatable:
                    raise
                await self._pause(patience, error, waits=call.waits)

    async def _pause(self, patience: Patience, error: errors.CallError, *, waits: bool = False) -> None:
        delay = patience.delay(error, waits=waits)
        if delay is None:
            raise error
        await asyncio.sleep(delay)
