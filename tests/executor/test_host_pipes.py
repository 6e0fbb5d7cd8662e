"""Pipes on the event loop: everything arrives in order, nothing blocks, and the other side may go away."""

from __future__ import annotations

import asyncio
import os
import time

from crucible_executor.host_pipes import READ_BYTES, PipeReader, PipeWriter


async def test_many_chunks_larger_than_the_pipe_arrive_in_order():
    read_end, write_end = os.pipe()
    chunks = [os.urandom(size) for size in (0, 1, 70_000, 3, 500_000)] + [bytes([index % 256]) for index in range(5000)]
    received: list[bytes] = []
    complete = asyncio.Event()

    def take(data: bytes) -> None:
        received.append(data)
        if sum(map(len, received)) == sum(map(len, chunks)) + len(b"last"):
            complete.set()

    reader = PipeReader(read_end, take)
    writer = PipeWriter(write_end)
    writer.write(chunks)
    writer.write([b"last"])
    await asyncio.wait_for(complete.wait(), 10)
    writer.close()
    writer.close()
    await asyncio.wait_for(reader.finished, 5)
    assert b"".join(received) == b"".join(chunks) + b"last"
    assert max(map(len, received)) <= READ_BYTES


async def test_writer_of_single_bytes_does_not_keep_the_reader_busy():
    """Its bytes arrive in few pieces, and what gathers when it ends is read without delay."""
    read_end, write_end = os.pipe()
    received: list[bytes] = []
    reader = PipeReader(read_end, received.append)

    def write() -> int:
        count, end = 0, time.monotonic() + 0.5
        while time.monotonic() < end:
            count += os.write(write_end, b"x")
        os.close(write_end)
        return count

    written = await asyncio.to_thread(write)
    reader.resume()
    reader.resume()
    await asyncio.wait_for(reader.finished, 5)
    reader.resume()
    assert sum(map(len, received)) == written
    assert len(received) < 1000 < written


async def test_writer_outlives_its_reader():
    read_end, write_end = os.pipe()
    writer = PipeWriter(write_end)
    writer.write([b"x" * 1_000_000])
    os.close(read_end)
    await asyncio.sleep(0)
    writer.write([b"more"])
    writer.close()


async def test_closed_reader_is_finished_and_reads_no_more():
    read_end, write_end = os.pipe()
    received: list[bytes] = []
    reader = PipeReader(read_end, received.append)
    reader.close()
    reader.close()
    assert reader.finished.done()
    os.close(write_end)
    assert received == []
