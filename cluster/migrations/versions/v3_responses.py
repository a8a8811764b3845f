"""The response cache: answers by the key of their request.

Money is text: SQLite has no exact decimals.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v3"
down_revision = "v2"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "responses",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("made_unix_s", sa.Float, nullable=False),
        sa.Column("size_bytes", sa.Integer, nullable=False),
        sa.Column("saved_usd", sa.String(64)),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    # What is old, and how much there is, is told without reading the answers.
    op.create_index("responses_made", "responses", ["made_unix_s", "size_bytes"])
