"""A thread that writes to the store: what comes while it writes goes into the next transaction."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from agentcloud.cluster.journal import Batch, merged
from agentcloud.cluster.store import Store

#: A write that failed (disk full, database gone) is tried again after this; meanwhile no paid
#: lease reaches its holder, and calls that cost nothing go on.
RETRY_S: Final = 0.5

log = structlog.get_logger()


class StoreWriter:
    """Group commit: everything that was put is written in order, and then told.

    `done` callbacks run in the writer's thread, after their batch is on the disk.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ready = threading.Condition()
        self._queue: list[tuple[Batch, Callable[[], None]]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, batch: Batch, done: Callable[[], None]) -> None:
        """Have a batch written; returns at once."""
        with self._ready:
            self._queue.append((batch, done))
            self._ready.notify()

    def close(self) -> None:
        """Write what is there, then end."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()
        self._store.close()

    def __repr__(self) -> str:
        return f"<StoreWriter queued={len(self._queue)}>"

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                queue, self._queue = self._queue, []
            if not queue:
                return
            self._write(merged(batch for batch, _ in queue))
            for _, done in queue:
                done()

    def _write(self, batch: Batch) -> None:
        failures = 0
        while True:
            try:
                self._store.write(batch, again=failures > 0)
            except SQLAlchemyError as error:
                failures += 1
                log.error(
                    "the store was not written, paid calls wait", why=str(error), failures=failures
                )
                with self._ready:
                    if self._closed:
                        return
                    self._ready.wait(RETRY_S)
            else:
                return
