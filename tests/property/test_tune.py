"""The cost/quality curve and the choice on it."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.tasks.tune import Point, Rule, Trial, choose, curve, outcome, split, wilson

usd = st.decimals(0, 10, places=4)
trials_of = st.lists(
    st.builds(
        Trial,
        st.uuids().map(str),
        st.one_of(st.none(), st.sampled_from([-3.0, -1.5, -1.0, -0.2]), st.floats(-5, 0)),
        st.booleans(),
        st.booleans(),
        usd,
        usd,
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda trial: trial.id,
)
qualities = st.floats(0, 1.2)


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is no worse in both and better in one."""
    no_worse = one.cost_usd <= other.cost_usd and one.quality >= other.quality
    return no_worse and (one.cost_usd < other.cost_usd or one.quality > other.quality)


@given(trials_of)
def test_a_higher_threshold_escalates_more_and_never_costs_less(trials: list[Trial]) -> None:
    points = curve(trials)
    for low, high in itertools.pairwise(points):
        assert low.cost_usd <= high.cost_usd
        assert low.escalated < high.escalated
        assert low.threshold is None or (high.threshold or 0) > low.threshold
    for point in points:
        assert 0 <= point.right <= point.tasks == len(trials)
        assert sum(t.cheap_usd for t in trials) <= point.cost_usd
        assert point.cost_usd <= sum(t.cheap_usd + t.dear_usd for t in trials)


@given(trials_of)
def test_the_curve_holds_every_way_to_divide_the_sample(trials: list[Trial]) -> None:
    """Any threshold at all gives a point of the curve, or escalates everything."""
    points = {(p.escalated, p.right, p.cost_usd) for p in curve(trials)}
    for threshold in (-9.0, -2.0, -1.2, -1.0, -0.5, 0.0):
        point = outcome(trials, Rule.THRESHOLD, threshold)
        whole = point.escalated == len(trials)
        assert whole or (point.escalated, point.right, point.cost_usd) in points


@given(trials_of, qualities)
def test_the_choice_reaches_the_quality_and_nothing_dominates_it(
    trials: list[Trial], at_least: float
) -> None:
    points, dear = curve(trials), outcome(trials, Rule.DEAR)
    chosen = choose(points, dear, at_least)
    assert not any(dominates(point, chosen) for point in (*points, dear))
    reachable = max(point.quality for point in (*points, dear))
    assert chosen.quality >= min(at_least * dear.quality, reachable)
    for point in (*points, dear):
        if point.cost_usd < chosen.cost_usd:
            assert point.quality < at_least * dear.quality or point.quality < reachable


@given(trials_of, st.integers(0, 9))
def test_the_halves_are_the_whole_and_the_same_every_time(trials: list[Trial], seed: int) -> None:
    fit, test = split(trials, seed)
    assert sorted(t.id for t in fit + test) == sorted(t.id for t in trials)
    assert len(fit) - len(test) in (0, 1)
    assert split(list(reversed(trials)), seed) == (fit, test)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_s_interval_holds_the_share_and_solves_its_equation(right: int, more: int) -> None:
    tasks = right + more
    share, interval = right / tasks, wilson(right, tasks)
    assert 0 <= interval.low <= share <= interval.high <= 1
    for end in {interval.low, interval.high} - {0.0, 1.0}:
        # The interval's ends are the shares from which the one seen is 1.96 deviations away.
        deviation = math.sqrt(end * (1 - end) / tasks)
        assert math.isclose(abs(share - end) / deviation, 1.959963984540054, rel_tol=1e-6)
