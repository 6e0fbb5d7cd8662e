"""The schema's history, and how to tell whether a file is at its end without loading alembic."""

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

HEAD = "0007"
"""The latest revision in `versions`."""


def is_current(connection: Connection) -> bool:
    """Whether the file has this version's schema. Then alembic's 11 MB need not be loaded."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    rows = connection.execute(text("SELECT version_num FROM alembic_version")).fetchall()
    return [row[0] for row in rows] == [HEAD]
