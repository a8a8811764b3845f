"""Pure: what a call's prompt costs others: how much longer they wait, behind it, for their own.

An engine reads prompts first come, first served. Where `rate` calls a second come to an endpoint
that has `ahead_s` of prompt work queued, a prompt of `work_s` makes those who come until all of it
is read wait longer: who comes while the queue is read by all of its work, who comes while it is
read itself by half of it on average,

    rate x work_s x (ahead_s + work_s / 2)

seconds altogether, and 1 / (1 - utilization) times that, since meanwhile others come and are read
(the delay cycle of a queue with one server: Kleinrock, Queueing Systems I, 5.8). It grows with the
square of a prompt: one of ten seconds costs others a hundred times what one of a second does. What
a second of theirs is worth is what the policies of those who came lately say on average.
"""

from __future__ import annotations

import math
from typing import Final

#: What came is forgotten by 1/e in this: a burst of some seconds is what makes others wait.
_MEMORY_S: Final = 10.0
#: Of an endpoint that is hardly ever idle the formula would say that others wait for ever.
_MOST_UTILIZED: Final = 0.9


class Burden:
    """The calls of a class of equal endpoints, and the prompt work they bring."""

    __slots__ = ("_at_s", "_calls", "_work_s", "_worth")

    def __init__(self) -> None:
        self._calls = 0.0
        self._worth = 0.0
        self._work_s = 0.0
        self._at_s = 0.0

    def came(self, work_s: float, worth: float, now_s: float) -> None:
        """A call was granted whose prompt takes an endpoint so long, and whose time is worth so."""
        left = self._left(now_s)
        self._calls = self._calls * left + 1.0
        self._worth = self._worth * left + worth
        self._work_s = self._work_s * left + work_s
        self._at_s = now_s

    @property
    def worth(self) -> float:
        """What the time of those who come is worth, relative to one of policy `balanced`."""
        return self._worth / self._calls if self._calls else 1.0

    def weight(self, endpoints: int, now_s: float) -> float:
        """Seconds that others wait for each squared second of work, at one of so many endpoints."""
        if not self._calls:
            return 0.0
        per_s = self._left(now_s) / (_MEMORY_S * endpoints)
        utilization = min(_MOST_UTILIZED, self._work_s * per_s)
        return self._calls * per_s / (1.0 - utilization)

    def _left(self, now_s: float) -> float:
        # A clock that jumps back brings nothing back.
        return math.exp(min(0.0, self._at_s - now_s) / _MEMORY_S)

    def __repr__(self) -> str:
        return f"<Burden {self._calls:.0f} calls, {self._work_s:.3g} s of prompts>"
