"""What callers do with evaluations: the rules between a valid request and storage."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Protocol

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.gateway.v1 import evaluation_service_pb2 as api
from crucible.monitor.v1 import monitor_service_pb2 as monitor_api
from crucible.storage.v1 import evaluation_store_service_pb2 as store
from crucible_gateway.caller import Caller
from crucible_gateway.executors import Executors
from crucible_gateway.limits import Defaults
from crucible_gateway.validation import DEFAULT_PAGE_SIZE
from crucible_rpc import logs
from crucible_rpc.errors import UnavailableError

TERMINAL = frozenset({ev.EVALUATION_STATE_SUCCEEDED, ev.EVALUATION_STATE_FAILED, ev.EVALUATION_STATE_CANCELLED})
FIRST_WAIT_SECONDS = 1
"""What a run may take to be created, waited for and answered in one call to storage; its program is kept that long."""
WAIT = timedelta(seconds=50)
_PAUSE_SECONDS = 0.5

_log = logging.getLogger(__name__)


class EvaluationStore(Protocol):
    """What is needed of storage."""

    async def create(self, request: store.CreateEvaluationRequest) -> ev.Evaluation: ...  # noqa: D102
    async def get(self, tenant: str, name: str) -> ev.Evaluation: ...  # noqa: D102
    async def wait(self, tenant: str, name: str, wait: timedelta) -> ev.Evaluation: ...  # noqa: D102
    async def list_page(self, request: store.ListEvaluationsRequest) -> store.ListEvaluationsResponse: ...  # noqa: D102
    async def cancel(self, request: store.CancelEvaluationRequest) -> ev.Evaluation: ...  # noqa: D102
    async def delete(self, request: store.DeleteEvaluationRequest) -> store.DeleteEvaluationResponse: ...  # noqa: D102
    async def usage_samples(self, request: store.ListUsageSamplesRequest) -> store.ListUsageSamplesResponse: ...  # noqa: D102
    def read_output(self, request: store.ReadOutputRequest) -> AsyncGenerator[store.ReadOutputResponse, None]: ...  # noqa: D102


class Watches(Protocol):
    """What is needed of monitor."""

    def watch(self, tenant: str, name: str, after_position: int) -> AsyncGenerator[monitor_api.WatchResponse, None]: ...  # noqa: D102


class Evaluations:
    """A caller's evaluations. Requests are valid by themselves when they get here (see `validation`).

    Args:
        storage: where they are kept.
        monitor: who serves their events.
        executors: what could run them.
        defaults: for what a spec does not say.
        outage: how long `run` waits for a storage that went away before it gives up.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        storage: EvaluationStore,
        monitor: Watches,
        executors: Executors,
        defaults: Defaults,
        *,
        outage: timedelta = timedelta(seconds=30),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = storage
        self._monitor = monitor
        self._executors = executors
        self._defaults = defaults
        self._outage = outage.total_seconds()
        self._clock = clock

    async def create(self, caller: Caller, request_id: str, spec: ev.EvaluationSpec) -> ev.Evaluation:
        """Stores an evaluation, QUEUED; nothing is stored when it could not be run.

        Raises:
            CallError: see `limits.complete`, and what storage says.
        """
        evaluation = await self._storage.create(await self._creation(caller, request_id, spec))
        logs.bind(evaluation=evaluation.name)
        return evaluation

    async def run(self, caller: Caller, request_id: str, spec: ev.EvaluationSpec) -> ev.Evaluation:
        """Creates an evaluation and returns it when it is terminal, however long that takes.

        Raises:
            CallError: as `create`; UnavailableError when storage goes away meanwhile and stays away, with the
                evaluation's name in `metadata` if it is known.
        """
        creation = await self._creation(caller, request_id, spec)
        creation.wait.seconds = FIRST_WAIT_SECONDS
        spec.Clear()  # `creation` has a copy; a program of some megabytes is not kept while it is waited for
        evaluation: ev.Evaluation | None = None
        away_since: float | None = None
        while evaluation is None or evaluation.state not in TERMINAL:
            try:
                if evaluation is None:
                    evaluation = await self._storage.create(creation)  # again: the same request id makes it once
                    logs.bind(evaluation=evaluation.name)
                    creation.Clear()
                else:
                    evaluation = await self._storage.wait(caller.tenant, evaluation.name, WAIT)
                away_since = None
            except UnavailableError as error:
                now = self._clock()
                away_since = now if away_since is None else away_since
                if now - away_since >= self._outage:
                    if evaluation is not None:
                        error.metadata["evaluation"] = evaluation.name
                    raise
                _log.warning("storage is away while a run waits")
                await asyncio.sleep(_PAUSE_SECONDS)
        return evaluation

    async def _creation(
        self, caller: Caller, request_id: str, spec: ev.EvaluationSpec
    ) -> store.CreateEvaluationRequest:
        """What storage is asked for. Fails when storage has been away for longer than executors are remembered."""
        await self._executors.complete(spec, self._defaults)
        request = store.CreateEvaluationRequest(tenant=caller.tenant, creator=caller.key_id, spec=spec)
        # A call whose answer got lost is sent again; without an id of its own that would make a second evaluation.
        request.request_id = request_id or f"auto.{secrets.token_hex(16)}"
        return request

    async def get(self, caller: Caller, name: str) -> ev.Evaluation:
        """One evaluation as it is now."""
        logs.bind(evaluation=name)
        return await self._storage.get(caller.tenant, name)

    async def list(self, caller: Caller, request: api.ListEvaluationsRequest) -> store.ListEvaluationsResponse:
        """A page, newest first."""
        return await self._storage.list_page(
            store.ListEvaluationsRequest(
                tenant=caller.tenant,
                page_size=request.page_size or DEFAULT_PAGE_SIZE,
                page_token=request.page_token,
                states=request.states,
                labels=request.labels,
                batch=request.batch,
            )
        )

    async def cancel(self, caller: Caller, name: str, reason: str) -> ev.Evaluation:
        """Records the wish to end an evaluation; a terminal one is returned unchanged."""
        logs.bind(evaluation=name)
        request = store.CancelEvaluationRequest(tenant=caller.tenant, name=name, by=caller.key_id, reason=reason)
        return await self._storage.cancel(request)

    async def delete(self, caller: Caller, name: str, reason: str) -> store.DeleteEvaluationResponse:
        """Deletes an evaluation of any tenant that has ended; for administrators."""
        logs.bind(evaluation=name)
        return await self._storage.delete(store.DeleteEvaluationRequest(name=name, by=caller.key_id, reason=reason))

    def watch(self, caller: Caller, name: str, after_position: int) -> AsyncGenerator[monitor_api.WatchResponse, None]:
        """Events after a position, then those to come."""
        logs.bind(evaluation=name)
        return self._monitor.watch(caller.tenant, name, after_position)

    def read_output(
        self, caller: Caller, request: api.ReadOutputRequest
    ) -> AsyncGenerator[store.ReadOutputResponse, None]:
        """Kept bytes of one output stream."""
        logs.bind(evaluation=request.name)
        return self._storage.read_output(
            store.ReadOutputRequest(
                tenant=caller.tenant,
                name=request.name,
                stream=request.stream,
                offset=request.offset,
                attempt=request.attempt,
            )
        )

    async def usage_samples(self, caller: Caller, name: str, attempt: int) -> store.ListUsageSamplesResponse:
        """What an attempt (0: the latest) used over time."""
        logs.bind(evaluation=name)
        request = store.ListUsageSamplesRequest(tenant=caller.tenant, name=name, attempt=attempt)
        return await self._storage.usage_samples(request)
