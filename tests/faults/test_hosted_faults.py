"""Each fault of the sandbox, over real HTTP, through the one retry loop."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal

import pytest

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import Outcome, Routing
from agentcloud.cluster.errors import (
    BackendError,
    CallTimeout,
    ConnectionFailed,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
    RateLimited,
    StreamBroken,
    Unusable,
)
from agentcloud.cluster.hosted import HostedEndpoint
from agentcloud.cluster.sandbox import Fault, FaultKind, Latency, SandboxConfig
from tests.cluster.serving import CANARY, HAIKU, PARAMS, serving, until

ONCE = Routing(max_attempts=1)
HANGS = (FaultKind.HANG, FaultKind.HANG_MID_STREAM)


def once(fault: Fault) -> Routing:
    """One send; only where the server hangs is its time short."""
    return Routing(max_attempts=1, timeout_s=0.3 if fault.kind in HANGS else None)


ERRORS = [
    (Fault(kind=FaultKind.RATE_LIMIT, retry_after_s=7), RateLimited, "rate_limit_error", False),
    (Fault(kind=FaultKind.API_ERROR), Overloaded, "api_error", False),
    (Fault(kind=FaultKind.OVERLOADED), Overloaded, "overloaded_error", False),
    (Fault(kind=FaultKind.STREAM_ERROR), Overloaded, "overloaded_error", True),
    (
        Fault(kind=FaultKind.STREAM_ERROR, error_type="rate_limit_error"),
        RateLimited,
        "rate_limit_error",
        True,
    ),
    (Fault(kind=FaultKind.CUT_BEFORE_HEADERS), ConnectionFailed, "connection_error", True),
    (
        Fault(kind=FaultKind.CUT_MID_STREAM, after_deltas=2),
        ConnectionFailed,
        "connection_error",
        True,
    ),
    (Fault(kind=FaultKind.MALFORMED_SSE), Overloaded, "api_error", True),
    (Fault(kind=FaultKind.HANG), CallTimeout, "timeout_error", True),
    (Fault(kind=FaultKind.HANG_MID_STREAM), CallTimeout, "timeout_error", True),
    (Fault(kind=FaultKind.AUTHENTICATION), Unusable, "authentication_error", False),
    (Fault(kind=FaultKind.BILLING), Unusable, "billing_error", False),
    (Fault(kind=FaultKind.PERMISSION), Unusable, "permission_error", False),
    (Fault(kind=FaultKind.SPEND_LIMIT), InvalidRequest, "invalid_request_error", False),
    (Fault(kind=FaultKind.CONFLICT), BackendError, "conflict_error", False),
]


@pytest.mark.parametrize(
    ("fault", "cls", "kind", "maybe_paid"), ERRORS, ids=lambda each: getattr(each, "kind", None)
)
async def test_one_send_gives_one_error_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    cls: type[BackendError],
    kind: str,
    maybe_paid: bool,
) -> None:
    async with serving(monkeypatch) as served:
        served.sandbox.add_fault(fault)
        with pytest.raises(cls) as caught:
            await served.inference.create(PARAMS, once(fault))
        error = caught.value
        assert type(error) is cls
        assert (error.kind, error.maybe_paid) == (kind, maybe_paid)
        assert error.endpoint == f"main/{HAIKU}"
        assert "\n" not in str(error)
        assert served.sends == 1
        (settlement,) = served.scheduler.settled
        assert settlement.error_kind == kind
        # What may have been paid stays charged at its reservation; what was not costs nothing.
        assert settlement.outcome is (Outcome.UNKNOWN if maybe_paid else Outcome.FAILED)
        assert settlement.cost_usd == (None if maybe_paid else Decimal(0))
        spent = served.scheduler.core.budgets()[0]
        assert (spent.unknown_usd > 0) is maybe_paid


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind=FaultKind.RATE_LIMIT, retry_after_s=0),
        Fault(kind=FaultKind.API_ERROR),
        Fault(kind=FaultKind.OVERLOADED),
        Fault(kind=FaultKind.STREAM_ERROR),
        Fault(kind=FaultKind.CUT_BEFORE_HEADERS),
        Fault(kind=FaultKind.CUT_MID_STREAM),
        Fault(kind=FaultKind.MALFORMED_SSE),
        Fault(kind=FaultKind.CONFLICT),
    ],
    ids=lambda fault: fault.kind,
)
@pytest.mark.parametrize("max_attempts", [1, 2, 4])
async def test_sends_never_exceed_the_cap(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, max_attempts: int
) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(fault, count=20)
        with pytest.raises(BackendError):
            await served.with_time(
                served.inference.create(PARAMS, Routing(max_attempts=max_attempts))
            )
        assert served.sends == max_attempts
        # None of them by the vendor's client: its retries would say so.
        assert all(
            call.headers.get("x-stainless-retry-count") == "0" for call in served.sandbox.calls
        )


async def test_retry_after_is_obeyed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        # Above 60 s, which the vendor's client ignores.
        served.sandbox.add_fault(Fault(kind=FaultKind.RATE_LIMIT, retry_after_s=90))
        began_s = served.clock.now()
        message = await served.with_time(served.inference.create(PARAMS))
        assert served.clock.now() - began_s >= 90
        assert message.agentcloud.attempts == 2
        assert message.agentcloud.timings.total_s is not None
        assert message.agentcloud.timings.total_s >= 90


async def test_a_failure_before_any_answer_is_sent_again_and_its_cost_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.OVERLOADED))
        message = await served.with_time(served.inference.create(PARAMS))
        receipt = message.agentcloud
        assert receipt.attempts == served.sends == 2
        assert receipt.cost_usd is not None
        assert receipt.cost_usd > 0
        assert receipt.spent_elsewhere_usd == 0


async def test_an_answer_lost_on_the_way_makes_the_cost_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.CUT_MID_STREAM, after_deltas=2))
        message = await served.with_time(served.inference.create(PARAMS))
        assert message.agentcloud.attempts == 2
        assert message.agentcloud.cost_usd is None
        assert served.scheduler.core.budgets()[0].unknown_usd > 0


async def test_malformed_json_over_the_unary_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, wire="unary") as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.MALFORMED_JSON))
        with pytest.raises(Overloaded, match="not one of the Messages API") as caught:
            await served.inference.create(PARAMS, ONCE)
        assert caught.value.maybe_paid
        message = await served.inference.create(PARAMS)
        assert message.agentcloud.timings.ttft_s is None, "never a guess"
        served.sandbox.add_fault(Fault(kind=FaultKind.CUT_MID_BODY))
        with pytest.raises(ConnectionFailed) as cut:
            await served.inference.create(PARAMS, ONCE)
        assert cut.value.maybe_paid


async def test_nothing_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as served:
        await served.sandbox.stop()
        with pytest.raises(ConnectionFailed, match="cannot connect") as caught:
            await served.inference.create(PARAMS, ONCE)
        assert not caught.value.maybe_paid
        assert served.scheduler.settled[-1].cost_usd == 0


async def test_a_slow_first_token_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.SLOW_FIRST_TOKEN, delay_s=0.2))
        timings = (await served.inference.create(PARAMS)).agentcloud.timings
        assert timings.ttft_s is not None
        assert timings.generation_s is not None
        assert timings.total_s is not None
        assert timings.ttft_s >= 0.2
        assert timings.generation_s < 0.2
        assert timings.total_s >= timings.ttft_s + timings.generation_s


async def test_a_stream_goes_on_elsewhere_until_its_first_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.STREAM_ERROR, after_deltas=0))
        stream = served.inference.stream(PARAMS)
        await served.with_time(stream.open())
        events = [event.type async for event in stream]
        assert events[0] == "message_start"
        assert events.count("message_start") == 1, "nothing of the failed attempt is shown"
        assert events[-1] == "message_stop"
        assert stream.receipt is not None
        assert stream.receipt.attempts == served.sends == 2


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(kind=FaultKind.STREAM_ERROR, after_deltas=2), "overloaded_error"),
        (Fault(kind=FaultKind.CUT_MID_STREAM, after_deltas=2), "connection_error"),
        (Fault(kind=FaultKind.HANG_MID_STREAM, after_deltas=2), "timeout_error"),
    ],
    ids=lambda each: getattr(each, "kind", None),
)
async def test_a_stream_is_never_rerouted_after_content(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: str
) -> None:
    async with serving(monkeypatch) as served:
        served.sandbox.add_fault(fault)
        pieces: list[str] = []

        async def read() -> None:
            async with served.inference.stream(PARAMS, Routing(timeout_s=0.3)) as stream:
                async for event in stream:
                    if event.type == "content_block_delta" and event.delta.type == "text_delta":
                        pieces.append(event.delta.text)

        with pytest.raises(StreamBroken) as caught:
            await read()
        text = "".join(pieces)
        error = caught.value
        assert text
        assert served.sends == 1
        assert error.kind == kind
        assert error.partial is not None
        assert error.partial["content"][0]["text"] == text
        assert error.usage is not None
        assert error.usage["input_tokens"] > 0
        assert served.scheduler.settled[-1].outcome is Outcome.UNKNOWN


async def test_no_retry_passes_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.CONFLICT, retry_after_s=30), count=9)
        with pytest.raises(BackendError):
            await served.inference.create(PARAMS, Routing(deadline_s=10))
        assert served.sends == 1
        assert served.slept_s() == []


async def test_a_deadline_limits_each_send(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(Fault(kind=FaultKind.HANG))
        with pytest.raises(CallTimeout) as caught:
            await served.inference.create(PARAMS, Routing(deadline_s=0.3, max_attempts=1))
        assert caught.value.timeout_s == pytest.approx(0.3)
        assert served.sends == 1


async def test_a_prompt_beyond_the_context_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sandbox's own context is smaller than what the catalogue lets through.
    models = SandboxConfig().models
    small = {HAIKU: models[HAIKU].model_copy(update={"context_tokens": 100})}
    async with serving(monkeypatch, SandboxConfig(models=small)) as served:
        long = {**PARAMS, "messages": [{"role": "user", "content": "word " * 400}]}
        with pytest.raises(ContextTooLong):
            await served.inference.create(long)
        assert served.sends == 1


async def test_the_key_is_seen_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    async with serving(monkeypatch, clock=FakeClock()) as served:
        for fault, *_ in ERRORS:
            served.sandbox.add_fault(fault)
            with pytest.raises(BackendError) as caught:
                await served.with_time(served.inference.create(PARAMS, once(fault)))
            link: BaseException | None = caught.value
            while link is not None:
                seen += [str(link), repr(link), repr(vars(link))]
                link = link.__cause__ if link.__cause__ is not link else None
            # Back with a clean record, where the error made the endpoint unusable.
            endpoint = served.scheduler.leases[-1].endpoint
            served.scheduler.core.unregister([endpoint.name])
            served.scheduler.core.register([endpoint])
        seen += [repr(served.inference), repr(served.config), repr(served.scheduler.settled)]
        hosted = HostedEndpoint(endpoint, served.config.accounts["main"])
        await hosted.count_tokens(PARAMS)
        seen.append(repr(hosted))
        await hosted.close()
    seen.append(caplog.text)
    assert not [text for text in seen if CANARY in text]


async def test_cancelling_closes_the_connection_and_charges_the_worst_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latency = {"*": Latency(ttft_s=30.0)}
    async with serving(monkeypatch, SandboxConfig(latency=latency)) as served:
        task = asyncio.create_task(served.inference.create(PARAMS))
        await until(lambda: bool(served.sandbox.calls))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: served.sandbox.calls[0].outcome != "open")
        assert served.sandbox.calls[0].outcome == "cancelled"
        (settlement,) = served.scheduler.settled
        assert (settlement.outcome, settlement.cost_usd) == (Outcome.UNKNOWN, None)
        assert served.scheduler.core.budgets()[0].unknown_usd > 0
