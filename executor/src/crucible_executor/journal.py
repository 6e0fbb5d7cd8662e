"""What must survive a crash of the executor: which runs it accepted, how each ended, what storage confirmed.

One text line per entry: the CRC-32 of the rest as eight hex digits, a space, JSON. The latest entry of a run is the one
that counts; ACKNOWLEDGED and WITHDRAWN remove the run. A thread writes: entries that come while it is syncing share the
next fsync.
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import os
import queue
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_executor.statedir import fsync_folder
from crucible_rpc import logs
from crucible_rpc.errors import StartError

COMPACT_BYTES = 4 << 20
"""A journal is rewritten when it is larger than this and at least half of it is of no use."""

_log = logging.getLogger(__name__)
_HEADER = {"format": "crucible executor journal", "version": 1}


def _end_process(error: OSError) -> None:
    _log.critical("an fsync of the journal failed: ending at once", exc_info=error)
    os._exit(70)


class JournalError(StartError):
    """The journal is damaged, or of a version that this executor does not know."""


class JournalFullError(Exception):
    """An entry could not be written (no room); nothing of it is in the journal."""


class Kind(enum.Enum):
    """What an entry says of its run."""

    ACCEPTED = "accepted"
    FINISHED = "finished"
    REFUSED = "refused"
    ACKNOWLEDGED = "acknowledged"
    WITHDRAWN = "withdrawn"


_REMOVES = frozenset({Kind.ACKNOWLEDGED, Kind.WITHDRAWN})


@dataclass(frozen=True)
class Entry:
    """One entry: what it says, of which run, and the facts that belong to it (JSON values)."""

    kind: Kind
    run_id: str
    fields: dict[str, Any]

    def line(self) -> bytes:
        """As it is in the file."""
        return _line({"kind": self.kind.value, "run": self.run_id, **self.fields})


class _NotCompactedError(OSError):
    """The new file could not be written; the old one is as it was."""


@dataclass
class _Append:
    lazy: list[tuple[Entry, bytes]]
    waited_for: list[tuple[Entry, bytes]]
    durable: asyncio.Future[None] | None


class Journal:
    """An open journal; made by `Journal.open`. All methods belong to one event loop.

    Args:
        path: the file.
        compact_bytes: see `COMPACT_BYTES`.
        on_broken: called in the writer's thread, once, when an fsync failed: what is on disk is unknown then, so the
            process must end and start anew from what the disk has.
    """

    def __init__(self, path: Path, compact_bytes: int, on_broken: Callable[[OSError], None]) -> None:
        self._path = path
        self._compact_bytes = compact_bytes
        self._on_broken = on_broken
        self._queue: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._lazy: list[tuple[Entry, bytes]] = []
        self._places: dict[str, tuple[int, int]] = {}
        self._live_bytes = 0
        self._fd = -1
        self._size = 0
        self._broken = False
        self.replayed: dict[str, Entry] = {}
        self.fsyncs = 0
        self._thread = threading.Thread(target=self._write_forever, name="journal", daemon=True)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        compact_bytes: int = COMPACT_BYTES,
        on_broken: Callable[[OSError], None] = _end_process,
    ) -> Journal:
        """Reads what is there into `replayed` (by run id, as they were accepted), cuts off a torn last line, compacts.

        Raises:
            JournalError: a line that is not the last one is damaged.
            StartError: the file cannot be read or written.
        """
        journal = cls(path, compact_bytes, on_broken)
        try:
            journal._load()
            journal._compact()
        except OSError as error:
            raise StartError(f"the journal {path} cannot be used: {error.strerror or error}") from error
        journal._thread.start()
        return journal

    async def append(self, kind: Kind, run_id: str, **fields: Any) -> None:
        """Returns when the entry is on disk.

        Raises:
            JournalFullError: see the class.
        """
        entry = Entry(kind, run_id, fields)
        durable = asyncio.get_running_loop().create_future()
        self._queue.put(_Append(self._lazy, [(entry, entry.line())], durable))
        self._lazy = []
        await asyncio.shield(durable)

    def append_lazily(self, kind: Kind, run_id: str, **fields: Any) -> None:
        """Writes the entry together with the next one that somebody waits for and there is room for both.

        A crash may lose it, and so does `close` when there is no room.
        """
        entry = Entry(kind, run_id, fields)
        self._lazy.append((entry, entry.line()))

    async def close(self) -> None:
        """Writes everything that there is room for and closes the file."""
        if self._lazy:
            self._queue.put(_Append(self._lazy, [], None))
            self._lazy = []
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        os.close(self._fd)

    def _load(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        data = self._path.read_bytes()
        position, number = 0, 0
        while position < len(data):
            end = data.find(b"\n", position) + 1
            content = _content(data[position : end - 1]) if end else None
            if content is None:
                if end and _any_valid_line(data[end:]):
                    raise JournalError(
                        f"line {number + 1} of the journal {self._path} is damaged; restore the file, or move it away "
                        "to start without it (runs it knows of are then forgotten)"
                    )
                break  # torn by a crash while it was written: nobody was told that it is there
            if number == 0:
                self._check_header(content)
            else:
                self._apply(_entry(content, self._path, number + 1), position, end - position)
            position, number = end, number + 1
        os.ftruncate(self._fd, position)
        self._size = position

    def _check_header(self, content: dict[str, Any]) -> None:
        if content != _HEADER:
            raise JournalError(f"{self._path} is not a journal of this version of the executor")

    def _apply(self, entry: Entry, offset: int, length: int) -> None:
        self._place(entry, offset, length)
        if entry.kind in _REMOVES:
            self.replayed.pop(entry.run_id, None)
        else:
            self.replayed[entry.run_id] = entry

    def _place(self, entry: Entry, offset: int, length: int) -> None:
        self._live_bytes -= self._places.get(entry.run_id, (0, 0))[1]
        if entry.kind in _REMOVES:
            self._places.pop(entry.run_id, None)
        else:
            self._places[entry.run_id] = (offset, length)
            self._live_bytes += length

    def _write_forever(self) -> None:
        while True:
            batch: list[_Append] = []
            item = self._queue.get()
            while item is not None:
                batch.append(item)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._write(batch)
            if item is None:
                return

    def _write(self, batch: list[_Append]) -> None:
        error: Exception | None = None
        entries = [pair for one in batch for pair in (*one.lazy, *one.waited_for)]
        unwritten: list[tuple[Entry, bytes]] = []
        try:
            self._write_lines(entries)
            self._sync()
            if self._size > self._compact_bytes and self._live_bytes * 2 < self._size:
                self._compact()
        except _NotCompactedError as later:
            self._compact_bytes = 2 * self._size  # not at every entry
            _log.warning("the journal could not be compacted", extra=logs.fields(reason=str(later)))
        except JournalFullError as full:
            error, unwritten = full, [pair for one in batch for pair in one.lazy]
        except OSError as broken:
            error = JournalFullError(f"the journal cannot be written: {broken.strerror}")
            if not self._broken:
                self._broken = True
                self._on_broken(broken)
        waiting = [one.durable for one in batch if one.durable is not None]
        if waiting:
            waiting[0].get_loop().call_soon_threadsafe(self._settle, waiting, error, unwritten)

    def _settle(
        self, waiting: list[asyncio.Future[None]], error: Exception | None, unwritten: list[tuple[Entry, bytes]]
    ) -> None:
        """Tells those who wait; of lazy entries nobody else knows that they were not written, so they come again."""
        self._lazy[:0] = unwritten
        for future in waiting:
            if future.cancelled():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _write_lines(self, entries: list[tuple[Entry, bytes]]) -> None:
        data = b"".join(line for _, line in entries)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise JournalFullError(f"the journal cannot be written: {error.strerror}") from error
        for entry, line in entries:
            self._place(entry, self._size, len(line))
            self._size += len(line)

    def _sync(self) -> None:
        os.fdatasync(self._fd)
        self.fsyncs += 1

    def _compact(self) -> None:
        """Writes what counts to a new file and puts it in the old one's place."""
        temporary = self._path.with_name(self._path.name + ".new")
        fd, places, size = self._written_anew(temporary)
        temporary.rename(self._path)
        fsync_folder(self._path.parent)
        os.close(self._fd)
        self._fd, self._size, self._places = fd, size, places
        self._live_bytes = sum(length for _, length in places.values())

    def _written_anew(self, file: Path) -> tuple[int, dict[str, tuple[int, int]], int]:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            places: dict[str, tuple[int, int]] = {}
            header = _line(_HEADER)
            with os.fdopen(os.dup(fd), "ab") as stream:
                stream.write(header)
                size = len(header)
                for run_id, (offset, length) in self._places.items():
                    stream.write(os.pread(self._fd, length, offset))
                    places[run_id] = (size, length)
                    size += length
            os.fsync(fd)
        except OSError as error:
            os.close(fd)
            file.unlink(missing_ok=True)
            raise _NotCompactedError(error.strerror) from error
        return fd, places, size


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _content(line: bytes) -> dict[str, Any] | None:
    """The JSON of a line without its line end; None when the line is damaged."""
    checksum, _, text = line.partition(b" ")
    if len(checksum) != 8 or checksum != b"%08x" % zlib.crc32(text):
        return None
    content = json.loads(text)
    return content if isinstance(content, dict) else None


def _entry(content: dict[str, Any], path: Path, number: int) -> Entry:
    try:
        return Entry(Kind(content.pop("kind")), str(content.pop("run")), content)
    except (KeyError, ValueError):
        raise JournalError(f"line {number} of the journal {path} is of a kind unknown to this executor") from None


def _any_valid_line(data: bytes) -> bool:
    return any(_content(line) is not None for line in data.split(b"\n")[:-1])
