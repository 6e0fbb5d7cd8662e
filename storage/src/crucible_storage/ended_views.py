"""Evaluations that have ended, as callers see them, remembered: a terminal state never changes.

The row of the evaluation is read at every call, as ever: it says whose the evaluation is, whether it is still there,
and its version. Only what is put together from other tables comes from memory, and only for that version. So what was
deleted, by whichever process, is not found, and no tenant is told of another's.
"""

import threading
from collections import OrderedDict
from typing import Protocol

from sqlalchemy.engine import Connection

from crucible.evaluation.v1 import evaluation_pb2 as pb
from crucible_storage import views
from crucible_storage.lifecycle import Record

_SHARE = 16  # of all bytes: what is larger would drive out too many others


class CacheObserver(Protocol):
    """Who counts how the cache does; called from any thread."""

    def remembered(self, hit: bool, size: int) -> None:
        """An evaluation that has ended was asked for, and was remembered or not; the cache has `size` bytes now."""


class EndedViews:
    """The evaluations that were asked for last; used by threads at once.

    Args:
        max_bytes: of all that is remembered, serialized; 0: nothing is.
        observer: see `CacheObserver`.
    """

    def __init__(self, max_bytes: int, observer: CacheObserver) -> None:
        self._max_bytes = max_bytes
        self._observer = observer
        self._lock = threading.Lock()
        self._views: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0

    def complete(self, connection: Connection, record: Record) -> pb.Evaluation:
        """As `views.complete`, of a record that was read just now."""
        if not record.terminal or not self._max_bytes:
            return views.complete(connection, record)
        key = (record.seq, record.version)
        with self._lock:
            known = self._views.get(key)
            if known is not None:
                self._views.move_to_end(key)
        if known is not None:
            self._observer.remembered(True, self._bytes)
            return pb.Evaluation.FromString(known)
        view = views.complete(connection, record)
        self._remember(key, view.SerializeToString())
        self._observer.remembered(False, self._bytes)
        return view

    def _remember(self, key: tuple[int, int], view: bytes) -> None:
        if len(view) > self._max_bytes // _SHARE:
            return
        with self._lock:
            self._bytes += len(view) - len(self._views.get(key, b""))
            self._views[key] = view
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._views.popitem(last=False)[1])
