"""Usage samples: a packed series for each attempt that was sampled.

Revision ID: 0010
Revises: 0008
Create Date: 2026-11-22 16:20:00.000000
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.create_table(
        "usage_sample",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("downsampled", sa.Integer(), nullable=False),
        sa.Column("recorded", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("evaluation_seq", "attempt"),
    )
    op.create_index("ix_usage_sample_recorded", "usage_sample", ["recorded"], unique=False)
    whole = sa.text("downsampled = 0")
    op.create_index("ix_usage_sample_whole", "usage_sample", ["recorded"], sqlite_where=whole, postgresql_where=whole)


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
