"""Pipes to and from a process, on the event loop, without threads: nothing is read or written that could block."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable

READ_BYTES = 65536

_SMALL_BYTES = READ_BYTES // 4
_SMALL_READS = 8
_WINDOW_S = 0.005
"""Of each stream only this many small reads in this time: a writer of single bytes would else cost this process, which
no limit of the writer covers, half as much CPU time as itself."""


class PipeReader:
    """Passes on what arrives in a pipe, at most 64 KiB per turn of the event loop.

    A turn's worth is all that is ever held here; the rest stays in the kernel's pipe, and the writer waits. Where
    `on_data` gives a future, nothing more is read until it is done.
    """

    def __init__(self, fd: int, on_data: Callable[[bytes], asyncio.Future[None] | None]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        """Done at the end of the stream, or when closed."""
        self._window = self._loop.time()
        self._small_reads = 0
        self._pause: asyncio.TimerHandle | None = None
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            taken = self._on_data(data)
            if taken is not None and self._fd >= 0:
                self._loop.remove_reader(self._fd)
                taken.add_done_callback(lambda _: self._go_on())
            elif len(data) < _SMALL_BYTES:
                self._pace()
        else:
            self.close()

    def _go_on(self) -> None:
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._readable)

    def _pace(self) -> None:
        """After too many small reads lets bytes gather in the pipe."""
        now = self._loop.time()
        if now >= self._window + _WINDOW_S:
            self._window, self._small_reads = now, 0
        self._small_reads += 1
        if self._small_reads >= _SMALL_READS and self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_at(self._window + _WINDOW_S, self.resume)

    def resume(self) -> None:
        """Reads on at once where it lets bytes gather: for when the writers are gone."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
            self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Stops reading. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self.finished.done():
            self.finished.set_result(None)


class PipeWriter:
    """Writes chunks into a pipe as fast as the other side takes them, then holds it open until closed.

    A reader that is gone is no error here: whoever watches that process learns of it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._chunks: deque[memoryview] = deque()
        self._waiting = False
        self._loop = asyncio.get_running_loop()
        os.set_blocking(fd, False)

    def write(self, chunks: Iterable[bytes]) -> None:
        """Queues chunks, and writes what can be written at once."""
        self._chunks.extend(memoryview(chunk) for chunk in chunks if chunk)
        self._flush()

    def _flush(self) -> None:
        while self._chunks and self._fd >= 0:
            try:
                # The kernel takes at most 1024 buffers in one call.
                written = os.writev(self._fd, [self._chunks[index] for index in range(min(len(self._chunks), 1000))])
            except BlockingIOError:
                break
            except OSError:
                self._chunks.clear()
                break
            self._drop(written)
        self._wait(bool(self._chunks) and self._fd >= 0)

    def _drop(self, count: int) -> None:
        while count:
            first = self._chunks.popleft()
            if count < len(first):
                self._chunks.appendleft(first[count:])
                return
            count -= len(first)

    def _wait(self, waiting: bool) -> None:
        if waiting and not self._waiting:
            self._loop.add_writer(self._fd, self._flush)
        elif self._waiting and not waiting and self._fd >= 0:
            self._loop.remove_writer(self._fd)
        self._waiting = waiting

    def close(self) -> None:
        """Closes the pipe; what was not written yet is dropped. Idempotent."""
        if self._fd >= 0:
            if self._waiting:
                self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._chunks.clear()


def pipe_from_child(given: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that a child writes to: (our read end, the child's end, which `given` closes here when it unwinds)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    given.callback(os.close, write_end)
    return read_end, write_end


def pipe_to_child(given: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that a child reads from: (our write end, the child's end, which `given` closes here when it unwinds)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    given.callback(os.close, read_end)
    return write_end, read_end
