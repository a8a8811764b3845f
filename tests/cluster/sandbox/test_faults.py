"""Every fault, as the real client sees it."""

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import AsyncAnthropic

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.sandbox import Fault, FaultKind, FaultRule, Latency, Sandbox, SandboxConfig
from agentcloud.cluster.sandbox.faults import FaultBox
from tests.cluster.sandbox.gates import GatedClock, until

MODEL = "claude-haiku-5-5"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
BROKEN = (anthropic.APIConnectionError, httpx2.TransportError)


async def call(client: AsyncAnthropic, fault: str, *, stream: bool = False) -> list[Any]:
    """The events of a stream, or the message, of a call that meets `fault`."""
    answer: Any = await client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=HELLO,
        stream=stream,
        extra_headers={"x-sandbox-fault": fault},
    )
    return [event async for event in answer] if stream else [answer]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        ("rate_limit; retry_after_s=7", anthropic.RateLimitError, "rate_limit_error"),
        ("rate_limit; retry_after_s=90", anthropic.RateLimitError, "rate_limit_error"),
        ("api_error", anthropic.InternalServerError, "api_error"),
        ("overloaded; retry_after_s=3", anthropic.OverloadedError, "overloaded_error"),
        ("timeout", anthropic.GatewayTimeoutError, "timeout_error"),
        ("billing", anthropic.PaymentRequiredError, "billing_error"),
        ("permission", anthropic.PermissionDeniedError, "permission_error"),
        ("authentication", anthropic.AuthenticationError, "authentication_error"),
        ("spend_limit", anthropic.BadRequestError, "invalid_request_error"),
        ("conflict", anthropic.ConflictError, "conflict_error"),
    ],
)
async def test_errors_before_an_answer(
    client: AsyncAnthropic,
    sandbox: Sandbox,
    fault: str,
    error: type[anthropic.APIStatusError],
    kind: str,
    stream: bool,
) -> None:
    with pytest.raises(error) as caught:
        await call(client, fault, stream=stream)
    assert caught.value.type == kind
    assert caught.value.request_id == sandbox.calls[0].request_id
    _, _, retry_after_s = fault.partition("retry_after_s=")
    assert caught.value.response.headers.get("retry-after") == (retry_after_s or None)
    assert sandbox.calls[0].outcome == kind
    assert sandbox.calls[0].usage == {}


async def test_an_error_inside_a_stream_comes_after_so_many_deltas(
    client: AsyncAnthropic, sandbox: Sandbox
) -> None:
    stream = await client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=HELLO,
        stream=True,
        extra_headers={"x-sandbox-fault": "stream_error; after_deltas=3"},
    )
    kinds = []

    async def read() -> None:
        async for event in stream:
            kinds.append(event.type)

    with pytest.raises(anthropic.APIStatusError) as caught:
        await read()
    assert kinds.count("content_block_delta") == 3
    assert caught.value.type == "overloaded_error"
    assert caught.value.status_code == 200
    assert sandbox.calls[0].outcome == "overloaded_error"
    assert sandbox.calls[0].usage["output_tokens"] == 3


async def test_a_stream_error_answers_a_unary_call_before_anything(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.OverloadedError):
        await call(client, "stream_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["cut_before_headers", "cut_mid_body", "cut_mid_stream"])
async def test_cut_connections(
    client: AsyncAnthropic, sandbox: Sandbox, fault: str, stream: bool
) -> None:
    with pytest.raises(BROKEN):
        await call(client, fault, stream=stream)
    assert [(entry.outcome, entry.fault) for entry in sandbox.calls] == [("cut", fault)]
    assert sandbox.calls[0].status == (None if fault == "cut_before_headers" else 200)
    # The server lives on, and so does the client.
    await call(client, "slow_first_token; delay_s=0")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["malformed_json", "malformed_sse"])
async def test_malformed_answers(
    client: AsyncAnthropic, sandbox: Sandbox, fault: str, stream: bool
) -> None:
    with pytest.raises(json.JSONDecodeError):
        await call(client, fault, stream=stream)
    assert sandbox.calls[0].outcome == "malformed"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["hang", "hang_mid_stream"])
async def test_a_hanging_call_ends_when_its_client_gives_up(
    client: AsyncAnthropic, sandbox: Sandbox, fault: str, stream: bool
) -> None:
    hanging = asyncio.create_task(call(client, fault, stream=stream))
    streaming = fault == "hang_mid_stream" and stream
    await until(lambda: bool(sandbox.calls) and (not streaming or sandbox.calls[0].status == 200))
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    await until(lambda: not sandbox.core.calls.in_flight)
    assert sandbox.calls[0].outcome == "cancelled"


async def test_a_sandbox_stops_although_a_call_hangs() -> None:
    async with (
        Sandbox() as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        hanging = asyncio.create_task(call(client, "hang"))
        await until(lambda: bool(sandbox.calls))
        await sandbox.stop()
        with pytest.raises(anthropic.APIConnectionError):
            await hanging


async def test_a_slow_first_token_comes_after_the_message_started() -> None:
    clock = FakeClock()
    async with (
        Sandbox(clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        events = await call(client, "slow_first_token; delay_s=30", stream=True)
        await call(client, "slow_first_token; delay_s=20")
    assert clock.slept_s == [30, 20]
    assert events[-1].type == "message_stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_and_forced_truncation(client: AsyncAnthropic, stream: bool) -> None:
    for fault, reason in (("refusal", "refusal"), ("max_tokens; after_deltas=2", "max_tokens")):
        events = await call(client, fault, stream=stream)
        end = events[-2].delta if stream else events[0]
        usage = events[-2].usage if stream else events[0].usage
        assert end.stop_reason == reason
        assert (end.stop_details is not None) == (reason == "refusal")
        assert usage.output_tokens == (1 if reason == "refusal" else 2)


async def test_queued_faults_strike_the_next_calls_to_their_models(
    client: AsyncAnthropic, sandbox: Sandbox
) -> None:
    queued: Any = await client.post(
        "/sandbox/faults",
        body={"kind": "overloaded", "count": 2, "model": "claude-haiku-*"},
        cast_to=object,
    )
    assert queued == {"queued": 2}
    sandbox.add_fault(Fault(kind=FaultKind.API_ERROR))
    # The first fault that fits the model strikes, not the first of all.
    outcomes = []
    for model in (MODEL, "claude-opus-5", MODEL, MODEL):
        try:
            await client.messages.create(model=model, max_tokens=1, messages=HELLO)
            outcomes.append("ok")
        except anthropic.APIStatusError as error:
            outcomes.append(str(error.type))
    assert outcomes == ["overloaded_error", "api_error", "overloaded_error", "ok"]


async def test_queued_faults_are_forgotten(client: AsyncAnthropic) -> None:
    body = {"kind": "overloaded", "count": 1_000_000}
    await client.post("/sandbox/faults", body=body, cast_to=object)
    with pytest.raises(anthropic.APIStatusError, match="verloaded"):
        await client.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
    assert await client.delete("/sandbox/faults", cast_to=object) == {"queued": 0}
    await client.messages.create(model=MODEL, max_tokens=1, messages=HELLO)


@pytest.mark.parametrize(
    "body", [{}, {"kind": "nonsense"}, {"kind": "hang", "count": 0}, {"kind": "hang", "what": 1}]
)
async def test_bad_faults_are_refused(client: AsyncAnthropic, body: Any) -> None:
    with pytest.raises(anthropic.BadRequestError):
        await client.post("/sandbox/faults", body=body, cast_to=object)


async def test_a_header_that_names_no_fault_is_refused(client: AsyncAnthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="x-sandbox-fault: kind"):
        await call(client, "nonsense")


def strikes(box: FaultBox, calls: int, model: str = MODEL) -> list[int]:
    return [number for number in range(1, calls + 1) if box.next(model, None) is not None]


def test_rules_strike_by_number_by_turn_and_by_seeded_chance() -> None:
    by_number = FaultRule(kind=FaultKind.OVERLOADED, calls=frozenset({2, 5}))
    assert strikes(FaultBox([by_number], seed=0), 8) == [2, 5]
    by_turn = FaultRule(kind=FaultKind.OVERLOADED, every=3, model="claude-haiku-*")
    assert strikes(FaultBox([by_turn], seed=0), 8) == [3, 6]
    assert strikes(FaultBox([by_turn], seed=0), 8, "claude-opus-5") == []
    by_chance = FaultRule(kind=FaultKind.OVERLOADED, probability=0.3)
    first = strikes(FaultBox([by_chance], seed=1), 1000)
    assert first == strikes(FaultBox([by_chance], seed=1), 1000)
    assert first != strikes(FaultBox([by_chance], seed=2), 1000)
    assert 230 < len(first) < 370


def test_a_reset_starts_rules_anew() -> None:
    box = FaultBox([FaultRule(kind=FaultKind.OVERLOADED, calls=frozenset({1}))], seed=0)
    assert strikes(box, 2) == [1]
    box.reset()
    assert strikes(box, 2) == [1]


async def test_latency_paces_unary_calls_and_streams() -> None:
    clock = FakeClock()
    config = SandboxConfig(latency={"claude-haiku-*": Latency(ttft_s=2.0, per_output_token_s=0.5)})
    async with (
        Sandbox(config, clock=clock) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        await client.messages.create(model=MODEL, max_tokens=4, messages=HELLO)
        assert clock.slept_s == [2.0, 1.5]
        clock.slept_s.clear()
        async with client.messages.stream(model=MODEL, max_tokens=4, messages=HELLO) as stream:
            await stream.get_final_message()
        assert clock.slept_s == [2.0, 0.5, 0.5, 0.5]
        clock.slept_s.clear()
        await client.messages.create(model="claude-opus-5", max_tokens=4, messages=HELLO)
        assert clock.slept_s == []


async def test_jitter_is_seeded_and_bounded() -> None:
    async def waits(seed: int) -> list[float]:
        clock = FakeClock()
        config = SandboxConfig(seed=seed, latency={"*": Latency(ttft_s=1.0, jitter=0.5)})
        async with (
            Sandbox(config, clock=clock) as sandbox,
            AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
        ):
            for _ in range(5):
                await client.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
        return clock.slept_s

    first = await waits(1)
    assert first == await waits(1) != await waits(2)
    assert all(0.5 <= wait_s <= 1.5 for wait_s in first)
    assert len(set(first)) == 5


async def test_a_client_that_leaves_a_stream_pays_for_what_was_made() -> None:
    config = SandboxConfig(latency={"*": Latency(per_output_token_s=1.0)})
    async with (
        Sandbox(config, clock=GatedClock()) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        async with client.messages.stream(model=MODEL, max_tokens=30, messages=HELLO) as stream:
            async for event in stream:
                if event.type == "text":
                    break
        await until(lambda: not sandbox.core.calls.in_flight)
        (record,) = sandbox.calls
        assert record.outcome == "cancelled"
        assert record.usage["output_tokens"] == 1
