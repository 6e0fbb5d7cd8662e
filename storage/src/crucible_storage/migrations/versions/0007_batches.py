"""Batches: their items, counts and dependencies.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-22 12:44:00.000000
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    _evaluations()
    _batches()
    _items()


def _evaluations() -> None:
    op.add_column("evaluation", sa.Column("batch", sa.String(), nullable=True))
    op.add_column("evaluation", sa.Column("blocked", sa.Integer(), nullable=False, server_default="0"))
    _partial("ix_evaluation_batch", "evaluation", ["batch", "state", "seq"], "batch IS NOT NULL")
    op.drop_index("ix_evaluation_waiting", "evaluation")
    waiting = "state = 1 AND not_before IS NULL AND blocked = 0"
    _partial("ix_evaluation_waiting", "evaluation", ["lane", "rank", "seq"], waiting)


def _batches() -> None:
    op.create_table(
        "batch",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("creator", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("header_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("labels", sa.String(), nullable=False),
        sa.Column("start_when_complete", sa.Boolean(), nullable=False),
        sa.Column("items", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("complete_time", sa.BigInteger(), nullable=True),
        sa.Column("cancel_by", sa.String(), nullable=True),
        sa.Column("cancel_reason", sa.String(), nullable=True),
        sa.Column("cancel_time", sa.BigInteger(), nullable=True),
        sa.Column("task", sa.Integer(), nullable=False),
        sa.Column("task_cursor", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_batch_id", "batch", ["id"], unique=True)
    op.create_index("ix_batch_request", "batch", ["tenant", "request_id"], unique=True)
    op.create_index("ix_batch_list", "batch", ["tenant", "seq"], unique=False)
    _partial("ix_batch_task", "batch", ["seq"], "task <> 0")
    op.create_table(
        "batch_count",
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("batch", "kind"),
    )


def _items() -> None:
    op.create_table(
        "batch_item",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("batch", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("run_anyway", sa.Boolean(), nullable=False),
        sa.Column("end_position", sa.BigInteger(), nullable=True),
        sa.Column("end_kind", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("evaluation_seq"),
    )
    op.create_index("ix_batch_item_number", "batch_item", ["batch", "number"], unique=True)
    op.create_index("ix_batch_item_key", "batch_item", ["batch", "key"], unique=True)
    _partial("ix_batch_item_end", "batch_item", ["batch", "end_position"], "end_position IS NOT NULL")
    op.create_table(
        "batch_dependency",
        sa.Column("needed_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["needed_seq"], ["evaluation.seq"]),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("needed_seq", "evaluation_seq"),
    )
    op.create_table(
        "batch_settlement",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("evaluation_seq"),
    )


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=False, sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
