"""Rate limits: never overrun, corrected by headers, cooldowns never shortened."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.config_models import Limits
from agentcloud.cluster.contracts import TokenUsage
from agentcloud.cluster.limits import AccountLimits, AdaptiveConcurrency, cooldown_s

LIMITS = Limits(requests_per_minute=60, input_tokens_per_minute=6000, output_tokens_per_minute=1200)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 900), st.integers(1, 300), st.floats(0, 3)),
        min_size=1,
        max_size=200,
    )
)
def test_no_burst_and_no_minute_passes_the_limit(calls: list[tuple[int, int, float]]) -> None:
    limits, now_s = AccountLimits("main/haiku", LIMITS, 0.0), 0.0
    sent: list[tuple[float, int, int]] = []
    for input_tokens, output_tokens, pause_s in calls:
        now_s += pause_s
        wait_s = limits.wait_s(input_tokens, output_tokens, now_s)
        now_s += wait_s + 1e-6 if wait_s else 0.0
        hold = limits.hold(input_tokens, output_tokens)
        usage = TokenUsage(input_tokens, 0, 5000, output_tokens)
        limits.settle(hold, usage, sent=True, now_s=now_s)
        sent.append((now_s, input_tokens, output_tokens))
    # What a server with full buckets at the start would see: a burst plus continuous refill.
    for column, per_minute in ((0, 60), (1, 6000), (2, 1200)):
        level, last_s = float(per_minute), 0.0
        for at_s, *tokens in sent:
            level = min(per_minute, level + (at_s - last_s) * per_minute / 60)
            if column == 2:
                # Output is counted as it is made: a call is let in while a token is left.
                assert level >= 1 - 1e-2
            level -= 1 if column == 0 else tokens[column - 1]
            last_s = at_s
            assert level >= (-300 if column == 2 else -1e-2)


def test_input_and_output_are_not_swapped_and_cache_reads_are_free() -> None:
    limits = AccountLimits("main/haiku", LIMITS, 0.0)
    limits.settle(limits.hold(5000, 100), TokenUsage(40, 60, 4900, 50), sent=True, now_s=0.0)
    assert repr(limits.input_tokens) == "<TokenBucket 5900/6000 held=0>"
    assert repr(limits.output_tokens) == "<TokenBucket 1150/1200 held=0>"
    assert repr(limits.requests) == "<TokenBucket 59/60 held=0>"


def test_headers_are_believed_less_what_is_in_flight() -> None:
    limits = AccountLimits("main/haiku", LIMITS, 0.0)
    limits.hold(1000, 200)
    limits.correct(
        {
            "anthropic-ratelimit-input-tokens-limit": "8000",
            "anthropic-ratelimit-input-tokens-remaining": "3000",
            "anthropic-ratelimit-output-tokens-remaining": "700",
        },
        0.0,
    )
    assert repr(limits.input_tokens) == "<TokenBucket 2000/8000 held=1000>"
    assert repr(limits.output_tokens) == "<TokenBucket 500/1200 held=200>"


def test_unknown_limits_are_learned_from_headers() -> None:
    limits = AccountLimits("main/haiku", Limits(), 0.0)
    assert limits.wait_s(10**9, 10**9, 0.0) == 0.0
    held = limits.hold(10, 10)
    limits.correct(
        {
            "anthropic-ratelimit-requests-limit": "60",
            "anthropic-ratelimit-requests-remaining": "0",
        },
        0.0,
    )
    limits.settle(held, TokenUsage(10, 0, 0, 10), sent=True, now_s=0.0)
    assert limits.wait_s(1, 1, 0.0) == 1.0


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_a_later_cooldown_never_shortens_one(untils: list[float]) -> None:
    limits = AccountLimits("main/haiku", Limits(), 0.0)
    for until_s in untils:
        limits.cool(until_s)
    assert limits.wait_s(1, 1, 0.0) == max(untils)


def test_retry_after_is_honoured_in_full_and_a_reset_stands_in() -> None:
    assert cooldown_s(300.0, {}, None) == 300.0
    headers = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-10-24T00:00:20Z",
    }
    assert cooldown_s(None, headers, 1792800000.0) == 20.0
    assert cooldown_s(None, {**headers, "anthropic-ratelimit-requests-reset": "?"}, 0.0) == 1.0
    assert cooldown_s(None, {}, None) == 1.0


def test_concurrency_shrinks_once_an_episode_and_grows_after_a_clean_round() -> None:
    adaptive = AdaptiveConcurrency(20)
    assert adaptive.on_rate_limited(granted_s=1.0, now_s=2.0)
    assert not adaptive.on_rate_limited(granted_s=1.5, now_s=2.1), "the same episode"
    assert repr(adaptive) == "<AdaptiveConcurrency 14/20 clean=0>"
    assert not adaptive.on_ok(granted_s=1.9, now_s=3.0), "granted before the shrink"
    grew = [adaptive.on_ok(granted_s=3.0, now_s=4.0) for _ in range(14)]
    assert grew == [False] * 13 + [True]
    assert adaptive.limit == 15
    assert adaptive.on_rate_limited(granted_s=3.5, now_s=5.0), "another episode"
