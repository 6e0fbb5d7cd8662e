"""Events that tell the whole state: the position after which they do.

Revision ID: 0008
Revises: 0006
Create Date: 2026-11-22 12:50:00.000000
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    connection = op.get_bind()
    last = connection.execute(sa.text("SELECT coalesce(max(position), 0) FROM event")).scalar_one()
    connection.execute(
        sa.text("INSERT INTO setting (name, tenant, value) VALUES ('events-complete-after', '*', :value)"),
        {"value": str(last).encode()},
    )


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
