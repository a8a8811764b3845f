"""Token buckets under a fake clock, and the limits as the client meets them."""

import math
from datetime import UTC, datetime
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.sandbox import RateLimits, Sandbox, SandboxConfig
from agentcloud.cluster.sandbox.buckets import AccountLimits, Bucket, rfc3339

MODEL = "claude-haiku-4-5"
HELLO: Any = [{"role": "user", "content": "Hello there"}]

limits_per_minute = st.integers(1, 1_000_000)
bursts_s = st.floats(0.1, 60)
steps = st.lists(st.tuples(st.floats(0, 120), st.integers(0, 2_000)), max_size=60)


@settings(deadline=None)
@given(limit=limits_per_minute, burst_s=bursts_s, steps=steps)
def test_no_window_lets_through_more_than_a_bucket_and_its_refill(
    limit: int, burst_s: float, steps: list[tuple[float, int]]
) -> None:
    bucket, now_s = Bucket(limit, burst_s, 0.0), 0.0
    taken: list[tuple[float, int]] = []
    for pause_s, amount in steps:
        now_s += pause_s
        if bucket.wait_s(amount, now_s) == 0:
            bucket.take(amount, now_s)
            taken.append((now_s, amount))
    for first in range(len(taken)):
        start_s = taken[first][0]
        total = 0
        for at_s, amount in taken[first:]:
            total += amount
            allowed = bucket.capacity + (at_s - start_s) * limit / 60
            assert total <= allowed * (1 + 1e-9) + 1e-6


@settings(deadline=None)
@given(limit=limits_per_minute, burst_s=bursts_s, steps=steps, wanted=st.integers(1, 2_000))
def test_waiting_as_told_is_enough_and_not_too_long(
    limit: int, burst_s: float, steps: list[tuple[float, int]], wanted: int
) -> None:
    bucket, now_s = Bucket(limit, burst_s, 0.0), 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        bucket.take(amount, now_s)
    wait_s = bucket.wait_s(wanted, now_s)
    if wanted > bucket.capacity:
        assert math.isinf(wait_s)
        return
    if wait_s > 1e-3:
        assert bucket.wait_s(wanted, now_s + wait_s * 0.99) > 0
    assert bucket.wait_s(wanted, now_s + wait_s) <= 1e-6 * max(1.0, now_s + wait_s)


@settings(deadline=None)
@given(limit=limits_per_minute, burst_s=bursts_s, steps=steps)
def test_a_level_never_exceeds_capacity_and_fills_when_said(
    limit: int, burst_s: float, steps: list[tuple[float, int]]
) -> None:
    bucket, now_s = Bucket(limit, burst_s, 0.0), 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        bucket.take(amount, now_s)
        assert bucket.level(now_s) <= bucket.capacity
    full_s = now_s + bucket.full_in_s(now_s)
    assert bucket.level(full_s) == pytest.approx(bucket.capacity, abs=1e-3)


@settings(deadline=None)
@given(
    requests=st.one_of(st.none(), st.integers(1, 50)),
    tokens=st.one_of(st.none(), st.integers(1, 5_000)),
    calls=st.lists(st.integers(0, 1_000), max_size=40),
)
def test_a_refused_call_takes_nothing(
    requests: int | None, tokens: int | None, calls: list[int]
) -> None:
    limits = AccountLimits(
        RateLimits(requests_per_minute=requests, input_tokens_per_minute=tokens), 0.0
    )
    for amount in calls:
        before = limits.remaining(0.0)
        refusal = limits.admit(amount, 0.0)
        after = limits.remaining(0.0)
        if refusal is not None:
            assert after == before
            assert refusal.retry_after_s >= 1
        else:
            for name, used in (("requests", 1), ("input_tokens", amount)):
                left = before[name]
                assert after[name] == (None if left is None else left - used)


def test_output_is_counted_when_made_and_its_debt_is_waited_for() -> None:
    limits = AccountLimits(RateLimits(output_tokens_per_minute=60), 0.0)
    assert limits.admit(0, 0.0) is None
    limits.take_output(90, 0.0)
    refusal = limits.admit(0, 0.0)
    assert refusal is not None
    assert (refusal.dimension, refusal.retry_after_s) == ("output tokens", 31)
    assert limits.remaining(0.0)["output_tokens"] == 0
    assert limits.admit(0, 31.0) is None


def test_the_longest_wait_is_the_one_told() -> None:
    limits = AccountLimits(RateLimits(requests_per_minute=60, input_tokens_per_minute=60), 0.0)
    assert limits.admit(60, 0.0) is None
    for _ in range(59):
        limits.admit(0, 0.0)
    refusal = limits.admit(30, 0.0)
    assert refusal is not None
    assert (refusal.dimension, refusal.wait_s) == ("input tokens", 30.0)


def test_a_call_larger_than_its_bucket_is_refused_for_ever() -> None:
    limits = AccountLimits(RateLimits(input_tokens_per_minute=60), 0.0)
    refusal = limits.admit(61, 1e6)
    assert refusal is not None
    assert math.isinf(refusal.wait_s)
    assert refusal.retry_after_s == 60


def test_headers_say_limit_remaining_and_when_full() -> None:
    limits = AccountLimits(
        RateLimits(
            requests_per_minute=60, input_tokens_per_minute=600, output_tokens_per_minute=120
        ),
        0.0,
    )
    limits.admit(100, 0.0)
    limits.take_output(60, 0.0)
    wall_s = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
    assert limits.headers(0.0, wall_s) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2026-01-02T03:04:06Z",
        "anthropic-ratelimit-tokens-limit": "720",
        "anthropic-ratelimit-tokens-remaining": "560",
        "anthropic-ratelimit-tokens-reset": "2026-01-02T03:04:35Z",
        "anthropic-ratelimit-input-tokens-limit": "600",
        "anthropic-ratelimit-input-tokens-remaining": "500",
        "anthropic-ratelimit-input-tokens-reset": "2026-01-02T03:04:15Z",
        "anthropic-ratelimit-output-tokens-limit": "120",
        "anthropic-ratelimit-output-tokens-remaining": "60",
        "anthropic-ratelimit-output-tokens-reset": "2026-01-02T03:04:35Z",
    }
    assert AccountLimits(RateLimits(), 0.0).headers(0.0, wall_s) == {}
    assert rfc3339(wall_s - 0.5) == "2026-01-02T03:04:05Z"


def limited(**limits: Any) -> SandboxConfig:
    return SandboxConfig(limits={"haiku": RateLimits(**limits)})


async def test_the_client_gets_429_with_retry_after_and_gets_in_after_it() -> None:
    clock = FakeClock()
    async with (
        Sandbox(limited(requests_per_minute=2), clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox-a", max_retries=0) as client,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox-b", max_retries=0) as other,
    ):

        async def ask(asker: AsyncAnthropic, model: str) -> Any:
            return await asker.messages.with_raw_response.create(
                model=model, max_tokens=5, messages=HELLO
            )

        first = await ask(client, MODEL)
        assert first.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert "anthropic-ratelimit-tokens-limit" not in first.headers
        # Limits pool by account and model family: the other haiku uses up the same ones.
        await ask(client, "claude-haiku-5-5")
        with pytest.raises(anthropic.RateLimitError, match="2 requests per minute") as caught:
            await ask(client, MODEL)
        headers = caught.value.response.headers
        assert headers["retry-after"] == "30"
        assert headers["anthropic-ratelimit-requests-remaining"] == "0"
        await ask(client, "claude-opus-5")
        await ask(other, MODEL)
        clock.advance(30)
        await ask(client, MODEL)
        assert [call.remaining["requests"] for call in sandbox.calls] == [1, 0, 0, None, 1, 0]
        account = sandbox.calls[0].account
        assert sandbox.state()["buckets"][account]["haiku"]["requests"] == 0


async def test_input_and_output_tokens_are_limited_by_what_usage_says() -> None:
    clock = FakeClock()
    config = limited(input_tokens_per_minute=6000, output_tokens_per_minute=600)
    async with (
        Sandbox(config, clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox-a", max_retries=0) as client,
    ):
        for stream in (False, True):
            sandbox.reset()
            raw = await client.messages.with_raw_response.create(
                model=MODEL, max_tokens=20, messages=HELLO, stream=stream
            )
            (record,) = sandbox.calls
            left = sandbox.core.limits_of(record.account, "haiku").remaining(clock.now())
            assert left["input_tokens"] == 6000 - record.usage["input_tokens"]
            assert left["output_tokens"] == 600 - 20 == 600 - record.usage["output_tokens"]
            # A stream's headers are sent before its output is made.
            told = int(raw.headers["anthropic-ratelimit-output-tokens-remaining"])
            assert told == (600 if stream else 580)


async def test_a_short_burst_fails_below_the_minutes_limit() -> None:
    clock = FakeClock()
    async with (
        Sandbox(limited(requests_per_minute=60, burst_s=2.0), clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox-a", max_retries=0) as client,
    ):
        for _ in range(2):
            await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(model=MODEL, max_tokens=5, messages=HELLO)
    assert caught.value.response.headers["retry-after"] == "1"
    assert caught.value.response.headers["anthropic-ratelimit-requests-limit"] == "60"
