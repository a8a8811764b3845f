"""Who refers to a content, told without reading every step: jobs can be forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v4"
down_revision = "v3"


def upgrade() -> None:
    """Create the indexes."""
    op.create_index("steps_settings", "steps", ["settings"])
    op.create_index("steps_history", "steps", ["history"])
    # Most contents begin a conversation: every step would pay for an entry that nobody looks up.
    some = sa.text("parent IS NOT NULL")
    op.create_index(
        "contents_parent", "contents", ["parent"], sqlite_where=some, postgresql_where=some
    )
