"""Statements that are compiled once and run by the driver itself.

Every evaluation costs some twenty of them, and SQLAlchemy's own way of running one costs several times what SQLite does
with it. The text is SQLAlchemy's, for the dialect of the connection; only numbers, texts, bytes and None go in and come
out, which every driver takes as they are. Errors are the driver's own, which `faults` knows as well as SQLAlchemy's.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql.expression import ClauseElement

Row = tuple[Any, ...]
Parameters = Mapping[str, Any]

WIRE = "crucible_wire"
"""Under this name `Connection.info` has what runs the statements of a connection, where that is not the driver."""


class Wire(Protocol):
    """Runs statements in its own way; see `databases.wire`.

    Attributes:
        ahead: whether what needs no answer is not waited for. What fails then, fails with `MustBeUndoneError`.
        writes: how many statements there were that may have changed something.
    """

    ahead: bool
    writes: int

    def rows(self, statement: Any, parameters: Parameters) -> list[Row]:
        """What a statement returns."""

    def count(self, statement: Any, parameters: Parameters) -> int:
        """How many rows a statement changed."""

    def changes(self, statement: Any, parameters: Parameters, expected: int | None) -> bool:
        """Whether a statement changes so many rows (None: any number); taken for granted where this is `ahead`."""

    def insert(self, statement: Any, rows: Sequence[Parameters]) -> None:
        """Inserts rows, at the latest before another statement names their table."""

    def prepare(self, statement: ClauseElement, dialect: Dialect) -> tuple[Any, Any]:
        """The form of a statement for the other methods, and that for `insert`, None when it is no plain INSERT."""

    def settle(self) -> None:
        """Returns when everything that was sent is done."""


def wire_of(connection: Connection) -> Wire | None:
    """What runs the statements of a connection; None: the driver."""
    wire: Wire | None = connection.info.get(WIRE)
    return wire


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A statement for one dialect: its text, its parameters' order (None: by name), and those with a value already."""

    text: str
    order: tuple[str, ...] | None
    given: dict[str, Any]

    def arguments(self, parameters: Parameters) -> Any:
        if self.order is None:
            return {**self.given, **parameters} if self.given else parameters
        if self.given:
            parameters = {**self.given, **parameters}
        return [parameters[name] for name in self.order]


class Prepared:
    """One statement of SQLAlchemy Core, whose parameters all have names. Not for lists in `IN`.

    Args:
        statement: with `bindparam`s for its parameters; an `insert` without `values` takes all columns.
    """

    __slots__ = ("_by_dialect", "_on_wire", "_statement")

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._by_dialect: dict[str, _Compiled] = {}
        self._on_wire: tuple[Any, Any] | None = None

    def first(self, connection: Connection, parameters: Parameters) -> Row | None:
        """The first row, None when there is none."""
        if (wire := _wire(connection)) is not None:
            rows = wire.rows(self._form(wire, connection)[0], parameters)
            return rows[0] if rows else None
        compiled, cursor = self._on(connection)
        cursor.execute(compiled.text, compiled.arguments(parameters))
        row: Row | None = cursor.fetchone()
        cursor.close()
        return row

    def all(self, connection: Connection, parameters: Parameters) -> list[Row]:
        """All rows."""
        if (wire := _wire(connection)) is not None:
            return wire.rows(self._form(wire, connection)[0], parameters)
        compiled, cursor = self._on(connection)
        cursor.execute(compiled.text, compiled.arguments(parameters))
        rows: list[Row] = cursor.fetchall()
        cursor.close()
        return rows

    def each(self, connection: Connection, parameters: Parameters) -> Generator[Row, None, None]:
        """Row by row, as they are asked for; close it when not all are. For connections that read."""
        compiled, cursor = self._on(connection)
        try:
            cursor.execute(compiled.text, compiled.arguments(parameters))
            while (row := cursor.fetchone()) is not None:
                yield row
        finally:
            cursor.close()

    def run(self, connection: Connection, parameters: Parameters) -> int:
        """Runs what returns no rows; answers how many rows it changed."""
        if (wire := _wire(connection)) is not None:
            return wire.count(self._form(wire, connection)[0], parameters)
        compiled, cursor = self._on(connection)
        cursor.execute(compiled.text, compiled.arguments(parameters))
        count: int = cursor.rowcount
        cursor.close()
        return count

    def changes(self, connection: Connection, parameters: Parameters, *, rows: int | None = None) -> bool:
        """Runs what returns no rows; answers whether it changed so many (None: whatever it changed).

        An operation that a write transaction runs may be told so before it is known. If it was not so, nothing of the
        transaction is kept, and the operation runs again and is told the truth.
        """
        if (wire := _wire(connection)) is not None:
            one, inserting = self._form(wire, connection)
            if rows is None and inserting is not None:
                wire.insert(inserting, [parameters])
                return True
            return wire.changes(one, parameters, rows)
        count = self.run(connection, parameters)
        return rows is None or count == rows

    def many(self, connection: Connection, parameters: Sequence[Parameters]) -> None:
        """Runs what returns no rows once for each of these."""
        if (wire := _wire(connection)) is not None:
            one, rows = self._form(wire, connection)
            if rows is not None:
                wire.insert(rows, parameters)
            else:
                for each in parameters:
                    wire.changes(one, each, None)
            return
        compiled, cursor = self._on(connection)
        cursor.executemany(compiled.text, [compiled.arguments(each) for each in parameters])
        cursor.close()

    def _on(self, connection: Connection) -> tuple[_Compiled, Any]:
        if not connection.in_transaction():
            connection.begin()  # as SQLAlchemy's own way does: a reader sees one snapshot; it ends with the connection
        compiled = self._by_dialect.get(connection.dialect.name)
        if compiled is None:
            compiled = self._by_dialect[connection.dialect.name] = _compiled(self._statement, connection.dialect)
        raw: Any = connection.connection.dbapi_connection
        return compiled, raw.cursor()

    def _form(self, wire: Wire, connection: Connection) -> tuple[Any, Any]:
        if self._on_wire is None:
            self._on_wire = wire.prepare(self._statement, connection.dialect)
        return self._on_wire


def _wire(connection: Connection) -> Wire | None:
    wire = wire_of(connection)
    if wire is not None and not connection.in_transaction():
        connection.begin()
    return wire


def _compiled(statement: ClauseElement, dialect: Dialect) -> _Compiled:
    compiled: Any = statement.compile(dialect=dialect)
    if compiled.literal_execute_params or compiled.post_compile_params:
        raise ValueError("a prepared statement must have the same text whatever its parameters are")
    order = tuple(compiled.positiontup) if compiled.positional else None
    given = {name: value for name, value in compiled.params.items() if value is not None}
    return _Compiled(str(compiled), order, given)
