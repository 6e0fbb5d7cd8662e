"""The end of the log in a row of its own, and what several processes must know of each other.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-22 13:00:00.000000
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.execute("INSERT INTO log_head (id, tenant, position) SELECT 1, '*', coalesce(max(position), 0) FROM event")
    op.add_column("executor", sa.Column("registration", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("inspection", sa.Column("owner", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("inspection", sa.Column("heard", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
