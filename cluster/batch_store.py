"""What was sent by Message Batches and what came back, on disk: SQLite, one file a batcher.

A batch and its calls are written before the batch is sent, results before they are delivered; so
a batcher that starts again goes on polling and sends nothing twice. The file is locked while its
batcher lives; a second one on the machine (another cluster of the same user) takes the next file.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)

from agentcloud.cluster.errors import ConfigError

T = TypeVar("T")

_MOST_FILES: Final = 64
_META = MetaData()
_BATCHES = Table(
    "batches",
    _META,
    Column("key", String, primary_key=True),
    Column("account", String, nullable=False),
    Column("batch_id", String),
    Column("requests", Integer, nullable=False),
    Column("sent_unix_s", Float, nullable=False),
)
_CALLS = Table(
    "batched_calls",
    _META,
    Column("custom_id", String, primary_key=True),
    Column("batch_key", String, nullable=False, index=True),
    Column("ask_id", String, nullable=False),
    Column("holder", String, nullable=False),
    Column("session", String, nullable=False),
    Column("account", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("body", LargeBinary),
    Column("ended", Boolean, nullable=False, default=False),
    Column("ended_unix_s", Float),
    Column("took_s", Float),
    Column("message", LargeBinary),
)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch that has not ended; `batch_id` is None until the API's answer came."""

    key: str
    account: str
    batch_id: str | None
    requests: int
    sent_unix_s: float


@dataclass(frozen=True, slots=True)
class CallRow:
    """A call of a batch; its body and its message stay on disk."""

    custom_id: str
    batch_key: str
    ask_id: str
    holder: str
    session: str
    account: str
    endpoint: str
    digest: str
    ended: bool
    ended_unix_s: float | None
    took_s: float | None


class BatchStore:
    """The file; every method is one transaction, done in a thread of its own."""

    def __init__(self, path: Path) -> None:
        """Open the file, or the next free one.

        Raises:
            ConfigError: there can be none.
        """
        self.path, self._lock = _locked(path.expanduser())
        self._engine = create_engine(f"sqlite:///{self.path}")
        event.listen(self._engine, "connect", _on_connect)
        _META.create_all(self._engine)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-store")

    def __repr__(self) -> str:
        return f"BatchStore({self.path})"

    async def load(self) -> tuple[list[BatchRow], list[CallRow]]:
        """All batches that have not ended, and all calls that nobody has taken yet."""

        def work(connection: Connection) -> tuple[list[BatchRow], list[CallRow]]:
            batches = [BatchRow(*row) for row in connection.execute(select(_BATCHES))]
            names = CallRow.__slots__
            columns = [_CALLS.c[name] for name in names]
            return batches, [CallRow(*row) for row in connection.execute(select(*columns))]

        return await self._in_transaction(work)

    async def begin(self, batch: BatchRow, calls: Iterable[tuple[CallRow, bytes]]) -> None:
        """A batch is about to be sent."""
        names = CallRow.__slots__
        rows = [{name: getattr(call, name) for name in names} | {"body": b} for call, b in calls]
        row = {name: getattr(batch, name) for name in BatchRow.__slots__}

        def work(connection: Connection) -> None:
            connection.execute(insert(_BATCHES), row)
            connection.execute(insert(_CALLS), rows)

        await self._in_transaction(work)

    async def bodies(self, key: str) -> list[tuple[str, bytes]]:
        """Custom id and body of each call of a batch that was not sent for certain."""
        query = select(_CALLS.c.custom_id, _CALLS.c.body).where(_CALLS.c.batch_key == key)

        def work(connection: Connection) -> list[tuple[str, bytes]]:
            return [(row[0], row[1]) for row in connection.execute(query) if row[1] is not None]

        return await self._in_transaction(work)

    async def sent(self, key: str, batch_id: str) -> None:
        """The API has a batch; the bodies are not needed any more."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(_BATCHES).where(_BATCHES.c.key == key).values(batch_id=batch_id)
            )
            connection.execute(update(_CALLS).where(_CALLS.c.batch_key == key).values(body=None))

        await self._in_transaction(work)

    async def answered(
        self, messages: Iterable[tuple[str, bytes]], took_s: float | None, now_unix_s: float
    ) -> None:
        """Keep answers until somebody has them."""
        rows = [{"id": custom_id, "message": message} for custom_id, message in messages]
        if not rows:
            return
        change = (
            update(_CALLS)
            .where(_CALLS.c.custom_id == bindparam("id"))
            .values(
                message=bindparam("message"), ended=True, ended_unix_s=now_unix_s, took_s=took_s
            )
        )
        await self._in_transaction(lambda connection: connection.execute(change, rows))

    async def message(self, custom_id: str) -> bytes | None:
        """A kept answer."""
        query = select(_CALLS.c.message).where(_CALLS.c.custom_id == custom_id)
        return await self._in_transaction(lambda connection: connection.scalar(query))

    async def give(self, custom_id: str, ask_id: str, holder: str, session: str) -> None:
        """A call belongs to another process now."""
        change = (
            update(_CALLS)
            .where(_CALLS.c.custom_id == custom_id)
            .values(ask_id=ask_id, holder=holder, session=session)
        )
        await self._in_transaction(lambda connection: connection.execute(change))

    async def forget_calls(self, custom_ids: Collection[str]) -> None:
        """Calls are over: delivered, or given up."""
        if custom_ids:
            drop = delete(_CALLS).where(_CALLS.c.custom_id == bindparam("id"))
            rows = [{"id": custom_id} for custom_id in custom_ids]
            await self._in_transaction(lambda connection: connection.execute(drop, rows))

    async def forget_batch(self, key: str) -> None:
        """A batch has ended; calls of it whose answers are kept stay."""

        def work(connection: Connection) -> None:
            connection.execute(delete(_BATCHES).where(_BATCHES.c.key == key))
            connection.execute(
                delete(_CALLS).where(_CALLS.c.batch_key == key, _CALLS.c.ended.is_(False))
            )

        await self._in_transaction(work)

    def close(self) -> None:
        """Let go of the file."""
        self._thread.shutdown()
        self._engine.dispose()
        self._lock.close()

    async def _in_transaction(self, work: Callable[[Connection], T]) -> T:
        def run() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def _locked(path: Path) -> tuple[Path, IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in range(_MOST_FILES):
            here = path.with_stem(f"{path.stem}-{number}") if number else path
            lock = here.with_suffix(f"{here.suffix}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            return here, lock
    except OSError as error:
        raise ConfigError(
            f"cannot use {path} ({error.strerror or error}); name another file",
            where="fleet.yaml: batch.store",
        ) from None
    raise ConfigError(
        f"{_MOST_FILES} batchers use {path} and the files beside it; name another file",
        where="fleet.yaml: batch.store",
    )


def _on_connect(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    # A power cut must not make us forget a batch that was sent.
    connection.execute("PRAGMA synchronous=FULL")
