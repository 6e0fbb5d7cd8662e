"""Alembic's entry: runs on the connection that `migrate` passes in, in one transaction."""

from typing import Any, Literal

from alembic import context
from sqlmodel.sql.sqltypes import AutoString

from crucible_storage import models


def _plain_text(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Writes sqlmodel's text type into revisions as SQLAlchemy's, so that they do not depend on sqlmodel's insides."""
    return "sa.String()" if kind == "type" and isinstance(item, AutoString) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=models.metadata,
    render_as_batch=True,
    render_item=_plain_text,
    transactional_ddl=True,
)

with context.begin_transaction():
    context.run_migrations()
