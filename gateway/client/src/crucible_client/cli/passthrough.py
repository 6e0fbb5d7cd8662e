"""A program's output to this process's own streams, byte for byte, as it comes."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress

from crucible_client import results
from crucible_client.async_client import AsyncClient
from crucible_client.cli import exits

STDOUT, STDERR = 1, 2


async def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data` without blocking the event loop, also when nobody reads at the other end.

    Raises:
        BrokenPipeError: the reader is gone.
        OSError: anything else that a write can meet.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        failure: OSError | None = None
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, failure)

    # A daemon: a write that nobody reads must not keep this process from ending after Ctrl-C.
    threading.Thread(target=work, daemon=True).start()
    await done


class Passthrough:
    """Writes the output chunks of one evaluation where they belong.

    When the infrastructure loses an attempt, the next one's output comes after what was written of the first, and
    `notice` says so.

    Args:
        descriptors: where each stream goes; a stream that is not named is left out.
        notice: told what the reader should know, one line each.
        tried: told what the program tries, one line for each action; None: nobody wants to know.

    Attributes:
        position: of the last event that came.
    """

    def __init__(
        self,
        descriptors: Mapping[results.Stream, int],
        notice: Callable[[str], None],
        tried: Callable[[str], None] | None = None,
    ) -> None:
        self._descriptors = descriptors
        self._notice = notice
        self._tried = tried
        self._attempt = 0
        self.position = 0
        self._next: dict[results.Stream, int] = {}

    async def take(self, event: results.Event) -> None:
        """Writes what belongs to an event."""
        self.position = event.position
        if isinstance(event, results.AttemptFailed):
            self._notice(f"attempt {event.failure.attempt} was lost: {event.failure.reason}")
        elif isinstance(event, results.OutputChunk):
            await self._write(event)
        elif isinstance(event, results.BehaviourSeen) and self._tried is not None:
            for title, value in exits.told(event):
                self._tried(f"{title} {value}")

    async def _write(self, chunk: results.OutputChunk) -> None:
        if chunk.attempt != self._attempt:
            if self._next:
                self._notice(f"attempt {chunk.attempt} starts from the beginning; its output follows")
            self._attempt, self._next = chunk.attempt, {}
        descriptor = self._descriptors.get(chunk.stream)
        if descriptor is None:
            return
        written = self._next.get(chunk.stream, 0)
        fresh = chunk.data[max(0, written - chunk.offset) :]
        self._next[chunk.stream] = max(written, chunk.offset + len(chunk.data))
        if fresh:
            await write_all(descriptor, fresh)


async def follow(client: AsyncClient, name: str, sink: Passthrough) -> None:
    """Passes on what an evaluation writes, from its beginning until it is terminal."""
    events: AsyncGenerator[results.Event, None] = client.watch(name)
    async with aclosing(events):
        async for event in events:
            await sink.take(event)
