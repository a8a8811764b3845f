"""Pure: regressions noticed. A baseline for each series, an alarm for each episode of a change.

A series is one endpoint, one kind of job (its agent) and one measure. An alarm is raised once when
its test says so (`change.py`: formulae and sources), carries its evidence, is kept up to date while
the change lasts, and is cleared by the same test the other way round. A change that lasts a whole
baseline long is the new normal: its alarm ends so, and the baseline starts from there.

Only changes for the worse are told: slower, dearer, more errors, more answers that do not validate.
Rate limits (429) are no errors here: the scheduler meets them by design, where they belong.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, Generic, TypeVar

from agentcloud.cluster.alarm import Alarm, Ended, Measure, SeriesKey, in_unit
from agentcloud.cluster.baselines import (
    Baseline,
    Compared,
    Effect,
    LevelBaseline,
    LevelWindow,
    RateBaseline,
    RateWindow,
)
from agentcloud.cluster.change import BASELINE_WINDOWS, Page

#: Series remembered; of more, the one that was silent longest is forgotten.
MAX_SERIES: Final = 1000
#: Alarms that ended and are still shown.
RECENT: Final = 200
#: An alarm whose series has been silent for so long ends.
SILENT_S: Final = 3600.0
#: A change is not over while more than the root of this is left of it.
_FAR: Final = 2.0
#: Stands for all endpoints of a task together.
ALL: Final = "*"


W = TypeVar("W")


@dataclass(slots=True)
class Window(Generic[W]):
    """A closed window and when it began."""

    began_s: float
    body: W


@dataclass(slots=True)
class Series(Generic[W]):
    """One series: its baseline, the test, and the episode that it is in."""

    key: SeriesKey
    baseline: Baseline[W]
    began_s: float
    seen_s: float
    worse: tuple[Page, Page] = field(default_factory=lambda: (Page(), Page()))
    back: Page = field(default_factory=Page)
    #: Since the tests' sums were 0, or since the change began.
    held: deque[Window[W]] = field(default_factory=deque)
    alarm: Alarm | None = None
    windows: int = 0
    #: Windows since the alarm was raised.
    lasted: int = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is tuned; fleet.yaml's `alarms:` explains each."""

    window_calls: int = 40
    window_s: float = 30.0
    effect: Effect = field(default_factory=Effect)
    budget: float = 1e-4


class Alarms:
    """All series and their alarms.

    Args:
        settings: what is tuned.
        name: told apart from other schedulers' alarms by it.
    """

    def __init__(self, settings: Settings, name: str = "a") -> None:
        self.settings = settings
        self.raised = 0
        self.windows = 0
        self.recent: deque[Alarm] = deque(maxlen=RECENT)
        self._name = name
        self._rng = random.Random(0)  # noqa: S311 - a sample of timings, not a secret
        self._series: OrderedDict[SeriesKey, Series[Any]] = OrderedDict()
        self._active: dict[SeriesKey, Alarm] = {}
        self._news: list[Alarm] = []

    def __repr__(self) -> str:
        return f"<Alarms series={len(self._series)} active={len(self._active)}>"

    @property
    def active(self) -> list[Alarm]:
        """Alarms that last, the oldest first."""
        return list(self._active.values())

    def news(self) -> list[Alarm]:
        """Alarms that were raised or ended since the last call."""
        news, self._news = self._news, []
        return news

    # -- what is told

    def called(
        self,
        endpoint: str,
        kind: str,
        now_s: float,
        *,
        failed: bool,
        ttft_s: float | None = None,
        token_s: float | None = None,
        running: int = 0,
        prompt_tokens: int = 0,
    ) -> None:
        """One call was settled.

        Args:
            endpoint: where it ran.
            kind: of job.
            now_s: the clock.
            failed: its send failed.
            ttft_s: time to first token; None: not measured.
            token_s: time per output token after the first; None: not measured.
            running: calls on the endpoint at its grant.
            prompt_tokens: to be read before its first token, those queued before it included.
        """
        self._rate(SeriesKey(endpoint, kind, Measure.ERRORS), int(failed), 1, now_s)
        load = quarter_octaves(running)
        if ttft_s is not None and ttft_s > 0.0:
            size = prompt_tokens.bit_length()
            self._level(SeriesKey(endpoint, kind, Measure.TTFT), ttft_s, load, size, now_s)
        if token_s is not None and token_s > 0.0:
            self._level(SeriesKey(endpoint, kind, Measure.SPEED), token_s, load, 0, now_s)

    def task_ended(
        self,
        kind: str,
        costs_usd: Mapping[str, Decimal],
        checked: Mapping[str, tuple[int, int]],
        now_s: float,
    ) -> None:
        """One task ended for good.

        Args:
            kind: of job.
            costs_usd: endpoint -> cost of the task's calls there, all attempts; a cost that is not
                known is left out; `ALL` is the whole task.
            checked: endpoint -> answers held against an output's schema, those that failed.
            now_s: the clock.
        """
        for endpoint, cost_usd in costs_usd.items():
            if cost_usd > 0:  # what costs nothing has no ratio
                self._level(SeriesKey(endpoint, kind, Measure.COST), float(cost_usd), 0, 0, now_s)
        for endpoint, (answers, invalid) in checked.items():
            self._rate(SeriesKey(endpoint, kind, Measure.INVALID), invalid, answers, now_s)

    def end_silent(self, now_s: float) -> None:
        """End alarms of series that have no more calls."""
        for key in list(self._active):
            series = self._series[key]
            if now_s - series.seen_s > SILENT_S:
                self._end(series, Ended.SILENT, now_s)
                series.held.clear()

    def windows_of(self, key: SeriesKey) -> int:
        """Windows of a series so far."""
        series = self._series.get(key)
        return 0 if series is None else series.windows

    def baselines(self) -> Iterator[tuple[SeriesKey, Compared | None, int]]:
        """Every series: its baseline (None while it is learned), and windows seen."""
        for key, series in self._series.items():
            shown = None
            if series.baseline.is_ready:
                shown = self._shown(series)
            yield key, shown, series.windows

    # -- series

    def _level(self, key: SeriesKey, value: float, load: int, size: int, now_s: float) -> None:
        series = self._find(key, now_s)
        assert isinstance(series.baseline, LevelBaseline)
        series.baseline.add(math.log(value), load, size)
        self._close_if_full(series, now_s)

    def _rate(self, key: SeriesKey, bad: int, of: int, now_s: float) -> None:
        series = self._find(key, now_s)
        assert isinstance(series.baseline, RateBaseline)
        series.baseline.add(bad, of)
        self._close_if_full(series, now_s)

    def _find(self, key: SeriesKey, now_s: float) -> Series[Any]:
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_SERIES:
                _, gone = self._series.popitem(last=False)
                self._end(gone, Ended.SILENT, now_s)
            if key.measure.is_rate:
                series = Series[RateWindow](key, RateBaseline(), now_s, now_s)
            else:
                series = Series[LevelWindow](key, LevelBaseline(self._rng), now_s, now_s)
            self._series[key] = series
        else:
            self._series.move_to_end(key)
        if not series.baseline.filled:
            series.began_s = now_s
        series.seen_s = now_s
        return series

    def _close_if_full(self, series: Series[Any], now_s: float) -> None:
        settings = self.settings
        # Both: calls of one second share its load, and are no more than one observation of it.
        if (
            series.baseline.filled >= settings.window_calls
            and now_s - series.began_s >= settings.window_s
        ):
            self.windows += 1
            series.windows += 1
            self._judge(series, Window(series.began_s, series.baseline.close()), now_s)

    # -- the test

    def _judge(self, series: Series[W], window: Window[W], now_s: float) -> None:
        effect = self.settings.effect
        if series.alarm is not None:
            # The way back is judged against where it went: sooner where it went far.
            far = min(series.alarm.shown.ratio, _FAR)
            effect = replace(
                effect,
                ratio=max(effect.ratio, far),
                rate_ratio=max(effect.rate_ratio, far),
            )
        ratios = series.baseline.ratios(window.body, effect)
        h = math.log(len(series.worse) * max(1, len(self._series)) / self.settings.budget)
        # Four cases: in an alarm; no verdict; nothing speaks for a change; something does.
        if series.alarm is not None:
            self._go_on(series, series.alarm, window, ratios, h, now_s)
        elif ratios is None:
            if not series.held:
                series.baseline.learn(window.body)
        else:
            raised = [page.add(ratio, h) for page, ratio in zip(series.worse, ratios, strict=True)]
            series.held.append(window)
            if any(raised):
                self._raise(series, h, now_s)
            elif not any(page.score for page in series.worse):
                self._learn(series, len(series.held))
            else:
                # Neither raised nor dropped for a whole baseline: a drift, learned as it comes.
                self._learn(series, len(series.held) - BASELINE_WINDOWS)

    def _learn(self, series: Series[W], count: int) -> None:
        for _ in range(count):
            series.baseline.learn(series.held.popleft().body)

    def _raise(self, series: Series[W], h: float, now_s: float) -> None:
        self.raised += 1
        alarm = Alarm(
            f"{self._name}-{self.raised}",
            series.key,
            self._shown(series),
            series.held[0].began_s,
            now_s,
            max(page.score for page in series.worse),
            h,
        )
        series.alarm = self._active[series.key] = alarm
        series.back.score = 0.0
        series.lasted = 0
        self._news.append(alarm)

    def _go_on(
        self,
        series: Series[W],
        alarm: Alarm,
        window: Window[W],
        ratios: tuple[float, float] | None,
        h: float,
        now_s: float,
    ) -> None:
        series.lasted += 1
        if ratios is not None and series.back.add(-ratios[0], h):
            self._end(series, Ended.BACK, now_s)
            # What came and went by itself tells how much the series wanders; a quarter of its
            # windows moves neither a median nor a MAD far.
            self._learn(series, min(len(series.held), BASELINE_WINDOWS // 4))
            series.held.clear()
            return
        if series.back.score == 0.0:  # else it is perhaps over: no evidence of what it was
            series.held.append(window)
            alarm.shown = self._shown(series)
        if series.lasted >= BASELINE_WINDOWS:
            series.baseline.restart([each.body for each in series.held])
            series.held.clear()
            self._end(series, Ended.NEW_NORMAL, now_s)

    def _shown(self, series: Series[W]) -> Compared:
        shown = series.baseline.compare([window.body for window in series.held])
        return in_unit(shown, series.key.measure)

    def _end(self, series: Series[W], how: Ended, now_s: float) -> None:
        alarm, series.alarm = series.alarm, None
        for page in series.worse:
            page.score = 0.0
        if alarm is None:
            return
        del self._active[series.key]
        alarm.ended, alarm.ended_s = how, now_s
        self.recent.append(alarm)
        self._news.append(alarm)


def quarter_octaves(count: int) -> int:
    """A step of load: each count up to 4 its own, then a fifth wide."""
    return count if count < 5 else round(4.0 * math.log2(count)) - 4
