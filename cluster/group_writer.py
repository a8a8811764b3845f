"""A thread that writes: what comes while it writes goes into the next transaction."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

#: A write that failed (disk full, database gone) is tried again after this; meanwhile nothing that
#: must be on disk first goes on.
RETRY_S: Final = 0.5

T = TypeVar("T")

log = structlog.get_logger()


def end_process() -> None:
    """End this process as a crash would."""
    os._exit(1)


class GroupWriter(Generic[T]):
    """Group commit: everything that was put is written in order, and then told.

    `done` callbacks run in the writer's thread, after their item is on the disk.

    Args:
        write: writes several items in one transaction. The second argument: an earlier write of
            them failed; a lost connection may have hidden its success.
        name: of the thread, and in the log.
        on_bug: called where `write` raises what no waiting mends.
    """

    def __init__(
        self,
        write: Callable[[Sequence[T], bool], None],
        *,
        name: str,
        on_bug: Callable[[], None] = end_process,
    ) -> None:
        self._on_bug = on_bug
        self._write = write
        self._name = name
        self._ready = threading.Condition()
        self._queue: list[tuple[T, Callable[[], None]]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T, done: Callable[[], None]) -> None:
        """Have an item written; returns at once."""
        with self._ready:
            self._queue.append((item, done))
            self._ready.notify()

    def close(self) -> None:
        """Write what is there, then end."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def __repr__(self) -> str:
        return f"<{self._name} queued={len(self._queue)}>"

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            # Whoever waits for its writes would wait for ever; a process that ended is restarted.
            log.exception("the writer failed by a bug, its process ends", writer=self._name)
            self._on_bug()

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                queue, self._queue = self._queue, []
            if not queue:
                return
            if self._written([item for item, _ in queue]):
                for _, done in queue:
                    done()

    def _written(self, items: Sequence[T]) -> bool:
        failures = 0
        while True:
            try:
                self._write(items, failures > 0)
            except SQLAlchemyError as error:
                failures += 1
                log.error(
                    "not written, what must be on disk first waits",
                    writer=self._name,
                    why=str(error),
                    failures=failures,
                )
                with self._ready:
                    if self._closed:
                        return False
                    self._ready.wait(RETRY_S)
            else:
                return True
