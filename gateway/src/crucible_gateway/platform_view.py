"""What this installation can do and how it is, from what storage, monitor and executors say."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from crucible.evaluation.v1 import evaluation_pb2 as ev
from crucible.evaluation.v1 import platform_pb2 as platform
from crucible.gateway.v1 import platform_service_pb2 as api
from crucible.storage.v1 import status_service_pb2 as executors_api
from crucible_gateway import limits
from crucible_gateway.caller import Caller
from crucible_gateway.executors import Executors
from crucible_rpc.errors import CallError

STATUS_TIMEOUT_SECONDS = 1.0


class Peer(Protocol):
    """Another process."""

    name: str

    async def is_serving(self, timeout_seconds: float) -> bool:
        """Whether it says that it is serving; raises CallError when it does not answer."""
        ...


class StoragePeer(Peer, Protocol):
    """Storage, which also knows the queue."""

    async def queue(self, tenant: str) -> executors_api.GetQueueResponse:
        """How much work a tenant has."""
        ...


class PlatformView:
    """Answers questions about the installation.

    Args:
        storage: asked for its health and the queue.
        monitor: asked for its health.
        executors: what there is.
        defaults: for what a spec does not say.
        max_message_bytes: the largest request that is taken.
        stopping: whether this gateway is on its way out.
    """

    def __init__(
        self,
        storage: StoragePeer,
        monitor: Peer,
        executors: Executors,
        defaults: limits.Defaults,
        *,
        max_message_bytes: int,
        stopping: Callable[[], bool],
    ) -> None:
        self._storage = storage
        self._monitor = monitor
        self._executors = executors
        self._defaults = defaults
        self._max_message_bytes = max_message_bytes
        self._stopping = stopping

    async def capabilities(self) -> api.GetCapabilitiesResponse:
        """Engines, limits and bounds.

        Raises:
            UnavailableError: storage cannot be asked.
        """
        known = await self._executors.now()
        ceilings = limits.highest_ceilings(known.executors)
        return api.GetCapabilitiesResponse(
            engines=merged_engines(known.executors),
            default_engine=limits.default_engine(known.executors, self._defaults),
            default_limits=_at_most(self._defaults.limits, ceilings),
            ceilings=ceilings,
            max_message_bytes=self._max_message_bytes,
            max_attempts=known.max_attempts,
        )

    async def runtimes(self) -> list[platform.Runtime]:
        """Every runtime by name: as an executor has it that can start it, a live one before others.

        Raises:
            UnavailableError: storage cannot be asked.
        """
        found: dict[str, platform.Runtime] = {}
        for registered in _live_first((await self._executors.now()).executors):
            for runtime in registered.executor.runtimes:
                known = found.get(runtime.name)
                if known is None or (known.unavailable_reason and not runtime.unavailable_reason):
                    found[runtime.name] = runtime
        return [found[name] for name in sorted(found)]

    async def default_engine(self) -> str:
        """What a request that names no engine means; empty when no executor ever registered.

        Raises:
            UnavailableError: storage cannot be asked.
        """
        return limits.default_engine((await self._executors.now()).executors, self._defaults)

    async def status(self, caller: Caller) -> api.GetStatusResponse:
        """How each process is; answers within about a second whatever is down."""
        storage, monitor, executors, queue = await asyncio.gather(
            self._process(self._storage), self._process(self._monitor), self._executor_states(), self._queue(caller)
        )
        stopping = self._stopping()
        detail = "it is shutting down" if stopping else ""
        gateway = api.ProcessStatus(process="gateway", serving=not stopping, detail=detail)
        answer = api.GetStatusResponse(processes=[gateway, storage, monitor, *executors])
        if queue is not None:
            answer.queue.CopyFrom(api.QueueStatus(queued=queue.queued, running=queue.running, finished=queue.finished))
        return answer

    async def _process(self, peer: Peer) -> api.ProcessStatus:
        try:
            serving = await peer.is_serving(STATUS_TIMEOUT_SECONDS)
        except CallError as error:
            return api.ProcessStatus(process=peer.name, serving=False, detail=error.message)
        detail = "" if serving else "it answers that it is not serving: it is starting or shutting down"
        return api.ProcessStatus(process=peer.name, serving=serving, detail=detail)

    async def _executor_states(self) -> list[api.ProcessStatus]:
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_SECONDS):
                known = await self._executors.now()
        except (CallError, TimeoutError):
            stale = self._executors.last_known
            text = "not known now: storage, which hears of it, does not answer"
            return [_executor_status(each, text) for each in (stale.executors if stale else ())]
        return [_executor_status(each, None) for each in known.executors]

    async def _queue(self, caller: Caller) -> executors_api.GetQueueResponse | None:
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_SECONDS):
                return await self._storage.queue(caller.tenant)
        except (CallError, TimeoutError):
            return None


def merged_engines(executors: Sequence[executors_api.RegisteredExecutor]) -> list[platform.Engine]:
    """Every engine by name: as an executor has it where it is available, a live one before others."""
    found: dict[str, platform.Engine] = {}
    for registered in _live_first(executors):
        for engine in registered.executor.engines:
            if engine.name not in found or (engine.available and not found[engine.name].available):
                found[engine.name] = engine
    return [found[name] for name in sorted(found)]


def _live_first(executors: Sequence[executors_api.RegisteredExecutor]) -> list[executors_api.RegisteredExecutor]:
    return sorted(executors, key=lambda each: not each.live)


def _executor_status(registered: executors_api.RegisteredExecutor, unknown: str | None) -> api.ProcessStatus:
    silent = "its worker was not heard of for longer than a lease; is it running?"
    own = (
        f"it takes no work: {registered.executor.not_serving_reason}" if registered.executor.not_serving_reason else ""
    )
    answer = api.ProcessStatus(
        process=f"executor/{registered.executor.id}",
        serving=registered.live and unknown is None and not own,
        detail=unknown or ((own or _failing_engines(registered)) if registered.live else silent),
        slots=registered.executor.slots,
    )
    if registered.HasField("last_seen_time"):
        answer.last_seen_time.CopyFrom(registered.last_seen_time)
    return answer


def _failing_engines(registered: executors_api.RegisteredExecutor) -> str:
    failing = [engine for engine in registered.executor.engines if engine.breaker_open]
    return " ".join(engine.unavailable_reason for engine in failing)


def _at_most(defaults: ev.Limits, ceilings: ev.Limits) -> ev.Limits:
    bounded = ev.Limits()
    bounded.CopyFrom(defaults)
    for field in limits.LIMIT_OF:
        if limits.is_set(defaults, field) and limits.is_set(ceilings, field):
            least = min(limits.value_of(defaults, field), limits.value_of(ceilings, field))
            limits.set_value(bounded, field, least)
    return bounded
