"""Behaviour updates.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-22 09:31:12.402117
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.add_column("evaluation", sa.Column("behaviour_updates", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
