"""Events whose output's bytes are in the artifact store: they are fetched before the events are given out."""

from collections.abc import Sequence
from dataclasses import dataclass

from crucible.evaluation.v1.event_pb2 import Event
from crucible_storage.artifacts.blob_store import BlobMissingError, BlobStore
from crucible_storage.artifacts.reading import Object


@dataclass(frozen=True, slots=True)
class Moved:
    """An event without its output's bytes: how many these are, and the object that has the whole stream."""

    event: Event
    size: int
    found: Object


async def fill(store: BlobStore, moved: Sequence[Moved]) -> list[Object]:
    """Gives events of one batch their bytes, by one request for each stream; answers the objects that are lost.

    Raises:
        UnavailableError: ARTIFACT_STORE_UNAVAILABLE.
    """
    streams: dict[tuple[str, int, int], list[Moved]] = {}
    for one in moved:
        event = one.event
        streams.setdefault((event.evaluation, event.attempt, int(event.output.stream)), []).append(one)
    lost = []
    for chunks in streams.values():
        start, found = chunks[0].event.output.offset, chunks[0].found
        end = chunks[-1].event.output.offset + chunks[-1].size  # in the log a stream's chunks are in its order
        try:
            data = await store.read(found.name, start, end - start)
        except BlobMissingError:
            lost.append(found)
            continue
        for one in chunks:
            begin = one.event.output.offset - start
            one.event.output.data = data[begin : begin + one.size]
    return lost
