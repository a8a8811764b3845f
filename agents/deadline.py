"""When an ask or a task should be done."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agentcloud.cluster.clock import Clock

#: What a call is told when its time is over: the scheduler decides what becomes of it.
_LEAST_S = 0.001


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on a clock, or none.

    Attributes:
        clock: the time seam.
        ends_s: the moment, in seconds of the clock; None: no deadline.
    """

    clock: Clock
    ends_s: float | None = None

    def within(self, seconds: float | None) -> Deadline:
        """The sooner of this one and `seconds` from now (None: this one)."""
        if seconds is None:
            return self
        ends_s = self.clock.now() + seconds
        return replace(self, ends_s=ends_s if self.ends_s is None else min(ends_s, self.ends_s))

    def left_s(self) -> float | None:
        """Seconds from now, never zero or less; None: no deadline."""
        return None if self.ends_s is None else max(_LEAST_S, self.ends_s - self.clock.now())

    def has_passed(self) -> bool:
        """Whether the moment has come."""
        return self.ends_s is not None and self.clock.now() >= self.ends_s
