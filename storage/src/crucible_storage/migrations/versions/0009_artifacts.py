"""Artifacts: the objects of the artifact store, and who refers to them.

Revision ID: 0009
Revises: 0010
Create Date: 2026-11-22 16:20:00.000000
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0010"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.create_table(
        "blob",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("released", sa.Integer(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    _partial("ix_blob_content", "blob", ["tenant", "sha256"], "state = 2", unique=True)
    _partial("ix_blob_to_look_at", "blob", ["seq"], "state <> 2 OR released <> 0")
    op.create_table(
        "artifact",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("blob_seq", _BIG, nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("cut", sa.Integer(), nullable=False),
        sa.Column("confirmed", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["blob_seq"], ["blob.seq"]),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("evaluation_seq", "attempt", "path"),
    )
    op.create_index("ix_artifact_blob", "artifact", ["blob_seq"], unique=False)
    _partial("ix_artifact_not_confirmed", "artifact", ["evaluation_seq"], "confirmed = 0")


def _partial(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
