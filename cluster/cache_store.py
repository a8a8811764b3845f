"""Where the response cache keeps its answers: SQL, with a bound on their bytes and their age."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    delete,
    func,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from agentcloud.cluster.cache_wire import Entry
from agentcloud.cluster.config_rules import Caching
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sql import WHERE, Statement, cause, open_database, upsert, writing

#: What is too old is removed this often.
TRIM_EVERY_S: Final = 60.0
#: How far below the bound is trimmed, so that not every write has to.
_DOWN_TO: Final = 0.9
#: Rows told in one statement; a database takes only so many values.
_MOST_ROWS: Final = 500

RESPONSES = Table(
    "responses",
    MetaData(),
    Column("key", String(64), primary_key=True),
    Column("made_unix_s", Float, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("saved_usd", String(64)),
    Column("body", LargeBinary, nullable=False),
)


class AnswersLost(Exception):
    """The database cannot be used just now: nothing is found, nothing is kept."""


class Answers(Protocol):
    """What keeps answers; used by several threads, of which one writes."""

    def read(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the answers that are there.

        Raises:
            AnswersLost: it cannot be told.
        """
        ...

    def write(self, entries: Mapping[str, Entry]) -> None:
        """Keep answers (in place of older ones), and remove what is too old or too much.

        Raises:
            AnswersLost: they are not kept.
        """
        ...

    def held(self) -> tuple[int, int] | None:
        """Answers, and their bytes; None: it is not told.

        Raises:
            AnswersLost: it cannot be told.
        """
        ...

    def close(self) -> None:
        """Close its connections."""
        ...


class SqlAnswers:
    """Answers in a table. The oldest go first, used or not: a hit writes nothing."""

    def __init__(
        self,
        engine: Engine,
        *,
        ttl_s: float,
        max_bytes: int,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """Begin with what is there.

        Args:
            engine: of a database of this version.
            ttl_s: what is older is removed.
            max_bytes: of all answers.
            unix_s: the wall clock.
        """
        self._engine = engine
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._unix_s = unix_s
        columns = [column.name for column in RESPONSES.columns]
        self._put = Statement(upsert(RESPONSES, engine, columns[1:]), engine, columns)
        self._drop = Statement(
            delete(RESPONSES).where(RESPONSES.c.key == bindparam("gone", None)), engine
        )
        #: An upper bound, exact after each trim.
        self._bytes = 0
        self._trim_at_s = float("-inf")

    def __repr__(self) -> str:
        return f"<SqlAnswers {self._engine.url!r} at most {self._max_bytes} bytes>"

    def read(self, keys: Sequence[str]) -> dict[str, Entry]:
        """As `Answers.read`."""
        found: dict[str, Entry] = {}
        try:
            with self._engine.connect() as connection:
                for start in range(0, len(keys), _MOST_ROWS):
                    some = keys[start : start + _MOST_ROWS]
                    for row in connection.execute(
                        select(RESPONSES).where(RESPONSES.c.key.in_(some))
                    ):
                        saved = None if row.saved_usd is None else Decimal(row.saved_usd)
                        found[row.key] = Entry(row.made_unix_s, saved, row.body)
        except SQLAlchemyError as error:
            raise AnswersLost(cause(error)) from error
        return found

    def write(self, entries: Mapping[str, Entry]) -> None:
        """As `Answers.write`."""
        rows = [_row(key, entry) for key, entry in entries.items()]
        more = sum(row["size_bytes"] for row in rows)
        now_s = self._unix_s()
        try:
            with writing(self._engine) as connection:
                self._put.run(connection, rows)
                if now_s >= self._trim_at_s or self._bytes + more > self._max_bytes:
                    self._bytes, more = self._trim(connection, now_s), 0
                    self._trim_at_s = now_s + TRIM_EVERY_S
        except SQLAlchemyError as error:
            raise AnswersLost(cause(error)) from error
        self._bytes += more

    def held(self) -> tuple[int, int]:
        """As `Answers.held`."""
        try:
            with self._engine.connect() as connection:
                return self._held(connection)
        except SQLAlchemyError as error:
            raise AnswersLost(cause(error)) from error

    def close(self) -> None:
        """As `Answers.close`."""
        self._engine.dispose()

    def _held(self, connection: Connection) -> tuple[int, int]:
        size = func.coalesce(func.sum(RESPONSES.c.size_bytes), 0)
        count, size_bytes = connection.execute(select(func.count(), size)).one()
        return int(count), int(size_bytes)

    def _trim(self, connection: Connection, now_s: float) -> int:
        """Remove what is too old, then the oldest; the bytes that are left."""
        connection.execute(delete(RESPONSES).where(RESPONSES.c.made_unix_s <= now_s - self._ttl_s))
        _, size_bytes = self._held(connection)
        if size_bytes <= self._max_bytes:
            return size_bytes
        oldest = select(RESPONSES.c.key, RESPONSES.c.size_bytes).order_by(RESPONSES.c.made_unix_s)
        while size_bytes > self._max_bytes * _DOWN_TO:
            gone: list[dict[str, Any]] = []
            for row in connection.execute(oldest.limit(_MOST_ROWS)).all():
                if size_bytes <= self._max_bytes * _DOWN_TO:
                    break
                size_bytes -= row.size_bytes
                gone.append({"gone": row.key})
            if not gone:
                break
            self._drop.run(connection, gone)
        return size_bytes


def open_sql_answers(caching: Caching, store: str | None) -> SqlAnswers:
    """The answers in a database: that of `cache.url`, else that of `store`.

    Raises:
        ConfigError: it cannot be opened or written.
    """
    url = store if caching.url is None else caching.url.get_secret_value()
    try:
        engine = open_database(url, file="responses.db")
    except ConfigError as error:
        if caching.url is None:
            raise
        said = error.message.removeprefix(f"{WHERE}: ")
        raise ConfigError(said, where="fleet.yaml: cache.url") from error
    return SqlAnswers(engine, ttl_s=caching.ttl_s, max_bytes=caching.max_bytes)


def _row(key: str, entry: Entry) -> dict[str, Any]:
    saved = entry.saved_usd
    return {
        "key": key,
        "made_unix_s": entry.made_unix_s,
        "size_bytes": len(entry.body),
        "saved_usd": None if saved is None else format(saved, "f"),
        "body": entry.body,
    }
