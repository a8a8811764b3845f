"""Run many awaitables at once, results in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def map_ordered(
    function: Callable[[T], Awaitable[R]], items: Iterable[T], *, concurrency: int
) -> list[R]:
    """Apply `function` to every item, `concurrency` at a time; results in the items' order.

    Items are taken as slots come free. The first error cancels what runs, waits until it has
    ended, and is raised as it is, not in a group.

    Args:
        function: async function of one item.
        items: any iterable.
        concurrency: the most calls at once.

    Raises:
        ValueError: `concurrency` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    numbered = enumerate(items)
    results: dict[int, R] = {}
    first_error: Exception | None = None

    async def work() -> None:
        nonlocal first_error
        try:
            for number, item in numbered:
                results[number] = await function(item)
        except Exception as error:
            first_error = first_error or error
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except* Exception as errors:
        raise (first_error or errors) from None
    return [results[number] for number in range(len(results))]
