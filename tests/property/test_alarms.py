"""Alarms: steady traffic raises none, what goes wrong is noticed; seeded simulations."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster import alarms as alarms_module
from agentcloud.cluster.alarm import Ended, Measure, SeriesKey
from agentcloud.cluster.alarms import Alarms, Settings
from agentcloud.cluster.change import BASELINE_WINDOWS, Page, trimmed
from tests.cluster.traffic import ENDPOINT, KIND, SHAPES, Harm, Shape, Traffic

#: Of each steady shape, for each of two seeds: 24,000 windows of all together.
WINDOWS = 1500


@pytest.mark.parametrize("shape", SHAPES)
def test_steady_traffic_raises_fewer_than_one_alarm_in_a_thousand_windows(shape: str) -> None:
    windows, raised = 0, []
    for seed in (1, 2):
        traffic = Traffic(SHAPES[shape], seed)
        traffic.windows(WINDOWS)
        windows += traffic.alarms.windows
        raised += [*traffic.alarms.recent, *traffic.alarms.active]
    assert windows >= 2 * WINDOWS
    assert len(raised) < windows / 1000, [str(each) for each in raised]


#: What goes wrong: in which shape, what shows it, and within how many windows of its series.
HARMS = {
    "first token 1.5 times slower": ("lognormal", Harm(ttft=1.5), Measure.TTFT, 8),
    "first token 2 times slower": ("lognormal", Harm(ttft=2.0), Measure.TTFT, 5),
    "2 times slower, cache hits and misses": ("bimodal", Harm(ttft=2.0), Measure.TTFT, 12),
    "2 times slower, load of the day": ("day and night", Harm(ttft=2.0), Measure.TTFT, 6),
    "2 times slower, shared noise": ("busy, shared noise", Harm(ttft=2.0), Measure.TTFT, 30),
    "2 times slower, a call a minute": ("low volume", Harm(ttft=2.0), Measure.TTFT, 30),
    "tokens/s down by a third": ("lognormal", Harm(token=1.5), Measure.SPEED, 8),
    "a task costs a fifth more": ("lognormal", Harm(cost=1.2), Measure.COST, 30),
    "errors 1% to 8%": ("lognormal", Harm(errors=0.08), Measure.ERRORS, 10),
    "invalid answers 5% to 20%": ("lognormal", Harm(invalid=0.2), Measure.INVALID, 8),
}


def _windows_of(traffic: Traffic, measure: Measure) -> int:
    return traffic.alarms.windows_of(SeriesKey(ENDPOINT, KIND, measure))


def _warm(shape: Shape, seed: int, measure: Measure) -> Traffic:
    traffic = Traffic(shape, seed)
    while _windows_of(traffic, measure) < 70:
        traffic.windows(20)
    return traffic


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("harm", HARMS)
def test_what_goes_wrong_is_noticed_with_its_evidence_and_cleared(harm: str, seed: int) -> None:
    shape, wrong, measure, within = HARMS[harm]
    traffic = _warm(SHAPES[shape], seed, measure)
    before, began_s = _windows_of(traffic, measure), traffic.now_s
    raised = traffic.alarms.raised

    def is_noticed(alarms: Alarms) -> bool:
        return any(alarm.key.measure is measure for alarm in alarms.active)

    traffic.run(
        lambda alarms: is_noticed(alarms) or _windows_of(traffic, measure) - before > within, wrong
    )
    assert is_noticed(traffic.alarms), f"not within {within} windows"
    (alarm,) = [each for each in traffic.alarms.active if each.key.measure is measure]
    assert alarm.key == (ENDPOINT, KIND, measure)
    shown = alarm.shown
    assert shown.ratio > 1.09
    assert (
        shown.observed < shown.baseline
        if measure is Measure.SPEED
        else shown.observed > shown.baseline
    )
    assert alarm.score >= alarm.threshold * 0.999
    assert shown.calls >= 3 * traffic.alarms.settings.window_calls
    # It says since when: seldom before it began, and then by few windows.
    assert alarm.since_s > began_s - 10 * (alarm.raised_s - began_s)
    told = json.loads(json.dumps(alarm.as_dict(traffic.now_s, 1e9)))
    assert told["evidence"]["windows"] == shown.windows
    # Once an episode, and over when it is back.
    traffic.windows(60, wrong)
    assert is_noticed(traffic.alarms)
    traffic.run(lambda alarms: alarm.ended is not None)
    assert alarm.ended is Ended.BACK
    of_this = [e for e in traffic.alarms.recent if e.key.measure is measure]
    assert of_this == [alarm]
    assert traffic.alarms.raised - raised == 1


def test_a_change_that_stays_becomes_the_new_normal_and_a_further_one_is_noticed() -> None:
    traffic = _warm(SHAPES["lognormal"], 5, Measure.TTFT)
    traffic.run(lambda alarms: bool(alarms.recent), Harm(ttft=2.0))
    (alarm,) = traffic.alarms.recent
    assert alarm.ended is Ended.NEW_NORMAL
    assert alarm.shown.windows >= BASELINE_WINDOWS
    before = _windows_of(traffic, Measure.TTFT)
    traffic.run(lambda _: _windows_of(traffic, Measure.TTFT) >= before + 300, Harm(ttft=2.0))
    assert traffic.alarms.raised == 1
    traffic.run(lambda alarms: bool(alarms.active), Harm(ttft=4.0))
    assert _windows_of(traffic, Measure.TTFT) < before + 310


def test_one_wild_window_or_two_raise_nothing() -> None:
    traffic = _warm(SHAPES["lognormal"], 3, Measure.TTFT)

    def windows(count: int, harm: Harm) -> None:
        end = _windows_of(traffic, Measure.ERRORS) + count
        traffic.run(lambda _: _windows_of(traffic, Measure.ERRORS) >= end, harm)

    for harm in (Harm(ttft=1000.0, token=1000.0), Harm(errors=1.0), Harm(cost=1000.0)):
        windows(2, harm)
        windows(20, Harm())
    assert traffic.alarms.raised == 0


def test_better_is_no_alarm() -> None:
    traffic = _warm(SHAPES["lognormal"], 4, Measure.TTFT)
    traffic.windows(200, Harm(ttft=0.3, token=0.3, cost=0.5, errors=0.0, invalid=0.0))
    assert traffic.alarms.raised == 0


def test_memory_is_bounded_and_a_silent_series_ends_its_alarm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alarms_module, "MAX_SERIES", 50)
    traffic = _warm(SHAPES["lognormal"], 6, Measure.TTFT)
    traffic.run(lambda alarms: bool(alarms.active), Harm(ttft=3.0))
    alarms = traffic.alarms
    for index in range(200):
        alarms.called(f"e{index}", "k", traffic.now_s, failed=False, ttft_s=1.0)
    assert len(list(alarms.baselines())) == 50
    assert not alarms.active  # it was forgotten, and said so
    assert [alarm.ended for alarm in alarms.recent] == [Ended.SILENT]

    traffic = _warm(SHAPES["lognormal"], 6, Measure.TTFT)
    traffic.run(lambda alarms: bool(alarms.active), Harm(ttft=3.0))
    traffic.alarms.end_silent(traffic.now_s + 10.0)
    assert traffic.alarms.active
    traffic.alarms.end_silent(traffic.now_s + 4000.0)
    assert not traffic.alarms.active


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.1, 50.0))
@settings(max_examples=200, deadline=None)
def test_no_window_counts_for_more_than_a_third(ratios: list[float], h: float) -> None:
    page = Page()
    for number, ratio in enumerate(ratios, 1):
        reached = page.add(ratio, h)
        assert 0.0 <= page.score <= number * h / 3.0 + 1e-6
        assert not reached or number >= 3


@given(st.lists(st.floats(-50.0, 50.0), min_size=10, max_size=200), st.floats(-1e9, 1e9))
@settings(max_examples=200, deadline=None)
def test_a_wild_call_cannot_move_a_window_beyond_the_others(
    values: list[float], wild: float
) -> None:
    mean, error2 = trimmed([*values, wild])
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9
    assert error2 >= 0.0


@given(
    st.lists(
        st.tuples(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.integers(0, 10**6), st.booleans()),
        min_size=1,
        max_size=300,
    ),
    st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_any_calls_are_taken(calls: list[tuple[float, float, int, bool]], seed: int) -> None:
    alarms = Alarms(Settings(window_calls=10, window_s=0.5))
    rng, now_s = random.Random(seed), 0.0
    for _ in range(3):
        for ttft_s, token_s, running, failed in calls:
            now_s += rng.random()
            alarms.called(
                *("e", "k", now_s),
                failed=failed,
                ttft_s=ttft_s,
                token_s=token_s,
                running=running,
                prompt_tokens=running,
            )
    for alarm in [*alarms.active, *alarms.recent]:
        assert math.isfinite(alarm.shown.ratio)
        assert "times worse" in str(alarm)
