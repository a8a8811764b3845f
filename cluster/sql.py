"""SQL databases: opened, brought to this version's schema, written fast.

SQLite in WAL mode (a file of this machine) or PostgreSQL. What a transaction wrote is on the disk
when it ends, also if the machine loses power.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Delete,
    Engine,
    Insert,
    Table,
    Update,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from agentcloud.cluster.config import state_dir
from agentcloud.cluster.errors import ConfigError

#: How errors name the setting that a database comes from.
WHERE: Final = "fleet.yaml: store"
_BUSY_TIMEOUT_S: Final = 10.0
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
#: Any number that nothing else locks by: one process at a time migrates a PostgreSQL.
_LOCK: Final = 0x6167656E74
#: The table by which databases told their version before Alembic did, and its revision.
_LEGACY: Final = "agentcloud_schema", "v1"


def open_database(url: str | None, *, file: str) -> Engine:
    """Open a database and bring its schema to this version.

    SQLite lets one process write at a time, so whoever writes has a file of its own there; a
    PostgreSQL holds the tables of all.

    Args:
        url: as SQLAlchemy's; None: SQLite in this machine's state folder.
        file: the writer's file there, e.g. `ledger.db`; where `url` names a file, this one beside
            it, with its name before it.

    Raises:
        ConfigError: it cannot be opened or written, or is of a newer agentcloud.
    """
    try:
        engine = _engine(url, file)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, OSError) as error:
        raise ConfigError(
            f"cannot be opened ({error}); write e.g. sqlite:////var/lib/agentcloud/store.db, "
            f"install the driver that the URL names, or leave it out",
            where=WHERE,
        ) from error
    where = engine.url.render_as_string(hide_password=True)
    try:
        with writing(engine) as connection:
            _migrate(connection, where)
    except SQLAlchemyError as error:
        engine.dispose()
        raise ConfigError(
            f"cannot use {where} ({cause(error)}); give the scheduler a database that it can "
            f"write, or remove the key",
            where=WHERE,
        ) from error
    except ConfigError:
        engine.dispose()
        raise
    return engine


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that reads before it writes.

    SQLite is told so at its beginning: one that has read cannot become a writer once another has
    written.
    """
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


def cause(error: SQLAlchemyError) -> str:
    """What the database said, one line."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]


class Statement:
    """A statement compiled once: it runs for every batch, and compiling takes longer than SQLite.

    Its values are plain text, numbers and bytes, which no driver wants converted.
    """

    def __init__(
        self, statement: Insert | Update | Delete, engine: Engine, columns: Sequence[str] = ()
    ) -> None:
        compiled = statement.compile(engine, column_keys=list(columns) or None)
        self._sql = str(compiled)
        self._fixed = dict(compiled.params)
        self._order = getattr(compiled, "positiontup", None)

    def run(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each row; not at all without rows."""
        if not rows:
            return
        order = self._order
        if order is None:
            told = [{**self._fixed, **row} for row in rows]
            connection.exec_driver_sql(self._sql, told)
        else:
            fixed = self._fixed
            values = [
                tuple(row[name] if name in row else fixed[name] for name in order) for row in rows
            ]
            connection.exec_driver_sql(self._sql, values)


def insert_once(table: Table, engine: Engine) -> Insert:
    """Insert rows that are not there yet; those that are stay as they are."""
    statement: Insert = _dialect(engine).insert(table).on_conflict_do_nothing()
    return statement


def upsert(table: Table, engine: Engine, columns: Sequence[str]) -> Insert:
    """Insert rows, or set these columns of those that are there."""
    insert = _dialect(engine).insert(table)
    statement: Insert = insert.on_conflict_do_update(
        index_elements=[column.name for column in table.primary_key.columns],
        set_={name: insert.excluded[name] for name in columns},
    )
    return statement


def _dialect(engine: Engine) -> Any:
    return postgresql if engine.dialect.name == "postgresql" else sqlite


def _engine(url: str | None, file: str) -> Engine:
    if url is None:
        folder = state_dir()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file
        engine = create_engine(f"sqlite:///{path}")
    else:
        parsed = make_url(url)
        name = parsed.get_backend_name()
        if name not in ("sqlite", "postgresql"):
            raise ConfigError(f"{name} is neither sqlite nor postgresql", where=WHERE)
        if name == "sqlite" and parsed.database and file != "store.db":
            given = Path(parsed.database)
            parsed = parsed.set(database=str(given.with_name(f"{given.stem}-{file}")))
        # A server that was restarted has closed every connection of the pool.
        engine = create_engine(parsed, pool_pre_ping=name == "postgresql")
        if name == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions itself, late and never before a change of the schema.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode=WAL")
    # WAL's usual `normal` may lose the last commits with the machine's power.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection, where: str) -> None:
    """Bring the schema to this version, all of it or nothing; refuse a newer one."""
    # Here, since it takes as long to import as half of Ray, in every process that knows a table.
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    scripts = ScriptDirectory(str(_MIGRATIONS))
    known = MigrationContext.configure(connection)
    found = known.get_current_revision()
    table, revision = _LEGACY
    if found is None and inspect(connection).has_table(table):
        known.stamp(scripts, revision)
        found = revision
    if found is not None and found not in {each.revision for each in scripts.walk_revisions()}:
        raise ConfigError(
            f"{where} was written by a newer agentcloud (its schema is {found}, this one knows "
            f"{scripts.get_current_head()}); upgrade agentcloud, or name another database",
            where=WHERE,
        )

    def steps(revision: Any, _context: Any) -> Any:
        return scripts._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
