"""Amounts, sums and what a person reads of them."""

import io
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.money import parse_usd, show_usd
from agentcloud.tasks.render import (
    ProgressView,
    RateMeter,
    progress_line,
    show_cached,
    show_duration,
    show_ms,
    summary_table,
)
from agentcloud.tasks.spec import JobRecord, JobState
from agentcloud.tasks.tally import Tally, quantile


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2usd", "2"),
        ("2 USD", "2"),
        ("$2", "2"),
        ("2", "2"),
        ("0.50", "0.50"),
        (".5$", "0.5"),
        ("50 cents", "0.5"),
        ("1cent", "0.01"),
    ],
)
def test_amounts_as_people_type_them(text: str, amount: str) -> None:
    assert parse_usd(text, where="--budget") == Decimal(amount)


@pytest.mark.parametrize("text", ["", "two", "-1", "1e9", "2eur", "1,000", "$", "2usdd"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--budget: .* is no amount of money"):
        parse_usd(text, where="--budget")


@pytest.mark.parametrize("text", ["0", "$0.00", "0cents"])
def test_a_budget_of_zero_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a budget of zero allows no call"):
        parse_usd(text, where="--budget")


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (None, "?"),
        ("0", "$0.00"),
        ("12.345", "$12.34"),
        ("0.0123", "$0.012"),
        ("0.00004", "$0.000040"),
    ],
)
def test_small_amounts_do_not_look_like_nothing(amount: str | None, shown: str) -> None:
    assert show_usd(None if amount is None else Decimal(amount)) == shown


def call(endpoint: str, cost: str | None, ttft_s: float | None = 0.1) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "input_tokens": 10,
        "cache_write_tokens": 1,
        "cache_read_tokens": 2,
        "output_tokens": 5,
        "cost_usd": None if cost is None else Decimal(cost),
        "ttft_s": ttft_s,
    }


def test_a_row_per_endpoint_and_unknown_is_never_zero() -> None:
    tally = Tally()
    tally.add([call("b", "0.1"), call("b", None), call("a", None, None)])
    first, second = tally.endpoints(span_s=2.0)
    assert (first.endpoint, first.calls, first.cost_usd, first.ttft_p50_s) == ("a", 1, None, None)
    assert (second.cost_usd, second.unknown_cost_calls) == (Decimal("0.1"), 1)
    assert (second.input_tokens, second.output_tokens, second.tokens_per_s) == (26, 10, 5.0)
    assert (tally.cost_usd, tally.unknown_cost_calls) == (Decimal("0.1"), 2)


def test_what_caches_saved_is_added_up() -> None:
    tally = Tally()
    tally.add([call("a", "0.1") | {"saved_usd": "-0.02"}, call("a", "0.1") | {"saved_usd": "0.05"}])
    [row] = tally.endpoints(span_s=2.0)
    assert (row.cache_read_tokens, row.input_tokens, row.saved_usd) == (4, 26, Decimal("0.03"))
    assert (
        show_cached(row.cache_read_tokens, row.input_tokens, row.saved_usd) == "15%, saved $0.030"
    )
    assert show_cached(20, 100, Decimal(0)) == "20%"
    assert show_cached(0, 100, Decimal("-0.25")) == "0%, cost $0.25"
    assert show_cached(0, 100, Decimal(0)) == "-"


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 0.999))
def test_a_quantile_is_a_value_with_that_share_below(values: list[float], fraction: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, fraction)
    assert found in ordered
    assert sum(value < found for value in ordered) <= fraction * len(ordered) + 1e-9


def record(state: JobState = JobState.RUNNING, **values: Any) -> JobRecord:
    base: dict[str, Any] = {"total": 10, "done": 4, "failed": 1, "cost_usd": Decimal("0.5")}
    return JobRecord("j1", "a.py:x", state, "out.jsonl", **(base | values))


def test_rate_and_time_left_are_of_the_last_seconds() -> None:
    meter = RateMeter()
    assert meter.per_s is None
    for second in range(30):
        meter.add(float(second), second * (1 if second < 15 else 2))
    assert meter.per_s == pytest.approx(2.0)
    assert meter.eta_s(8) == pytest.approx(4.0)
    assert progress_line(record(), meter) == "4/10 done, 1 failed, 2.0/s, $0.50, 2.5 s left"
    parked = record(parked=5)
    said = "4/10 done, 1 failed, 2.0/s, $0.50, 5 ask a person (agentcloud approvals j1)"
    assert progress_line(parked, meter) == said


def test_progress_without_a_terminal_is_plain_lines() -> None:
    out = io.StringIO()
    with ProgressView(Console(file=out, force_terminal=False)) as view:
        view.update(record())
        view.update(record())
        view.update(record(JobState.STOPPED, reason="budget", unknown_cost_calls=2))
    assert out.getvalue().splitlines() == [
        "4/10 done, 1 failed, $0.50",
        "4/10 done, 1 failed, $0.50 + 2 calls of unknown cost, stopped: budget",
    ]


def test_the_summary_has_every_endpoint_and_the_sum() -> None:
    tally = Tally()
    tally.add([call("replica:small:0", "0"), call("anthropic/claude-haiku-5-5", "0.002", 0.25)])
    out = io.StringIO()
    ended = record(JobState.DONE, elapsed_s=4.0, endpoints=tally.endpoints(2.0))
    Console(file=out, width=120).print(summary_table(ended))
    text = out.getvalue()
    assert "job j1 done: 4 done, 1 failed, 5 not done in 4.0 s" in text
    (hosted,) = [line for line in text.splitlines() if "haiku" in line]
    cells = [cell.strip() for cell in hosted.strip("│").split("│")]
    assert cells == [
        "anthropic/claude-haiku-5-5",
        "1",
        "13",
        "15%",
        "5",
        "250 ms",
        "250 ms",
        "2.5",
        "$0.0020",
    ]
    assert "all" in text


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (show_ms(None), "-"),
        (show_ms(0.0123), "12 ms"),
        (show_ms(1.5), "1.50 s"),
        (show_duration(4.21), "4.2 s"),
        (show_duration(185), "3 min 5 s"),
        (show_duration(7800), "2 h 10 min"),
    ],
)
def test_times(shown: str, expected: str) -> None:
    assert shown == expected
