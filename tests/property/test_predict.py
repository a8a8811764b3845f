"""Predictions: never negative, exact on what is a line, and soon right after a change."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import (
    LeaseRequest,
    Outcome,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.predict import (
    PRIOR_OUTPUT_TOKENS,
    PRIOR_PER_TOKEN_S,
    PRIOR_TTFT_S,
    Line,
    Predictor,
    blend_slowness,
)
from agentcloud.cluster.scheduler import SchedulerCore
from tests.cluster.scheduling import fleet, replica

TIMES_S = st.floats(0.0, 1e4)
LOADS = st.floats(0.0, 1e6)


def fitted(points: list[tuple[float, float]]) -> Line:
    line = Line()
    for x, y in points:
        line.learn(x, y)
    return line


def learned(
    *, running: int = 1, ttft_s: float | None = 0.1, generation_s: float | None = 0.9
) -> Predictor:
    predictor = Predictor()
    predictor.learn(
        running=running,
        prompt_tokens=100,
        max_output_tokens=64,
        output_tokens=10,
        ttft_s=ttft_s,
        generation_s=generation_s,
        service_s=1.0,
    )
    return predictor


@given(st.lists(st.tuples(LOADS, TIMES_S), min_size=1, max_size=200))
def test_no_data_makes_a_prediction_negative_or_endless(points: list[tuple[float, float]]) -> None:
    line = fitted(points)
    assert line.samples == len(points)
    for x in (0.0, 1.0, 1e6):
        assert 0.0 <= line.at(x) < math.inf


@given(
    st.floats(0.0, 10.0),
    st.floats(0.0, 10.0),
    st.lists(st.integers(0, 1000), min_size=40, max_size=100, unique=True),
)
def test_a_line_is_found_again(intercept: float, slope: float, loads: list[int]) -> None:
    line = fitted([(load, intercept + slope * load) for load in loads])
    assert line.at(500.0) == pytest.approx(intercept + slope * 500, rel=0.04, abs=1e-3)


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0), LOADS)
def test_data_at_one_load_is_flat_and_a_change_is_soon_believed(
    before_s: float, after_s: float, load: float
) -> None:
    line = fitted([(load, before_s)] * 300 + [(load, after_s)] * 300)
    for x in (0.0, load, 1e6):
        assert line.at(x) == pytest.approx(after_s, rel=0.04)


def test_answers_that_came_in_one_piece_do_not_hide_what_others_take() -> None:
    line = fitted([(1.0, 1e-6)] * 20 + [(1.0, 0.02)] * 200)
    assert line.at(1.0) == pytest.approx(0.02, rel=0.05)


def test_nothing_is_known_before_it_was_measured() -> None:
    estimate = Predictor().estimate(5, 1000, 10)
    assert not estimate.ttft_known
    assert not estimate.known
    assert estimate.ttft_s == PRIOR_TTFT_S
    assert estimate.total_s == PRIOR_TTFT_S + 10 * PRIOR_PER_TOKEN_S
    assert Predictor().output_tokens(100_000) == PRIOR_OUTPUT_TOKENS


def test_the_first_token_and_the_rest_are_told_apart() -> None:
    estimate = learned().estimate(1, 100, 10)
    assert estimate.ttft_s == pytest.approx(0.1)
    assert estimate.total_s == pytest.approx(0.1 + 10 * 0.9 / 9)


def test_a_wire_that_hides_the_first_token_gives_the_whole_time() -> None:
    estimate = learned(ttft_s=None, generation_s=None).estimate(1, 100, 10)
    assert (estimate.ttft_known, estimate.known) == (False, True)
    assert estimate.total_s == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.integers(1, 200), TIMES_S, TIMES_S), min_size=1, max_size=50),
    st.integers(1, 200),
    st.floats(0, 1e5),
    st.floats(0, 1e4),
    st.floats(0.2, 5.0),
)
def test_more_of_anything_never_takes_less(
    calls: list[tuple[int, float, float]], running: int, prompt: float, output: float, slow: float
) -> None:
    predictor = Predictor()
    for load, ttft_s, generation_s in calls:
        predictor.learn(
            running=load,
            prompt_tokens=load * 10.0,
            max_output_tokens=64,
            output_tokens=20,
            ttft_s=ttft_s,
            generation_s=generation_s,
            service_s=None,
        )
    base = predictor.estimate(running, prompt, output, slow)
    for more in (
        predictor.estimate(running + 1, prompt, output, slow),
        predictor.estimate(running, prompt + 1, output, slow),
        predictor.estimate(running, prompt, output + 1, slow),
        predictor.estimate(running, prompt, output, slow * 1.1),
    ):
        assert more.total_s >= base.total_s * (1 - 1e-9)
    assert base.total_s >= base.ttft_s >= 0.0


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), max_size=60))
def test_an_answer_is_never_expected_longer_than_allowed(calls: list[tuple[int, int]]) -> None:
    predictor = Predictor()
    for allowed, length in calls:
        predictor.learn(
            running=1,
            prompt_tokens=1,
            max_output_tokens=allowed,
            output_tokens=min(length, allowed),
            ttft_s=None,
            generation_s=None,
            service_s=None,
        )
    for allowed in (1, 64, 10**6):
        assert 0.0 <= predictor.output_tokens(allowed) <= allowed


@given(st.lists(st.tuples(TIMES_S, TIMES_S), max_size=100))
def test_slowness_stays_sane(calls: list[tuple[float, float]]) -> None:
    slowness = 1.0
    for measured_s, expected_s in calls:
        slowness = blend_slowness(slowness, measured_s, expected_s)
        assert 0.2 <= slowness <= 5.0


@given(st.floats(0.3, 4.0), st.floats(0.001, 100.0))
def test_slowness_comes_to_the_true_ratio(ratio: float, expected_s: float) -> None:
    assume(expected_s > 0)
    slowness = 1.0
    for _ in range(100):
        slowness = blend_slowness(slowness, ratio * expected_s, expected_s)
    assert slowness == pytest.approx(ratio, rel=0.01)


def test_the_error_of_predictions_is_told_per_endpoint() -> None:
    clock = FakeClock(0.0)
    core = SchedulerCore(fleet(), load_catalog(), clock, random.Random(1))
    core.register([replica(0)])
    for number in range(60):
        core.submit(LeaseRequest(str(number), "m", 100, 16))
        [granted] = core.poll()
        assert isinstance(granted, Granted)
        # The last ten take twice as long as all before.
        ttft_s = 0.2 if number < 50 else 0.4
        clock.advance(1.0)
        usage, timings = TokenUsage(100, 0, 0, 11), Timings(0.0, ttft_s, 0.5, ttft_s + 0.5)
        core.settle(Settlement(granted.lease.lease_id, Outcome.OK, usage, timings=timings))
        totals = core.snapshot()["endpoints"]["replica:m:0"]["totals"]
        if number == 0:
            assert totals["ttft_error_p50"] is None, "nothing was predicted yet"
        elif number == 49:
            assert totals["ttft_error_p50"] < 0.1
            assert totals["per_token_error_p90"] < 0.1
    assert 0.2 < totals["ttft_error_p90"] <= 0.5
