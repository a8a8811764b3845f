"""The schema on real SQLite and PostgreSQL: old ones are brought forward, newer ones refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sql import open_database

#: What the first version wrote, before the schema was Alembic's.
FIRST = """
CREATE TABLE agentcloud_schema (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE fleets (fleet VARCHAR(64) NOT NULL, began_unix_s FLOAT NOT NULL, PRIMARY KEY (fleet));
CREATE TABLE budgets (fleet VARCHAR(64) NOT NULL, path VARCHAR(1024) NOT NULL,
  limit_usd VARCHAR(64), spent_usd VARCHAR(64) NOT NULL, unknown_usd VARCHAR(64) NOT NULL,
  PRIMARY KEY (fleet, path));
CREATE TABLE paid_leases (lease_id VARCHAR(128) NOT NULL, fleet VARCHAR(64) NOT NULL,
  call_id VARCHAR(256) NOT NULL, attempt INTEGER NOT NULL, holder VARCHAR(256) NOT NULL,
  endpoint VARCHAR(256) NOT NULL, budget VARCHAR(1024) NOT NULL,
  reserved_usd VARCHAR(64) NOT NULL, granted_unix_s FLOAT NOT NULL,
  expires_unix_s FLOAT NOT NULL, state VARCHAR(16) NOT NULL, cost_usd VARCHAR(64),
  ended_unix_s FLOAT, PRIMARY KEY (lease_id));
CREATE INDEX paid_leases_open ON paid_leases (fleet, state);
INSERT INTO agentcloud_schema VALUES (1);
INSERT INTO budgets VALUES ('one', '[]', NULL, '0.25', '0')
"""


def test_an_older_database_is_brought_forward_with_what_it_holds(database: str) -> None:
    old = create_engine(database)
    with old.begin() as connection:
        for statement in FIRST.split(";"):
            connection.execute(text(statement))
    old.dispose()
    engine = open_database(database, file="store.db")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT spent_usd FROM budgets")).scalar() == "0.25"
        assert connection.execute(text("SELECT step FROM paid_leases")).all() == []
        tables = set(inspect(connection).get_table_names())
    assert {"jobs", "tasks", "steps", "contents"} <= tables
    assert "agentcloud_schema" not in tables
    engine.dispose()
    open_database(database, file="store.db").dispose()  # nothing is left to do


def test_a_newer_database_is_refused_in_one_line(database: str) -> None:
    engine = open_database(database, file="store.db")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v99'"))
    engine.dispose()
    with pytest.raises(ConfigError, match=r"newer agentcloud .*v99.*upgrade") as caught:
        open_database(database, file="store.db")
    assert "\n" not in str(caught.value)


def test_two_processes_that_open_an_empty_database_at_once(database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for engine in pool.map(lambda _: open_database(database, file="store.db"), range(4)):
            with engine.connect() as connection:
                assert connection.execute(text("SELECT count(*) FROM steps")).scalar() == 0
            engine.dispose()


def test_on_sqlite_every_writer_has_a_file_of_its_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'main.db'}"
    for file in ("store.db", "ledger.db"):
        open_database(url, file=file).dispose()
    assert {each.name for each in tmp_path.glob("*.db")} == {"main.db", "main-ledger.db"}
