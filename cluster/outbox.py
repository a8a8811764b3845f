"""A queue that hands out everything it holds at once, waiting a little for more when busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: The longest that an item waits for company.
COALESCE_S = 0.002


class Outbox(Generic[T]):
    """Many writers, one reader.

    The reader gets an item at once when nothing else is in flight, and waits up to 2 ms for
    company when there is: a message costs the same for one item as for a hundred.
    """

    def __init__(self) -> None:
        self._items: list[T] = []
        self._ready = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item; dropped once closed."""
        if not self._closed:
            self._items.append(item)
            self._ready.set()

    def close(self) -> None:
        """End the reader's iteration after what is left."""
        self._closed = True
        self._ready.set()

    async def drain(self, in_flight: Callable[[], int]) -> AsyncIterator[list[T]]:
        """Batches in order, until closed.

        Args:
            in_flight: how many more items may come soon; 0 or 1 is idle.
        """
        while True:
            await self._ready.wait()
            if in_flight() > 1 and not self._closed:
                await asyncio.sleep(COALESCE_S)
            self._ready.clear()
            batch, self._items = self._items, []
            if batch:
                yield batch
            if self._closed and not self._items:
                return
