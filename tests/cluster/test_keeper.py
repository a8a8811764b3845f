"""A keeper's task ends when it is told to, also where one cancellation is lost."""

from __future__ import annotations

import asyncio
import sys

from agentcloud.cluster.keeper import end


async def test_a_cancellation_that_is_lost_is_told_again() -> None:
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ran_on = asyncio.Event()

    async def watch() -> None:
        await asyncio.wait_for(answer, 5)
        ran_on.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(watch())
    await asyncio.sleep(0)
    answer.set_result(None)  # just as the cancellation comes
    async with asyncio.timeout(5):
        await end(task, again_s=0.01)
    assert task.cancelled()
    if sys.version_info < (3, 12):
        assert ran_on.is_set(), "this Python loses it, which is what the loop is for"


async def test_a_task_that_failed_or_ended_is_no_error() -> None:
    async def fails() -> None:
        raise ValueError("a bug")

    async def ends() -> None:
        return

    tasks = [asyncio.create_task(fails()), asyncio.create_task(ends())]
    await asyncio.sleep(0)
    await end(*tasks)
    assert all(task.done() for task in tasks)
