"""Pure: windows of one series and what they are compared with (the formulae: `change.py`)."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Protocol, TypeVar

from agentcloud.cluster.change import (
    BASELINE_WINDOWS,
    LEAST_WINDOWS,
    Past,
    Steps,
    level_ratio,
    past_rate,
    rate_ratio,
    trimmed,
)

#: Calls of a window that are kept; of more, a uniform sample (reservoir).
WINDOW_SAMPLE: Final = 200
_LEAST_USABLE: Final = 5
#: Residuals beyond so many standard deviations teach as much as one there.
_CLIP_DEVIATIONS: Final = 4.0
#: Logarithm of a change that is large anyhow.
_MUCH: Final = math.log(2.0)


@dataclass(frozen=True, slots=True)
class Effect:
    """The least changes that matter.

    Attributes:
        ratio: of levels, e.g. 1.2: a fifth slower or dearer.
        rate_ratio: of rates, together with
        rate_step: whichever is more.
    """

    ratio: float = 1.2
    rate_ratio: float = 2.0
    rate_step: float = 0.03


@dataclass(frozen=True, slots=True)
class Compared:
    """What windows show against the baseline, in the series' own unit.

    Attributes:
        baseline: median over past windows (of a rate: its mean).
        spread: typical factor between windows, e.g. 1.08 (of a rate: its standard deviation).
        baseline_windows: how many past windows that is.
        observed: the same of the windows in question, load not taken off.
        ratio: observed against expected at the same load and size; above 1 is worse.
        windows: the windows in question.
        calls: their calls or tasks.
    """

    baseline: float
    spread: float
    baseline_windows: int
    observed: float
    ratio: float
    windows: int
    calls: int


W = TypeVar("W")


class Baseline(Protocol[W]):
    """Windows of one series, and what is normal."""

    @property
    def filled(self) -> int:
        """Calls in the open window."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it has seen enough to judge."""
        ...

    def close(self) -> W:
        """End the open window."""
        ...

    def ratios(self, window: W, effect: Effect) -> tuple[float, float] | None:
        """Log-likelihood ratios of worse (by the least that matters, by much) to as before.

        None: no verdict.
        """
        ...

    def learn(self, window: W) -> None:
        """A window was normal."""
        ...

    def compare(self, windows: list[W]) -> Compared:
        """What windows show."""
        ...

    def restart(self, windows: list[W]) -> None:
        """These windows are the new normal."""
        ...


@dataclass(slots=True)
class LevelWindow:
    """One window of levels: its calls as (log y, load, size), all larger when worse."""

    calls: list[tuple[float, int, int]] = field(default_factory=list)
    seen: int = 0
    value: float | None = None
    error2: float = 0.0
    middle: float = 0.0


class LevelBaseline:
    """Baseline of a time or a cost."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._steps = Steps()
        self._past = Past()
        self._middles: deque[float] = deque(maxlen=BASELINE_WINDOWS)
        self._open = LevelWindow()
        self._call2 = 0.25

    def __repr__(self) -> str:
        return f"<LevelBaseline windows={len(self._past.values)} open={self._open.seen}>"

    @property
    def filled(self) -> int:
        """As `Baseline.filled`."""
        return self._open.seen

    @property
    def is_ready(self) -> bool:
        """As `Baseline.is_ready`."""
        return len(self._past.values) >= LEAST_WINDOWS

    def add(self, log_y: float, load: int, size: int) -> None:
        """Take one call in."""
        window = self._open
        window.seen += 1
        if len(window.calls) < WINDOW_SAMPLE:
            window.calls.append((log_y, load, size))
        elif (place := self._rng.randrange(window.seen)) < WINDOW_SAMPLE:
            window.calls[place] = (log_y, load, size)

    def close(self) -> LevelWindow:
        """As `Baseline.close`."""
        window, self._open = self._open, LevelWindow()
        window.middle = median(y for y, _, _ in window.calls)
        residuals = [
            y - expected
            for y, load, size in window.calls
            if (expected := self._steps.expected(load, size)) is not None
        ]
        # A window of loads that are mostly new says how it is there, not whether it is worse.
        if len(residuals) >= max(_LEAST_USABLE, len(window.calls) / 2):
            window.value, window.error2 = trimmed(residuals)
        return window

    def ratios(self, window: LevelWindow, effect: Effect) -> tuple[float, float] | None:
        """As `Baseline.ratios`."""
        if window.value is None or not self.is_ready:
            return None
        middle, spread2, long_run2 = self._past.scale2()
        known = [
            call for call in window.calls if self._steps.expected(call[1], call[2]) is not None
        ]
        unsure2 = self._steps.variance(known, self._call2, spread2) if known else 0.0
        unsure2 += 1.57 * long_run2 / len(self._past.values)  # of a median: pi / 2
        deviation = window.value - middle - math.sqrt(unsure2)
        sigma2 = max(long_run2, window.error2)
        least = math.log(effect.ratio)
        much = max(2.0 * least, _MUCH)
        return level_ratio(deviation, least, sigma2), level_ratio(deviation, much, sigma2)

    def learn(self, window: LevelWindow) -> None:
        """As `Baseline.learn`."""
        if window.value is not None:
            self._past.add(window.value, window.error2)
            self._middles.append(window.middle)
            of_call = window.error2 * len(window.calls)
            self._call2 += 0.1 * (min(of_call, 10.0 * self._call2) - self._call2)
        self._steps.learn(window.calls, _CLIP_DEVIATIONS * math.sqrt(self._call2) + 0.5)

    def compare(self, windows: list[LevelWindow]) -> Compared:
        """As `Baseline.compare`; levels are logarithms still."""
        middle, spread2, _ = self._past.scale2()
        values = [window.value for window in windows if window.value is not None]
        usual = median(self._middles)
        return Compared(
            baseline=usual,
            spread=math.exp(math.sqrt(spread2)),
            baseline_windows=len(self._past.values),
            observed=median(window.middle for window in windows) if windows else usual,
            ratio=math.exp(median(values) - middle) if values else 1.0,
            windows=len(windows),
            calls=sum(window.seen for window in windows),
        )

    def restart(self, windows: list[LevelWindow]) -> None:
        """As `Baseline.restart`."""
        self._past = Past()
        self._middles.clear()
        for window in windows:
            self.learn(window)


@dataclass(slots=True)
class RateWindow:
    """One window of a rate: `bad` of `seen`."""

    bad: int = 0
    seen: int = 0


class RateBaseline:
    """Baseline of a rate."""

    def __init__(self) -> None:
        self._past: deque[tuple[int, int]] = deque(maxlen=BASELINE_WINDOWS)
        self._open = RateWindow()

    def __repr__(self) -> str:
        return f"<RateBaseline windows={len(self._past)} open={self._open.seen}>"

    @property
    def filled(self) -> int:
        """As `Baseline.filled`."""
        return self._open.seen

    @property
    def is_ready(self) -> bool:
        """As `Baseline.is_ready`."""
        return len(self._past) >= LEAST_WINDOWS

    def add(self, bad: int, of: int) -> None:
        """Take `of` calls in, of which `bad` were bad."""
        self._open.bad += bad
        self._open.seen += of

    def close(self) -> RateWindow:
        """As `Baseline.close`."""
        window, self._open = self._open, RateWindow()
        return window

    def ratios(self, window: RateWindow, effect: Effect) -> tuple[float, float] | None:
        """As `Baseline.ratios`."""
        if not self.is_ready:
            return None
        past = past_rate(self._past)
        p0 = past.upper
        least = max(effect.rate_ratio * p0, p0 + effect.rate_step)
        # Where the normal is bad already, "worse" lies between it and certainty.
        least, much = min(least, (1.0 + p0) / 2.0), min(4.0 * least, (1.0 + p0) / 2.0)
        return (
            rate_ratio(window.bad, window.seen, p0, least, past.phi),
            rate_ratio(window.bad, window.seen, p0, much, past.phi),
        )

    def learn(self, window: RateWindow) -> None:
        """As `Baseline.learn`."""
        self._past.append((window.bad, window.seen))

    def compare(self, windows: list[RateWindow]) -> Compared:
        """As `Baseline.compare`."""
        past = past_rate(self._past)
        seen = sum(window.seen for window in windows)
        observed = sum(window.bad for window in windows) / seen if seen else past.mean
        mean_calls = sum(n for _, n in self._past) / len(self._past)
        spread = math.sqrt(past.phi * past.mean * (1.0 - past.mean) / mean_calls)
        return Compared(
            baseline=past.mean,
            spread=spread,
            baseline_windows=len(self._past),
            observed=observed,
            ratio=observed / past.mean,
            windows=len(windows),
            calls=seen,
        )

    def restart(self, windows: list[RateWindow]) -> None:
        """As `Baseline.restart`."""
        self._past.clear()
        self._past.extend((window.bad, window.seen) for window in windows)
