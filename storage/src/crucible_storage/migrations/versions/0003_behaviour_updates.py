"""Behaviour updates.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-22 10:43:12.402117
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.add_column("evaluation", sa.Column("behaviour_updates", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
