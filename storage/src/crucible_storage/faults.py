"""What the databases' own failures mean: to the group that they hit, and to a caller."""

import sqlite3
import sys
from datetime import timedelta
from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from crucible_rpc.errors import CallError, DataLossError, InternalError, ResourceExhaustedError, UnavailableError


class Fault(Enum):
    """A failure of the database: but for DAMAGED, the whole transaction is over, not only a statement of it."""

    FULL = auto()
    DISK = auto()
    READ_ONLY = auto()
    BUSY = auto()
    CONFLICT = auto()
    GONE = auto()
    UNDO = auto()
    DAMAGED = auto()
    """What one operation needs cannot be read; the rest of the transaction is whole."""
    OTHER = auto()


class TransactionLostError(Exception):
    """An operation could not be undone, so nothing of its transaction may be kept."""


class MustBeUndoneError(Exception):
    """An operation failed in a transaction that has no savepoints: it is run again, with them."""


class FateUnknownError(Exception):
    """The connection was lost during a commit: whether it took effect is known to the server alone."""


_PRIMARY = 0xFF  # the low byte of an extended result code of SQLite
_SQLITE = {
    sqlite3.SQLITE_FULL: Fault.FULL,
    sqlite3.SQLITE_READONLY: Fault.FULL,
    sqlite3.SQLITE_IOERR: Fault.DISK,
    sqlite3.SQLITE_CANTOPEN: Fault.DISK,
    sqlite3.SQLITE_CORRUPT: Fault.DAMAGED,
    sqlite3.SQLITE_NOTADB: Fault.DAMAGED,
    sqlite3.SQLITE_NOMEM: Fault.OTHER,
    sqlite3.SQLITE_INTERRUPT: Fault.OTHER,
    sqlite3.SQLITE_BUSY: Fault.OTHER,
}
_SQLSTATES = {
    "25006": Fault.READ_ONLY,
    "25P03": Fault.GONE,  # idle in a transaction for too long
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,
    "53100": Fault.FULL,
    "55P03": Fault.BUSY,  # a lock was not to be had in time
    "57014": Fault.BUSY,  # a statement took too long
    "57P01": Fault.GONE,
    "57P02": Fault.GONE,
    "57P03": Fault.GONE,
    "57P05": Fault.GONE,
    "XX001": Fault.DAMAGED,
    "XX002": Fault.DAMAGED,  # an index
}
_SQLSTATE_CLASSES = {"08": Fault.GONE, "53": Fault.BUSY, "57": Fault.OTHER, "58": Fault.DISK}
_DUPLICATE = "23505"
_RETRY = timedelta(seconds=5)
_SOON = timedelta(seconds=1)


def fault_of(error: BaseException) -> Fault | None:
    """What happened to the transaction; None when only the statement or the operation failed."""
    if isinstance(error, TransactionLostError):
        return Fault.OTHER
    if isinstance(error, MustBeUndoneError):
        return Fault.UNDO
    raw = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(raw, "sqlite_errorcode", None)
    if code is not None:
        return _SQLITE.get(code & _PRIMARY)
    psycopg = sys.modules.get("psycopg")
    if psycopg is None or not isinstance(raw, psycopg.Error):
        return None
    state = raw.sqlstate
    if state is None:  # not the server's word but the driver's: it is not there
        return Fault.GONE if isinstance(raw, psycopg.OperationalError | psycopg.InterfaceError) else None
    return _SQLSTATES.get(state) or _SQLSTATE_CLASSES.get(state[:2])


def ends_transaction(error: BaseException) -> bool:
    """Whether the whole transaction may be gone, not only the statement."""
    return fault_of(error) not in (None, Fault.DAMAGED)


def is_of_database(error: BaseException) -> bool:
    """Whether a statement failed."""
    psycopg = sys.modules.get("psycopg")
    return isinstance(error, SQLAlchemyError | sqlite3.Error) or (
        psycopg is not None and isinstance(error, psycopg.Error)
    )


def is_duplicate(error: BaseException) -> bool:
    """Whether a key is there already on PostgreSQL, where another process may have stored it a moment ago."""
    raw = error.orig if isinstance(error, DBAPIError) else error
    return getattr(raw, "sqlstate", None) == _DUPLICATE


def to_call_error(error: BaseException) -> CallError:
    """The error that a caller gets when its write, or the commit it was part of, failed.

    Nothing of it was stored, but after a `FateUnknownError`.
    """
    if isinstance(error, FateUnknownError):
        text = "the connection to the database was lost during the commit: whether this was stored is not known; "
        return _unavailable(text + "ask for it, or send it again with the same request_id")
    match fault_of(error):
        case Fault.FULL:
            text = "storage cannot write: its disk is full or its state folder is read-only; nothing was stored"
            return ResourceExhaustedError("STORAGE_FULL", text, retry_after=_RETRY)
        case Fault.DISK:
            return _unavailable("storage cannot reach its disk now; nothing was stored, try again", _RETRY)
        case Fault.GONE:
            return _unavailable("storage cannot reach its database now; nothing was stored, try again")
        case Fault.READ_ONLY:
            return _unavailable("storage's database takes no writes now; nothing was stored, try again", _RETRY)
        case Fault.DAMAGED:
            return _damaged()
        case Fault.BUSY | Fault.CONFLICT:
            return _unavailable("storage's database is too busy now; nothing was stored, try again")
        case _:
            return InternalError("INTERNAL", "storage failed to store this; its log says why")


def to_read_error(fault: Fault) -> CallError:
    """The error that a caller gets when what it asks for cannot be read now."""
    if fault is Fault.DAMAGED:
        return _damaged()
    gone = fault is Fault.GONE
    return _unavailable(f"storage {'cannot reach its database' if gone else 'cannot read its database'} now; try again")


def _damaged() -> DataLossError:
    text = "storage's database is damaged where this is kept; nothing was changed, `crucible storage check` says where"
    return DataLossError("DATABASE_DAMAGED", text)


def _unavailable(text: str, retry_after: timedelta = _SOON) -> UnavailableError:
    return UnavailableError("PEER_UNAVAILABLE", text, retry_after=retry_after)
