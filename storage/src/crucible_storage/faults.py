"""What SQLite's own failures mean to a caller."""

import sqlite3
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from crucible_rpc.errors import CallError, InternalError, ResourceExhaustedError, UnavailableError

_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}
_DISK = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
_PRIMARY = 0xFF  # the low byte of an extended result code
_RETRY = timedelta(seconds=5)


def code_of(error: BaseException) -> int | None:
    """SQLite's primary result code behind an exception; None when it has none."""
    raw = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(raw, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY


def ends_transaction(error: BaseException) -> bool:
    """Whether SQLite may have rolled back the whole transaction by itself, not only the statement."""
    return code_of(error) in _FULL | _DISK | {sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_BUSY}


def to_call_error(error: BaseException) -> CallError:
    """The error that a caller gets when its write, or the commit it was part of, failed. Nothing of it was stored."""
    code = code_of(error)
    if code in _FULL:
        text = "storage cannot write: its disk is full or its state folder is read-only; nothing was stored"
        return ResourceExhaustedError("STORAGE_FULL", text, retry_after=_RETRY)
    if code in _DISK:
        text = "storage cannot reach its disk now; nothing was stored, try again"
        return UnavailableError("PEER_UNAVAILABLE", text, retry_after=_RETRY)
    return InternalError("INTERNAL", "storage failed to store this; its log says why")
