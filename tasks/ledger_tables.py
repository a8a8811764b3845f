"""The ledger's tables and the statements that write them."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

from agentcloud.cluster.sql import Statement, insert_once, upsert

META = MetaData()
JOBS = Table(
    "jobs",
    META,
    Column("job_id", String(64), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("key", String(256), unique=True),
    Column("spec", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("record", Text),
    Column("spent_usd", String(64), nullable=False),
    Column("created_unix_s", Float, nullable=False),
    Column("ended_unix_s", Float),
)
TASKS = Table(
    "tasks",
    META,
    Column("job_id", String(64), primary_key=True),
    Column("task_id", String(512), primary_key=True),
    Column("place", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("extra_used", Integer, nullable=False),
    Column("item", Text),
    Column("line", Text),
    Column("changed_unix_s", Float, nullable=False),
)
STEPS = Table(
    "steps",
    META,
    Column("step", String(64), primary_key=True),
    Column("job_id", String(64), nullable=False),
    Column("task_id", String(512), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(256), nullable=False),
    Column("settings", String(64)),
    Column("history", String(64)),
    Column("answer", LargeBinary, nullable=False),
    Column("lease_id", String(128)),
    Column("lease_usd", String(64)),
    Column("made_unix_s", Float, nullable=False),
)
CONTENTS = Table(
    "contents",
    META,
    Column("hash", String(64), primary_key=True),
    Column("parent", String(64)),
    Column("body", LargeBinary, nullable=False),
)


class Statements:
    """Everything that is written many times a second, compiled for one database."""

    def __init__(self, engine: Engine) -> None:
        self.content = Statement(insert_once(CONTENTS, engine), engine, _names(CONTENTS))
        self.step = Statement(insert_once(STEPS, engine), engine, _names(STEPS))
        counts = ["state", "attempts", "extra_used", "changed_unix_s"]
        start = upsert(TASKS, engine, [*counts, "item"])
        self.start = Statement(start, engine, [n for n in _names(TASKS) if n != "line"])
        end = upsert(TASKS, engine, [*counts, "line"])
        self.end = Statement(end, engine, [n for n in _names(TASKS) if n != "item"])


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]
