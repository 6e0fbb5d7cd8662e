"""The first tables.

Revision ID: 0001
Revises:
Create Date: 2026-11-22 06:54:20.089659
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _only(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("admin", sa.Boolean(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("revoke_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_api_key_sha256", "api_key", ["sha256"], unique=True)

    op.create_table(
        "evaluation",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("creator", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("spec_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("run_spec_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("run_spec_size", sa.Integer(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("limits", sa.LargeBinary(), nullable=False),
        sa.Column("output_limit", sa.BigInteger(), nullable=False),
        sa.Column("labels", sa.String(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("not_before", sa.BigInteger(), nullable=True),
        sa.Column("executor", sa.String(), nullable=True),
        sa.Column("boot_id", sa.String(), nullable=True),
        sa.Column("lease_renewed", sa.BigInteger(), nullable=True),
        sa.Column("lease_expiry", sa.BigInteger(), nullable=True),
        sa.Column("lost_reason", sa.String(), nullable=True),
        sa.Column("cancel_by", sa.String(), nullable=True),
        sa.Column("cancel_reason", sa.String(), nullable=True),
        sa.Column("cancel_time", sa.BigInteger(), nullable=True),
        sa.Column("stdout_bytes", sa.BigInteger(), nullable=False),
        sa.Column("stderr_bytes", sa.BigInteger(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=True),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index(
        "ix_evaluation_delayed",
        "evaluation",
        ["not_before"],
        unique=False,
        **_only("state = 1 AND not_before IS NOT NULL"),
    )
    op.create_index("ix_evaluation_held", "evaluation", ["executor"], unique=False, **_only("state IN (2, 3)"))
    op.create_index("ix_evaluation_id", "evaluation", ["id"], unique=True)
    op.create_index("ix_evaluation_list", "evaluation", ["tenant", "state", "seq"], unique=False)
    op.create_index("ix_evaluation_renewed", "evaluation", ["lease_renewed"], unique=False, **_only("state IN (2, 3)"))
    op.create_index(
        "ix_evaluation_request",
        "evaluation",
        ["tenant", "request_id"],
        unique=True,
        **_only("request_id IS NOT NULL"),
    )
    op.create_index(
        "ix_evaluation_waiting",
        "evaluation",
        ["lane", "rank", "seq"],
        unique=False,
        **_only("state = 1 AND not_before IS NULL"),
    )

    op.create_table(
        "evaluation_count",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "state"),
    )
    op.create_table(
        "executor",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("description", sa.LargeBinary(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "setting",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "event",
        sa.Column("position", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("evaluation_seq", _BIG, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_seq"],
            ["evaluation.seq"],
        ),
        sa.PrimaryKeyConstraint("position"),
    )
    op.create_index("ix_event_evaluation", "event", ["evaluation_seq", "position"], unique=False)

    op.create_table(
        "failed_attempt",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_seq"],
            ["evaluation.seq"],
        ),
        sa.PrimaryKeyConstraint("evaluation_seq", "attempt"),
    )
    op.create_table(
        "label",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_seq"],
            ["evaluation.seq"],
        ),
        sa.PrimaryKeyConstraint("evaluation_seq", "key"),
    )
    op.create_index("ix_label_value", "label", ["tenant", "key", "value", "evaluation_seq"], unique=False)

    op.create_table(
        "output",
        sa.Column("position", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("evaluation_seq", _BIG, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("stream", sa.Integer(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_seq"],
            ["evaluation.seq"],
        ),
        sa.PrimaryKeyConstraint("position"),
    )
    op.create_index("ix_output_stream", "output", ["evaluation_seq", "attempt", "stream", "offset"], unique=True)

    op.create_table(
        "program",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("run_spec", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_seq"],
            ["evaluation.seq"],
        ),
        sa.PrimaryKeyConstraint("evaluation_seq"),
    )
    op.create_table(
        "result",
        sa.Column("evaluation_seq", _BIG, autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["evaluation_seq"],
            ["evaluation.seq"],
        ),
        sa.PrimaryKeyConstraint("evaluation_seq"),
    )


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
