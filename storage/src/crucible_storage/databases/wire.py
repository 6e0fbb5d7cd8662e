"""Statements as libpq sends them: prepared once by name, values in binary, many on their way before one is answered.

psycopg's cursors cost several times what the server does with a small statement, and a trip for each is most of what
remains. What needs no answer is sent, and is not waited for (libpq's pipeline mode). A statement that fails then shows
later, under another one: so, where a transaction is `ahead`, every failure ends it, with `MustBeUndoneError`, and
whoever runs it runs it again one statement at a time.
"""

import itertools
import re
import select
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack
from typing import Any

import psycopg
from psycopg import errors, pq
from psycopg.adapt import Transformer
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.expression import ClauseElement

from crucible_storage import faults
from crucible_storage.faults import MustBeUndoneError
from crucible_storage.prepared import Parameters, Row

_PARAMETER = re.compile(r"%\((\w+)\)s|%%")
_NULL = b"\xff\xff\xff\xff"
_NUMBERS = {"BOOLEAN": (16, "!i?", 1), "INTEGER": (23, "!ii", 4), "BIGINT": (20, "!iq", 8)}
_BYTES = {"VARCHAR": 1043, "TEXT": 25, "BYTEA": 17}
_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.PIPELINE_ABORTED)


@dataclass(frozen=True, slots=True)
class Numbered:
    """A statement with numbered parameters: its text, their order by name, and those that have a value already."""

    text: str
    order: tuple[str, ...]
    given: dict[str, Any]

    @classmethod
    def of(cls, statement: ClauseElement, dialect: Dialect) -> "Numbered":
        """From SQLAlchemy's text, whose parameters have names."""
        compiled: Any = statement.compile(dialect=dialect)
        if compiled.literal_execute_params or compiled.post_compile_params:
            raise ValueError("a prepared statement must have the same text whatever its parameters are")
        numbers: dict[str, int] = {}

        def number(found: "re.Match[str]") -> str:
            name = found.group(1)
            return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

        text = _PARAMETER.sub(number, str(compiled))
        return cls(text, tuple(numbers), {name: value for name, value in compiled.params.items() if value is not None})

    def arguments(self, parameters: Parameters) -> tuple[list[bytes | None], list[int]]:
        """The values as the server takes them, and which of these are binary: numbers are texts, for any width."""
        if self.given:
            parameters = {**self.given, **parameters}
        values: list[bytes | None] = []
        formats: list[int] = []
        for name in self.order:
            value = parameters[name]
            number = value is None or isinstance(value, int)
            formats.append(0 if number else 1)
            if value is None or type(value) is bytes:
                values.append(value)
            else:
                values.append((str(int(value)) if number else value).encode())
        return values, formats


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """An INSERT of any number of rows: one parameter for each column, an array."""

    table: str
    text: str
    columns: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, statement: ClauseElement, dialect: Dialect) -> "Rows | None":
        """Of a plain INSERT into a table; None for anything else."""
        if not isinstance(statement, Insert) or statement._returning:  # it has no public name
            return None
        names = Numbered.of(statement, dialect).order
        kinds = {name: str(statement.table.c[name].type.compile(dialect)) for name in names}
        if any(kind not in _NUMBERS and kind not in _BYTES for kind in kinds.values()):
            return None
        quote = dialect.identifier_preparer.quote
        columns = ", ".join(quote(name) for name in names)
        arrays = ", ".join(f"${number}::{kinds[name]}[]" for number, name in enumerate(names, 1))
        table = dialect.identifier_preparer.format_table(statement.table)
        text = f"INSERT INTO {table} ({columns}) SELECT * FROM unnest({arrays})"  # noqa: S608  # names of our tables
        return cls(statement.table.name, text, tuple(kinds.items()))

    def arguments(self, rows: Sequence[Parameters]) -> tuple[list[bytes | None], list[int]]:
        """As `Numbered.arguments`."""
        return [_array(kind, [row[name] for row in rows]) for name, kind in self.columns], [1] * len(self.columns)


def _array(kind: str, values: Sequence[Any]) -> bytes:
    """A PostgreSQL array of one dimension in its binary form."""
    if kind in _NUMBERS:
        oid, form, size = _NUMBERS[kind]
        parts = [_NULL if value is None else pack(form, size, value) for value in values]
    else:
        oid = _BYTES[kind]
        parts = []
        for value in values:
            data = value.encode() if isinstance(value, str) else value
            parts.append(_NULL if data is None else pack("!i", len(data)) + data)
    return pack("!iiIii", 1, int(_NULL in parts), oid, len(parts), 1) + b"".join(parts)


class Wire:
    """The statements of one connection; see the module.

    Attributes:
        ahead: whether what needs no answer is not waited for.
        writes: how many statements there were that may have changed something.
    """

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self.ahead = False
        self.writes = 0
        self._pgconn = connection.pgconn
        self._loader = Transformer(connection)
        self._names: dict[str, bytes] = {}
        self._numbers = itertools.count(1)
        self._unanswered: deque[tuple[str, int | None]] = deque()
        self._syncs = 0
        self._kept: dict[Rows, list[Parameters]] = {}
        self._poll = select.poll()

    def rows(self, statement: Numbered, parameters: Parameters) -> list[Row]:
        """What a statement returns."""
        self.writes += not statement.text.startswith("SELECT")
        result = self._ask(statement.text, *statement.arguments(parameters))
        self._loader.set_pgresult(result, format=pq.Format.BINARY)
        return self._loader.load_rows(0, result.ntuples, tuple)

    def count(self, statement: Numbered, parameters: Parameters) -> int:
        """How many rows a statement changed."""
        self.writes += 1
        return self._ask(statement.text, *statement.arguments(parameters)).command_tuples or 0

    def changes(self, statement: Numbered, parameters: Parameters, expected: int | None) -> bool:
        """Whether a statement changes so many rows (None: any number); taken for granted where this is `ahead`."""
        self.writes += 1
        return self._send(statement.text, *statement.arguments(parameters), expected)

    def insert(self, rows: Rows, parameters: Sequence[Parameters]) -> None:
        """Inserts rows by one statement; where this is `ahead`, before the first other one that names their table."""
        self.writes += 1
        if self.ahead:
            self._kept.setdefault(rows, []).extend(parameters)
        else:
            self._ask(rows.text, *rows.arguments(parameters))

    def prepare(self, statement: ClauseElement, dialect: Dialect) -> tuple[Numbered, Rows | None]:
        """The forms of a statement."""
        return Numbered.of(statement, dialect), Rows.of(statement, dialect)

    def settle(self) -> None:
        """Returns when everything that was sent is done, and lets others use the connection.

        Raises:
            MustBeUndoneError: something of it failed.
        """
        for rows in list(self._kept):
            self._insert(rows)
        if self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            return
        self._sync()
        while self._unanswered:
            self._answer()
        self._leave()

    def abandon(self) -> None:
        """As `settle`, whatever became of it: the transaction is not to be kept."""
        self._kept.clear()
        if self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            return
        self._sync()
        for text, _ in self._unanswered:  # whether it was prepared is not known
            self._names.pop(text, None)
        self._unanswered.clear()
        self._leave()

    def _ask(self, text: str, values: list[bytes | None], formats: list[int]) -> "pq.abc.PGresult":
        self._begin(text, values, formats, None)
        self._pgconn.send_flush_request()
        while len(self._unanswered) > 1:
            self._answer()
        result = self._answer()
        if not self.ahead:
            self.settle()
        return result

    def _send(self, text: str, values: list[bytes | None], formats: list[int], expected: int | None) -> bool:
        if self.ahead:
            self._begin(text, values, formats, expected)
            return True
        changed = self._ask(text, values, formats).command_tuples
        return expected is None or changed == expected

    def _insert(self, rows: Rows) -> None:
        self._begin(rows.text, *rows.arguments(self._kept.pop(rows)), None)

    def _begin(self, text: str, values: list[bytes | None], formats: list[int], expected: int | None) -> None:
        for rows in [rows for rows in self._kept if rows.table in text]:
            self._insert(rows)
        if self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            self._pgconn.enter_pipeline_mode()
        name = self._names.get(text)
        if name is None:
            name = self._names[text] = b"crucible_%d" % next(self._numbers)
            self._pgconn.send_prepare(name, text.encode())
            self._unanswered.append((text, None))
        self._pgconn.send_query_prepared(name, values, formats, result_format=1)
        self._pgconn.flush()
        self._unanswered.append((text, expected))

    def _answer(self) -> "pq.abc.PGresult":
        """The result of what was sent first of all that is unanswered."""
        result = self._result()
        if result.status in _FAILED:
            error = _error(result)
            self.abandon()
            if self.ahead and not faults.ends_transaction(error):
                raise MustBeUndoneError(str(error)) from error
            raise error
        text, expected = self._unanswered.popleft()
        if expected is not None and result.command_tuples != expected:
            self.abandon()
            raise MustBeUndoneError(f"not {expected} but {result.command_tuples} rows were changed by: {text}")
        return result

    def _sync(self) -> None:
        self._pgconn.pipeline_sync()
        self._syncs += 1

    def _leave(self) -> None:
        while self._syncs:
            self._syncs -= self._result().status == pq.ExecStatus.PIPELINE_SYNC
        self._pgconn.exit_pipeline_mode()

    def _result(self) -> "pq.abc.PGresult":
        for _ in range(2):
            self._wait()
            result = self._pgconn.get_result()
            if result is not None:  # else the end of the one before
                return result
        raise psycopg.OperationalError("the connection was lost")

    def _wait(self) -> None:
        """Until a result is there; what is still to be sent goes out meanwhile."""
        pgconn = self._pgconn
        unsent = pgconn.flush()
        while pgconn.is_busy():
            self._poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            [(_, ready)] = self._poll.poll()
            if ready & ~select.POLLOUT:
                pgconn.consume_input()
            unsent = unsent and pgconn.flush()


def _error(result: "pq.abc.PGresult") -> psycopg.Error:
    """The driver's error; without the server's word for it, the server is not there."""
    if result.error_field(pq.DiagnosticField.SQLSTATE):
        return errors.error_from_result(result)
    return psycopg.OperationalError(result.get_error_message())
