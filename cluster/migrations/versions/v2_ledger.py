"""The ledger: jobs, tasks, steps, and the contents that steps share; paid leases know their step.

Money is text: SQLite has no exact decimals. Contents are the parts of requests, each stored once
under the hash of itself and everything before it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v2"
down_revision = "v1"


def upgrade() -> None:
    """Create the tables, and drop the one that told the version before Alembic did."""
    op.execute("DROP TABLE IF EXISTS agentcloud_schema")
    op.add_column("paid_leases", sa.Column("step", sa.String(64)))
    op.create_index("paid_leases_step", "paid_leases", ["step"])
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("key", sa.String(256), unique=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("record", sa.Text),
        sa.Column("spent_usd", sa.String(64), nullable=False),
        sa.Column("created_unix_s", sa.Float, nullable=False),
        sa.Column("ended_unix_s", sa.Float),
    )
    op.create_table(
        "tasks",
        sa.Column("job_id", sa.String(64), primary_key=True),
        sa.Column("task_id", sa.String(512), primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("extra_used", sa.Integer, nullable=False),
        sa.Column("item", sa.Text),
        sa.Column("line", sa.Text),
        sa.Column("changed_unix_s", sa.Float, nullable=False),
    )
    op.create_table(
        "steps",
        sa.Column("step", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("task_id", sa.String(512), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("settings", sa.String(64)),
        sa.Column("history", sa.String(64)),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("lease_id", sa.String(128)),
        sa.Column("lease_usd", sa.String(64)),
        sa.Column("made_unix_s", sa.Float, nullable=False),
    )
    op.create_index("steps_task", "steps", ["job_id", "task_id"])
    op.create_table(
        "contents",
        sa.Column("hash", sa.String(64), primary_key=True),
        sa.Column("parent", sa.String(64)),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
