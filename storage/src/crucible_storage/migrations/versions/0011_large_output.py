"""Large output: what is to be moved to the artifact store, and where it is then.

Revision ID: 0011
Revises: 0009
Create Date: 2026-11-22 19:40:00.000000
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# The chunk with which a stream became large is one for each stream; an attempt that is leased is noted at its end.
_NOTE = """
    INSERT INTO large_output (evaluation_seq, attempt, stream, tenant, size, state)
    SELECT o.evaluation_seq, o.attempt, o.stream, o.tenant, (
        SELECT max(p."offset" + p.size) FROM output AS p
        WHERE p.evaluation_seq = o.evaluation_seq AND p.attempt = o.attempt AND p.stream = o.stream
    ), 1
    FROM output AS o JOIN evaluation AS e ON e.seq = o.evaluation_seq
    WHERE o."offset" <= 16384 AND o."offset" + o.size > 16384 AND (e.state NOT IN (2, 3) OR o.attempt < e.attempt)
"""


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.create_table(
        "large_output",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stream", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("blob_seq", _BIG, nullable=True),
        sa.Column("preview", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["blob_seq"], ["blob.seq"]),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("evaluation_seq", "attempt", "stream"),
    )
    op.create_index("ix_large_output_blob", "large_output", ["blob_seq"], unique=False)
    waiting = sa.text("state <> 3")
    op.create_index(
        "ix_large_output_to_move",
        "large_output",
        ["size", "evaluation_seq", "attempt", "stream"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.execute(_NOTE)


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
