"""`ctx.map`: order, bound, errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from agentcloud.agents import Context
from tests.agents.fakes import ScriptedClient


async def test_results_are_in_order_and_never_more_run_than_asked_for() -> None:
    running = peak = 0
    gates = [asyncio.Event() for _ in range(6)]
    gates[5].set()

    async def work(number: int) -> int:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        if number < 3:
            # The first three end in reverse order.
            await gates[number + 3].wait()
            gates[number + 2].set()
        running -= 1
        return number * 10

    assert await Context(ScriptedClient()).map(work, range(6), concurrency=3) == [
        0, 10, 20, 30, 40, 50
    ]  # fmt: skip
    assert peak == 3


async def test_items_are_taken_only_when_there_is_room() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    async def work(number: int) -> int:
        assert len(taken) == number + 1
        await asyncio.sleep(0)
        return number

    assert await Context(ScriptedClient()).map(work, items(), concurrency=1) == [0, 1, 2]


async def test_the_first_error_cancels_the_rest_and_comes_through_as_it_is() -> None:
    cancelled: list[int] = []

    async def work(number: int) -> None:
        if number == 1:
            await asyncio.sleep(0)
            raise KeyError("one")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    with pytest.raises(KeyError, match="one"):
        await Context(ScriptedClient()).map(work, range(3))
    assert sorted(cancelled) == [0, 2]


async def test_nothing_and_nonsense() -> None:
    async def work(number: int) -> int:
        return number

    ctx = Context(ScriptedClient())
    assert await ctx.map(work, []) == []
    with pytest.raises(ValueError, match="concurrency must be at least 1, not 0"):
        await ctx.map(work, [1], concurrency=0)


async def test_an_iterable_that_raises_comes_through() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    async def work(number: int) -> int:
        return number

    with pytest.raises(LookupError, match="no more"):
        await Context(ScriptedClient()).map(work, items())


async def test_cancelling_the_map_cancels_its_items() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work(number: int) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    mapping = asyncio.create_task(Context(ScriptedClient()).map(work, [1]))
    await started.wait()
    mapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mapping
    assert ended.is_set()
