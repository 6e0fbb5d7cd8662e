"""Statements that are compiled once and run by the driver itself.

Every evaluation costs some twenty of them, and SQLAlchemy's own way of running one costs several times what SQLite does
with it. The text is SQLAlchemy's, for the dialect of the connection; only numbers, texts, bytes and None go in and come
out, which every driver takes as they are. Errors are the driver's own, which `faults` knows as well as SQLAlchemy's.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql.expression import ClauseElement

Row = tuple[Any, ...]
Parameters = Mapping[str, Any]


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

    __slots__ = ("_by_dialect", "_statement")

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._by_dialect: dict[str, _Compiled] = {}

    def first(self, connection: Connection, parameters: Parameters) -> Row | None:
        """The first row, None when there is none."""
        compiled, cursor = self._on(connection)
        cursor.execute(compiled.text, compiled.arguments(parameters))
        row: Row | None = cursor.fetchone()
        cursor.close()
        return row

    def all(self, connection: Connection, parameters: Parameters) -> list[Row]:
        """All rows."""
        compiled, cursor = self._on(connection)
        cursor.execute(compiled.text, compiled.arguments(parameters))
        rows: list[Row] = cursor.fetchall()
        cursor.close()
        return rows

    def each(self, connection: Connection, parameters: Parameters) -> Generator[Row, None, None]:
        """Row by row, as they are asked for; close it when not all are."""
        compiled, cursor = self._on(connection)
        try:
            cursor.execute(compiled.text, compiled.arguments(parameters))
            while (row := cursor.fetchone()) is not None:
                yield row
        finally:
            cursor.close()

    def run(self, connection: Connection, parameters: Parameters) -> int:
        """Runs what returns no rows; answers how many rows it changed."""
        compiled, cursor = self._on(connection)
        cursor.execute(compiled.text, compiled.arguments(parameters))
        count: int = cursor.rowcount
        cursor.close()
        return count

    def many(self, connection: Connection, parameters: Sequence[Parameters]) -> None:
        """Runs what returns no rows once for each of these."""
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


def _compiled(statement: ClauseElement, dialect: Dialect) -> _Compiled:
    compiled: Any = statement.compile(dialect=dialect)
    if compiled.literal_execute_params or compiled.post_compile_params:
        raise ValueError("a prepared statement must have the same text whatever its parameters are")
    order = tuple(compiled.positiontup) if compiled.positional else None
    given = {name: value for name, value in compiled.params.items() if value is not None}
    return _Compiled(str(compiled), order, given)
