"""The scheduler's memory: fleets, budgets, paid leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "fleets",
        sa.Column("fleet", sa.String(64), primary_key=True),
        sa.Column("began_unix_s", sa.Float, nullable=False),
    )
    op.create_table(
        "budgets",
        sa.Column("fleet", sa.String(64), primary_key=True),
        sa.Column("path", sa.String(1024), primary_key=True),
        sa.Column("limit_usd", sa.String(64)),
        sa.Column("spent_usd", sa.String(64), nullable=False),
        sa.Column("unknown_usd", sa.String(64), nullable=False),
    )
    op.create_table(
        "paid_leases",
        sa.Column("lease_id", sa.String(128), primary_key=True),
        sa.Column("fleet", sa.String(64), nullable=False),
        sa.Column("call_id", sa.String(256), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("holder", sa.String(256), nullable=False),
        sa.Column("endpoint", sa.String(256), nullable=False),
        sa.Column("budget", sa.String(1024), nullable=False),
        sa.Column("reserved_usd", sa.String(64), nullable=False),
        sa.Column("granted_unix_s", sa.Float, nullable=False),
        sa.Column("expires_unix_s", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cost_usd", sa.String(64)),
        sa.Column("ended_unix_s", sa.Float),
    )
    op.create_index("paid_leases_open", "paid_leases", ["fleet", "state"])
