"""One alarm: which series, how it began and ended, and its evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from agentcloud.cluster.baselines import Compared


class Measure(StrEnum):
    """What is watched."""

    TTFT = "ttft_s"
    SPEED = "tokens_per_s"
    COST = "cost_per_task_usd"
    ERRORS = "error_rate"
    INVALID = "invalid_rate"

    @property
    def is_rate(self) -> bool:
        """Whether it is a share of calls."""
        return self in (Measure.ERRORS, Measure.INVALID)


class SeriesKey(NamedTuple):
    """One series."""

    endpoint: str
    kind: str
    measure: Measure


class Ended(StrEnum):
    """How an alarm ended."""

    BACK = "back to normal"
    NEW_NORMAL = "the new normal"
    SILENT = "no more calls"


@dataclass(slots=True)
class Alarm:
    """One episode of a change; times are those of the injected clock, seconds.

    Attributes:
        shown: the evidence, values in the measure's own unit (seconds, tokens/s, USD, a share).
        since_s: start of the first window that shows the change.
        score: of the test, with `threshold` which it reached.
    """

    alarm_id: str
    key: SeriesKey
    shown: Compared
    since_s: float
    raised_s: float
    score: float
    threshold: float
    ended_s: float | None = None
    ended: Ended | None = None

    def as_dict(self, now_s: float, wall_s: float) -> dict[str, Any]:
        """JSON-able; times as seconds since 1970, `wall_s` being now."""

        def at(time_s: float | None) -> float | None:
            return None if time_s is None else round(wall_s - (now_s - time_s), 3)

        shown = self.shown
        return {
            "id": self.alarm_id,
            "endpoint": self.key.endpoint,
            "kind": self.key.kind,
            "measure": str(self.key.measure),
            "active": self.ended is None,
            "since": at(self.since_s),
            "raised": at(self.raised_s),
            "ended": at(self.ended_s),
            "how_it_ended": None if self.ended is None else str(self.ended),
            "evidence": {
                "baseline": shown.baseline,
                "spread": shown.spread,
                "baseline_windows": shown.baseline_windows,
                "observed": shown.observed,
                "ratio": shown.ratio,
                "windows": shown.windows,
                "calls": shown.calls,
                "score": self.score,
                "threshold": self.threshold,
            },
        }

    def __str__(self) -> str:
        """One line for people."""
        shown, measure = self.shown, self.key.measure
        of = " and ".join(part for part in (self.key.endpoint, self.key.kind) if part)
        return (
            f"{measure} of {of} is {shown.ratio:.2f} times worse: {shown.observed:.4g} against "
            f"{shown.baseline:.4g}, over {shown.windows} windows of {shown.calls} calls"
        )


def in_unit(shown: Compared, measure: Measure) -> Compared:
    """Logarithms back to what was measured; time per token to tokens per second."""
    if measure.is_rate:
        return shown
    sign = -1.0 if measure is Measure.SPEED else 1.0
    return Compared(
        math.exp(sign * shown.baseline),
        shown.spread,
        shown.baseline_windows,
        math.exp(sign * shown.observed),
        shown.ratio,
        shown.windows,
        shown.calls,
    )
