"""Tenants with quotas and what they use, pauses of the queue, dead letters.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-22 12:48:00.000000
"""

import sqlalchemy as sa
from alembic import op

from crucible.evaluation.v1 import evaluation_pb2 as pb

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NOT_RETRIED = sa.text("retried_as IS NULL")
_UNDER_WAY = sa.text("state IN (2, 3) AND count > 0")
_NOT_PLAIN = sa.text("weight <> 1 OR max_running > 0")
_FAILED = 5
_PAGE = 1000


def upgrade() -> None:
    """Brings the schema from the revision before to this one."""
    _create()
    _enter_tenants()
    _enter_dead_letters()


def _create() -> None:
    numbers = ("max_running", "max_queued", "evaluations_per_day", "cpu_seconds_per_day", "max_stored_bytes")
    op.create_table(
        "tenant",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False),
        sa.Column("max_priority", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in numbers),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_index("ix_tenant_not_plain", "tenant", ["tenant"], sqlite_where=_NOT_PLAIN, postgresql_where=_NOT_PLAIN)
    op.create_index(
        "ix_evaluation_count_running",
        "evaluation_count",
        ["tenant"],
        sqlite_where=_UNDER_WAY,
        postgresql_where=_UNDER_WAY,
    )
    op.create_table(
        "tenant_use",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("evaluations", sa.BigInteger(), nullable=False),
        sa.Column("cpu_micros", sa.BigInteger(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "day"),
    )
    op.create_table(
        "queue_pause",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("paused_by", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_table(
        "dead_letter",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("evaluation_seq", _BIG, nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("retried_as", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["evaluation_seq"], ["evaluation.seq"]),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_dead_letter_evaluation", "dead_letter", ["evaluation_seq"], unique=True)
    op.create_index("ix_dead_letter_tenant", "dead_letter", ["tenant", "seq"])
    op.create_index(
        "ix_dead_letter_open", "dead_letter", ["seq"], sqlite_where=_NOT_RETRIED, postgresql_where=_NOT_RETRIED
    )


def _enter_tenants() -> None:
    """Everybody who has a key or an evaluation; what they created and store is counted once, here."""
    op.execute(
        """
        INSERT INTO tenant (tenant, weight, max_priority, max_running, max_queued, evaluations_per_day,
                            cpu_seconds_per_day, max_stored_bytes, create_time)
        SELECT tenant, 1, 100, 0, 0, 0, 0, 0, min(create_time) FROM (
            SELECT tenant, create_time FROM api_key UNION ALL SELECT tenant, create_time FROM evaluation
        ) AS seen GROUP BY tenant
        """
    )
    # Not the output of an attempt under way: that is counted when the attempt ends.
    op.execute(
        """
        INSERT INTO tenant_use (tenant, day, evaluations, cpu_micros, stored_bytes)
        SELECT tenant, 0, sum(one), 0, sum(size) FROM (
            SELECT tenant, 1 AS one, run_spec_size AS size FROM evaluation
            UNION ALL
            SELECT o.tenant, 0, o.size FROM output AS o JOIN evaluation AS e ON e.seq = o.evaluation_seq
            WHERE NOT (e.state IN (2, 3) AND e.attempt = o.attempt)
        ) AS stored GROUP BY tenant
        """
    )


def _enter_dead_letters() -> None:
    """Those that ended before as infrastructure failures, in the order of creation."""
    connection = op.get_bind()
    page = sa.text(
        """
        SELECT e.seq, e.tenant, e.end_time, r.result FROM evaluation AS e JOIN result AS r ON r.evaluation_seq = e.seq
        WHERE e.state = :state AND e.seq > :after ORDER BY e.seq LIMIT :limit
        """
    )
    enter = sa.text(
        "INSERT INTO dead_letter (evaluation_seq, tenant, reason, time) VALUES (:seq, :tenant, :reason, :time)"
    )
    after = 0
    while rows := connection.execute(page, {"state": _FAILED, "after": after, "limit": _PAGE}).fetchall():
        after = rows[-1].seq
        for row in rows:
            termination = pb.Evaluation.FromString(bytes(row.result)).termination
            if termination.WhichOneof("kind") == "infrastructure_failure":
                reason = termination.infrastructure_failure.reason
                connection.execute(
                    enter, {"seq": row.seq, "tenant": row.tenant, "reason": reason, "time": row.end_time}
                )


def downgrade() -> None:
    """There is no way back: restore a backup instead."""
    raise NotImplementedError("this schema cannot be downgraded; restore a backup")
