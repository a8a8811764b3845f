"""The time seam: the pure core is told the time, tests and the simulator set it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the core knows of time."""

    def now(self) -> float:
        """Seconds on a clock that never goes back (its zero means nothing)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds` of real time."""
        await asyncio.sleep(seconds)


class FakeClock:
    """A clock that moves only when told to; `sleep` moves it and yields once."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self.slept_s: list[float] = []

    def now(self) -> float:
        """Seconds as set."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock does not go back: {seconds}")
        self._now_s += seconds

    async def sleep(self, seconds: float) -> None:
        """Move the clock forward by `seconds` at once."""
        self.slept_s.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)
