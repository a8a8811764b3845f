"""Pure: what a cascade would have cost and got right, for every threshold, and which to take.

Both tiers answered every task of the sample, so each threshold's outcome is counted, not guessed:
a task whose signal reaches it costs what the cheap tier cost and is as right; any other costs both
and is as right as the dear one. This is exact for agents with one such ask a task; for more it
counts the whole task as escalated when its least sure ask is.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

#: Of a 95% interval.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Trial:
    """One task, answered by both tiers.

    Attributes:
        signal: how sure the cheap answer is; None: it is none that could be taken.
        cheap_right: whether it equals the label.
    """

    id: str
    signal: float | None
    cheap_right: bool
    dear_right: bool
    cheap_usd: Decimal
    dear_usd: Decimal


class Rule(StrEnum):
    """How tiers are used."""

    CHEAP = "cheap"  # the cheap answer wherever there is one
    THRESHOLD = "threshold"
    DEAR = "dear"  # the dear tier alone


@dataclass(frozen=True, slots=True)
class Interval:
    """Ends of a confidence interval of a share."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """A rule on a sample.

    Attributes:
        threshold: the least signal that is taken; only of `THRESHOLD`.
        tasks: of the sample.
        escalated: those that the dear tier answered.
        right: answers equal to their labels.
        cost_usd: over all tasks.
    """

    rule: Rule
    threshold: float | None
    tasks: int
    escalated: int
    right: int
    cost_usd: Decimal

    @property
    def quality(self) -> float:
        """Share of answers that equal their labels."""
        return self.right / self.tasks if self.tasks else 0.0

    @property
    def interval(self) -> Interval:
        """95% interval of the quality (Wilson's)."""
        return wilson(self.right, self.tasks)

    @property
    def usd_per_task(self) -> Decimal:
        """Mean cost."""
        return self.cost_usd / self.tasks if self.tasks else Decimal(0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, money as text."""
        interval = self.interval
        return {
            "rule": str(self.rule),
            "threshold": self.threshold,
            "tasks": self.tasks,
            "escalated": self.escalated,
            "right": self.right,
            "quality": self.quality,
            "quality_95": [interval.low, interval.high],
            "cost_usd": format(self.cost_usd, "f"),
            "usd_per_task": format(self.usd_per_task, "f"),
        }


def wilson(right: int, tasks: int) -> Interval:
    """Wilson's 95% interval of a share; all of [0, 1] where nothing was seen."""
    if tasks == 0:
        return Interval(0.0, 1.0)
    share, z2 = right / tasks, _Z * _Z
    middle = (share + z2 / (2 * tasks)) / (1 + z2 / tasks)
    half = _Z * math.sqrt(share * (1 - share) / tasks + z2 / (4 * tasks * tasks)) / (1 + z2 / tasks)
    # At the ends it is 0 and 1 exactly, which rounding would miss by a hair.
    low = 0.0 if right == 0 else max(0.0, middle - half)
    high = 1.0 if right == tasks else min(1.0, middle + half)
    return Interval(low, high)


def outcome(trials: Sequence[Trial], rule: Rule, threshold: float | None = None) -> Point:
    """What a rule costs and gets right on a sample."""
    if rule is Rule.DEAR:
        return Point(
            rule,
            None,
            len(trials),
            len(trials),
            sum(trial.dear_right for trial in trials),
            sum((trial.dear_usd for trial in trials), Decimal(0)),
        )
    escalated = right = 0
    cost_usd = Decimal(0)
    for trial in trials:
        cost_usd += trial.cheap_usd
        if trial.signal is not None and (threshold is None or trial.signal >= threshold):
            right += trial.cheap_right
        else:
            escalated += 1
            right += trial.dear_right
            cost_usd += trial.dear_usd
    return Point(rule, threshold, len(trials), escalated, right, cost_usd)


def curve(trials: Sequence[Trial]) -> list[Point]:
    """Every threshold that makes a difference, the cheapest first.

    The first point takes whatever is an answer. A threshold lies half-way between two signals that
    were seen, so that it does not hang on the last digit of one.
    """
    signals = sorted({trial.signal for trial in trials if trial.signal is not None})
    between = [_between(low, high) for low, high in itertools.pairwise(signals)]
    steps = [outcome(trials, Rule.THRESHOLD, threshold) for threshold in between]
    return [outcome(trials, Rule.CHEAP), *steps]


def _between(low: float, high: float) -> float:
    middle = (low + high) / 2
    return middle if middle > low else high  # neighbours: there is nothing between them


def choose(points: Sequence[Point], dear: Point, at_least_quality: float) -> Point:
    """The cheapest point that is nearly as good as the dear tier alone.

    Args:
        points: the curve.
        dear: the dear tier alone, which is a choice too.
        at_least_quality: share of the dear tier's quality that must be reached.
    """
    good = [p for p in (*points, dear) if p.quality >= at_least_quality * dear.quality]
    # Above 1 even the dear tier may fall short: then the best there is.
    if not good:
        best = max(point.quality for point in (*points, dear))
        good = [p for p in (*points, dear) if p.quality == best]
    return min(good, key=lambda point: (point.cost_usd, -point.quality))


def split(trials: Sequence[Trial], seed: int) -> tuple[list[Trial], list[Trial]]:
    """Two halves drawn at random: one to choose on, one to judge the choice by."""
    drawn = sorted(trials, key=lambda trial: trial.id)
    random.Random(seed).shuffle(drawn)  # noqa: S311 - a sample, not a secret
    middle = (len(drawn) + 1) // 2
    return drawn[:middle], drawn[middle:]


def matches(output: Any, label: Any, name: str) -> bool:
    """Whether an agent's output says what the label says.

    Args:
        output: as the results file has it.
        label: an object: its keys must be equal in the output; anything else: the output's field
            of the label's name, or the output itself where it has none.
        name: of the label's field.
    """
    if isinstance(label, dict):
        return isinstance(output, dict) and all(
            key in output and output[key] == value for key, value in label.items()
        )
    value = output.get(name) if isinstance(output, dict) else output
    return bool(value == label or (isinstance(label, str) and str(value) == label))
