"""Pure: has a series of windows changed for the worse? Page's test on clipped likelihood ratios.

A window is at least so many calls and so many seconds of one series. Two kinds:

**Levels** (time to first token, time per token, cost of a task), on logarithms, so that tails are
tame and a change is a factor. Of each call the residual `r = log y - f(load) - g(size)` is taken:
`f` and `g` are step functions over the calls running at the grant (quarter octaves) and the tokens
to be read (octaves), learned by stochastic backfitting from windows judged normal. So a time that
grows with load is compared with what it was at that load, and the scheduler's own prediction, which
follows a slowdown within fifty calls, is of no use here. A window's statistic is the trimmed mean
of its residuals (a median would jump between the modes of cache hits and misses); its standard
error is Tukey and McLaughlin's. The baseline is the median `B` of past windows; their scale is

    sigma^2 = max((1.4826 MAD)^2, median of squared standard errors)
              * (1 + 2 rho1 / (1 - phi))   long-run variance of windows that share slow noise
              * (1 + 4 / windows)^2        what few windows do not know of sigma

**Rates** (errors, answers that do not validate): `k` of `n` a window, binomial, with the upper end
(mean + one standard deviation) of past windows' rate as `p0`, and its over-dispersion `phi` >= 1
(Pearson's chi-square over degrees of freedom, times the same long-run factor): errors come in
bursts.

**Test.** `S = max(0, S + clip(l, -h/3, h/3))`, where l is the log-likelihood ratio of "worse" to
"as before", run twice: for the least effect that matters, and for a large one (twice; of rates four
times), which noisy series show sooner:

    levels: l = delta (d - delta / 2) / sigma^2,  d = window - B - u,  delta = log(least ratio)
    rates:  l = (k log(p1/p0) + (n - k) log((1 - p1)/(1 - p0))) / phi,
            p1 = max(least rate ratio * p0, p0 + least rate step)

`u` is the standard error of what d is compared with, taken off in favour of "as before". An alarm
is raised at `S >= h`, `h = log(2 series / budget)`: Page's test of likelihood ratios has at least
`exp(h)` windows between false alarms (Lorden), so all series together have at most `budget` false
alarms for each window of every series. Clipping is Huber's robust test, and makes three windows the
fewest that can raise an alarm. Windows since `S` was last 0 are Page's estimate of when it began:
they are held back from the baseline until `S` is 0 again.

Sources: E. S. Page, Continuous inspection schemes (1954); G. Lorden, Procedures for reacting to a
change in distribution (1971); P. J. Huber, A robust version of the probability ratio test (1965);
J. W. Tukey and D. H. McLaughlin, Less vulnerable confidence and significance procedures (1963);
M. R. Reynolds and Z. G. Stoumbos, A CUSUM chart for monitoring a proportion (1999); the long-run
variance is that of an ARMA(1, 1) series, AR(1) noise seen through sampling noise.

Caveats: a load never seen before is learned first, without a verdict; a slowdown that itself drives
the load up is in part explained by that load; a creep slower than the least ratio over the baseline
moves the baseline along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median
from typing import Final

#: Share of a window's residuals that is left out at each end.
TRIM: Final = 0.1
#: Windows that a baseline remembers, and how many it needs before it judges.
BASELINE_WINDOWS: Final = 120
LEAST_WINDOWS: Final = 30
#: Calls of one load and size before calls of it are judged, and the memory of their level.
_LEAST_CALLS: Final = 20
_LEVEL_MEMORY: Final = 5000
_MAX_LEVELS: Final = 64
_CLIPS: Final = 3.0
_MAD: Final = 1.4826
_MAX_PHI: Final = 0.95


@dataclass(slots=True)
class Level:
    """A learned step of `f` or `g`: its height, and what it was learned from."""

    height: float = 0.0
    calls: int = 0
    windows: int = 0


class Steps:
    """`f(load) + g(size)`: what log y is expected to be."""

    __slots__ = ("_load", "_size")

    def __init__(self) -> None:
        self._load: dict[int, Level] = {}
        self._size: dict[int, Level] = {}

    def expected(self, load: int, size: int) -> float | None:
        """What is expected there; None where too little was seen."""
        f, g = self._load.get(load), self._size.get(size)
        if f is None or g is None or f.calls < _LEAST_CALLS or g.calls < _LEAST_CALLS:
            return None
        return f.height + g.height

    def learn(self, calls: Sequence[tuple[float, int, int]], clip: float) -> None:
        """Take a window's calls (log y, load, size) in; residuals beyond `clip` count as it."""
        for y, load, size in calls:
            f, g = self._load.get(load), self._size.get(size)
            if f is None:
                f = _room(self._load)[load] = Level(y - (g.height if g is not None else 0.0))
            if g is None:
                g = _room(self._size)[size] = Level(y - f.height)
            r = max(-clip, min(clip, y - f.height - g.height))
            for level in (f, g):
                level.calls = min(level.calls + 1, _LEVEL_MEMORY)
                level.height += r / (level.calls + 1)
        for load in {load for _, load, _ in calls}:
            self._load[load].windows += 1
        for size in {size for _, _, size in calls}:
            self._size[size].windows += 1

    def variance(
        self, calls: Sequence[tuple[float, int, int]], of_call: float, of_window: float
    ) -> float:
        """Variance of the mean expectation of calls, given those of a call and of a window."""
        total = 0.0
        for levels, place in ((self._load, 1), (self._size, 2)):
            counts: dict[int, int] = {}
            for call in calls:
                key = int(call[place])
                counts[key] = counts.get(key, 0) + 1
            for key, count in counts.items():
                level = levels[key]
                share = count / len(calls)
                per = of_call / level.calls + of_window / max(1, min(level.windows, 60))
                total += share * share * per
        return total


def _room(levels: dict[int, Level]) -> dict[int, Level]:
    """Make room for one more: the least used goes."""
    if len(levels) >= _MAX_LEVELS:
        del levels[min(levels, key=lambda key: levels[key].calls)]
    return levels


@dataclass(slots=True)
class Past:
    """What windows were like while nothing was wrong.

    Attributes:
        values: statistic of each window, oldest first: the trimmed mean of residuals.
        errors2: their squared standard errors.
    """

    values: list[float] = field(default_factory=list)
    errors2: list[float] = field(default_factory=list)

    def add(self, value: float, error2: float) -> None:
        """Remember a window; the oldest is forgotten."""
        self.values.append(value)
        self.errors2.append(error2)
        del self.values[:-BASELINE_WINDOWS], self.errors2[:-BASELINE_WINDOWS]

    def scale2(self) -> tuple[float, float, float]:
        """Median, squared scale of single windows, and their long-run squared scale."""
        middle = median(self.values)
        spread2 = (_MAD * median(abs(value - middle) for value in self.values)) ** 2
        spread2 = max(spread2, median(self.errors2), 1e-8)
        few = (1.0 + 4.0 / len(self.values)) ** 2
        deviations = [value - middle for value in self.values]
        longer = inflation(deviations, 3.0 * math.sqrt(spread2))
        return middle, spread2 * few, spread2 * few * longer


def inflation(values: Sequence[float], clip: float) -> float:
    """Long-run variance of deviations against their variance, at least 1: an ARMA(1, 1) series.

    Windows share slow noise (an AR(1) series) and have sampling noise of their own, which hides
    it from the lag-1 autocorrelation alone; the ratio of the first two lags does not see it.
    """
    clipped = [max(-clip, min(clip, value)) for value in values]
    count = len(clipped)
    power = sum(value * value for value in clipped)
    if power <= 0.0:
        return 1.0
    rho1 = sum(a * b for a, b in pairwise(clipped)) / power
    rho2 = sum(a * b for a, b in zip(clipped, clipped[2:], strict=False)) / power
    rho1 = max(0.0, rho1 + (1.0 + 3.0 * rho1) / count)  # corrected for its bias
    phi = rho1
    if rho1 > 2.0 / math.sqrt(count) and rho2 > 0.0:
        phi = max(rho1, rho2 / rho1 + (1.0 + 3.0 * rho2) / count)
    return 1.0 + 2.0 * min(1.0, rho1) / (1.0 - min(_MAX_PHI, phi))


def trimmed(values: Sequence[float]) -> tuple[float, float]:
    """Trimmed mean and its squared standard error."""
    ordered = sorted(values)
    count = len(ordered)
    cut = int(TRIM * count)
    kept = ordered[cut : count - cut]
    mean = fmean(kept)
    if count < 2:
        return mean, math.inf
    drawn_in = [kept[0]] * cut + kept + [kept[-1]] * cut
    middle = fmean(drawn_in)
    variance = sum((value - middle) ** 2 for value in drawn_in) / (count - 1)
    return mean, variance / ((1.0 - 2.0 * TRIM) ** 2 * count)


def level_ratio(deviation: float, delta: float, sigma2: float) -> float:
    """Log-likelihood ratio of one window of levels: worse by `delta` against as before."""
    return delta * (deviation - delta / 2.0) / sigma2


def rate_ratio(k: int, n: int, p0: float, p1: float, phi: float) -> float:
    """Log-likelihood ratio of one window of a rate."""
    return (k * math.log(p1 / p0) + (n - k) * math.log((1.0 - p1) / (1.0 - p0))) / phi


@dataclass(frozen=True, slots=True)
class PastRate:
    """A rate over past windows: the mean, its upper end, and its over-dispersion."""

    mean: float
    upper: float
    phi: float


def past_rate(windows: Sequence[tuple[int, int]]) -> PastRate:
    """What (k, n) of past windows say of their rate."""
    bad, total = sum(k for k, _ in windows), sum(n for _, n in windows)
    p = (bad + 0.5) / (total + 1.0)
    scaled = [(k - n * p) / math.sqrt(n * p * (1.0 - p)) for k, n in windows]
    phi = sum(z * z for z in scaled) / max(1, len(scaled) - 1)
    middle = fmean(scaled)
    phi = max(1.0, phi * inflation([z - middle for z in scaled], math.inf))
    return PastRate(p, p + math.sqrt(phi * p * (1.0 - p) / total), phi)


class Page:
    """The running sum of a sequential test for one direction."""

    __slots__ = ("score",)

    def __init__(self) -> None:
        self.score = 0.0

    def add(self, ratio: float, h: float) -> bool:
        """Take one window's log-likelihood ratio in; whether the sum reaches `h`."""
        clip = h / _CLIPS
        self.score = max(0.0, self.score + max(-clip, min(clip, ratio)))
        # Three full steps are `h` but for rounding.
        return self.score >= h * (1.0 - 1e-9)

    def __repr__(self) -> str:
        return f"<Page {self.score:.3g}>"
