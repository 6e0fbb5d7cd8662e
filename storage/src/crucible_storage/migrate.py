"""Brings the file to this version's schema, and compares the two."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy.engine import Connection

from crucible_rpc.errors import StartError
from crucible_storage import models

_FOLDER = Path(__file__).parent / "migrations"


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    made = Config()
    made.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Runs the revisions that the file lacks, inside the caller's transaction.

    Raises:
        StartError: the file was written by a later version.
    """
    try:
        command.upgrade(config(connection), "head")
    except CommandError:
        found = MigrationContext.configure(connection).get_current_revision()
        raise StartError(
            f"the database has the schema revision {found}, which this version does not know; "
            "start the version that made it"
        ) from None


def head() -> str | None:
    """The latest revision."""
    return ScriptDirectory.from_config(config()).get_current_head()


def differences(connection: Connection) -> list[Any]:
    """How the file's schema differs from the models; empty when it does not."""
    return list(compare_metadata(MigrationContext.configure(connection), models.metadata))
