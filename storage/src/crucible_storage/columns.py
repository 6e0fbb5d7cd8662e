"""The kinds of columns that tables have, the same on SQLite and PostgreSQL."""

from typing import Any

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, TextClause

BIG = BigInteger().with_variant(Integer(), "sqlite")


def only(condition: TextClause) -> dict[str, Any]:
    """A partial index."""
    return {"sqlite_where": condition, "postgresql_where": condition}


def key() -> Column[int]:
    """A number that the database gives."""
    return Column(BIG, primary_key=True, autoincrement=True)


def owner() -> Column[int]:
    """The number of the evaluation to which a row belongs."""
    return Column(BIG, ForeignKey("evaluation.seq"), primary_key=True, autoincrement=False)


def number(*, nullable: bool = False) -> Column[int]:
    """64 bits."""
    return Column(BigInteger, nullable=nullable)


def blob(*, nullable: bool = False) -> Column[bytes]:
    """Any bytes."""
    return Column(LargeBinary, nullable=nullable)
