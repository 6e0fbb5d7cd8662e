"""What a sandbox's init sends of the files that a program left."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from crucible_executor.collecting import Collector
from crucible_executor.model import Artifacts
from crucible_executor.spool import Spool

NAME, DATA, DONE, ABANDONED, END = range(1, 6)
CHUNK_BYTES = 65528


def message(kind: int, data: bytes = b"") -> bytes:
    return struct.pack("<II", kind, len(data)) + data


def name(path: bytes, size: int) -> bytes:
    return message(NAME, struct.pack("<Q", size) + path)


def file(path: bytes, content: bytes, size: int | None = None) -> bytes:
    """A whole file; `size` is what the sandbox says of it."""
    parts = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
    said = len(content) if size is None else size
    return b"".join([name(path, said), *(message(DATA, part) for part in parts), message(DONE)])


def end(omitted: int = 0, not_all_seen: int = 0) -> bytes:
    return message(END, struct.pack("<QQ", omitted, not_all_seen))


async def collected(files: Mapping[str, bytes], limit_bytes: int, spool: Spool) -> Artifacts:
    """As an init sends these files, cut to the limit."""
    collector = Collector(limit_bytes, spool)
    for path, content in files.items():
        await feed(collector, [file(path.encode(), content[:limit_bytes], len(content))])
        limit_bytes -= len(content[:limit_bytes])
    await feed(collector, [end()])
    return await collector.artifacts()


async def feed(collector: Collector, chunks: Iterable[bytes]) -> bytes:
    """Feeds chunks as an engine does; returns what comes after the end."""
    rest = b""
    for chunk in chunks:
        rest += collector.feed(chunk)
        if (written := collector.flush()) is not None:
            await written
    return rest
