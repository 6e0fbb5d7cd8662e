"""The schema's history, and how to tell whether a database is at its end without loading alembic."""

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

HEAD = "0011"
"""The latest revision in `versions`."""


_VERSION = "alembic_version"
_OURS = "evaluation"


def is_current(connection: Connection) -> bool:
    """Whether the database has this version's schema. Then alembic's 11 MB need not be loaded."""
    if not inspect(connection).has_table(_VERSION):
        return False
    rows = connection.execute(text("SELECT version_num FROM alembic_version")).fetchall()
    return [row[0] for row in rows] == [HEAD]


def tables_of_others(connection: Connection) -> list[str]:
    """The tables of a database that is neither empty nor storage's own; empty when it is."""
    tables = inspect(connection).get_table_names()
    if {_VERSION, _OURS} <= set(tables) or not tables:
        return []
    return sorted(tables)
