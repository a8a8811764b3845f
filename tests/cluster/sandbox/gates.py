"""Waiting without time: a clock that stops sleepers at a gate, and waiting for a condition."""

import asyncio
from collections.abc import Callable

from agentcloud.cluster.clock import FakeClock


class GatedClock(FakeClock):
    """Every sleep waits until `gate` is set; `asleep` counts those waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.asleep = 0

    async def sleep(self, seconds: float) -> None:
        self.asleep += 1
        try:
            await self.gate.wait()
        finally:
            self.asleep -= 1
        self.advance(seconds)


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else run until `condition` holds; the test's time limit ends a vain wait."""
    while not condition():  # noqa: ASYNC110 - nothing signals what is waited for
        await asyncio.sleep(0)
