"""Domain values as messages."""

from crucible.storage.v1 import api_key_service_pb2 as keys
from crucible.storage.v1 import status_service_pb2 as status
from crucible.storage.v1 import work_service_pb2 as work
from crucible_storage.clock import timestamp
from crucible_storage.executors import Listed
from crucible_storage.leases import Held
from crucible_storage.lifecycle import HELD, QUEUED, TERMINAL
from crucible_storage.models import ApiKeyRow
from crucible_storage.transaction import Stop


def api_key(row: ApiKeyRow) -> keys.StoredApiKey:
    """A key as stored, without its digest."""
    return keys.StoredApiKey(
        id=row.id,
        tenant=row.tenant,
        admin=row.admin,
        description=row.description,
        create_time=timestamp(row.create_time),
        revoke_time=None if row.revoke_time is None else timestamp(row.revoke_time),
    )


def lease(held: Held) -> work.Lease:
    """A lease, and how much output and how many behaviour updates of its run are stored."""
    return work.Lease(
        run_id=held.run_id,
        epoch=held.epoch,
        boot_id=held.boot_id,
        stdout_offset=held.stdout_bytes,
        stderr_offset=held.stderr_bytes,
        behaviour_sequence=held.behaviour_updates,
    )


def stops(some: list[Stop]) -> work.WatchStopsResponse:
    """Runs to be killed, and when the latest intent was stored."""
    refs = [work.LeaseRef(run_id=stop.run_id, epoch=stop.epoch) for stop in some]
    return work.WatchStopsResponse(stops=refs, time=timestamp(max(stop.time for stop in some)))


def executor(listed: Listed) -> status.RegisteredExecutor:
    """An executor and when it was last heard of."""
    return status.RegisteredExecutor(
        executor=listed.executor, last_seen_time=timestamp(listed.last_seen), live=listed.live
    )


def queue(counts: dict[int, int]) -> status.GetQueueResponse:
    """How much work there is, by state."""
    return status.GetQueueResponse(
        queued=counts.get(QUEUED, 0),
        running=sum(counts.get(state, 0) for state in HELD),
        finished=sum(counts.get(state, 0) for state in TERMINAL),
    )
