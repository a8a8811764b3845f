"""Streams that break in their text, carried on by another send, over real HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import RawMessageStreamEvent

from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import Outcome, Routing
from agentcloud.cluster.errors import StreamBroken
from agentcloud.cluster.fold import MessageFold
from agentcloud.cluster.inference_stream import InferenceStream
from agentcloud.cluster.sandbox import Fault, FaultKind
from tests.cluster.serving import HAIKU, PARAMS, Served, serving

ON = Routing(continuation=True)
BREAKS = Fault(kind=FaultKind.STREAM_ERROR, after_deltas=2)
TOOL = {"name": "lookup", "input_schema": {"type": "object", "properties": {}}}


async def read(
    served: Served, stream: InferenceStream, events: list[RawMessageStreamEvent]
) -> None:
    async def work() -> None:
        async for event in stream:
            events.append(event)

    await served.with_time(work())


@pytest.mark.parametrize("breaks", [1, 2])
async def test_the_caller_sees_one_message_and_pays_for_all_its_parts(
    monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    async with serving(monkeypatch, clock=FakeClock()) as served:
        served.sandbox.add_fault(BREAKS, count=breaks)
        stream = served.inference.stream(PARAMS, ON)
        events: list[RawMessageStreamEvent] = []
        await read(served, stream, events)
        kinds = [event.type for event in events]
        for once in ("message_start", "content_block_start", "content_block_stop", "message_stop"):
            assert kinds.count(once) == 1, once
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
        fold = MessageFold()
        for event in events:
            fold.add(event.to_dict())
        message = fold.as_dict()
        assert message["stop_reason"] == "end_turn"
        # Each part of a synthetic answer names itself, and none is given twice.
        assert message["content"][0]["text"].count("[synthet") == breaks + 1
        receipt = stream.receipt
        assert receipt is not None
        assert (receipt.attempts, receipt.continued_from) == (breaks + 1, f"main/{HAIKU}")
        assert receipt.reason.startswith(f"goes on from main/{HAIKU}: ")
        assert receipt.cost_usd is None, "what the broken part cost was never told"
        broken = served.scheduler.leases[:-1]
        assert receipt.unknown_usd == sum(lease.reserved_usd for lease in broken) > 0
        outcomes = [settled.outcome for settled in served.scheduler.settled]
        assert outcomes == [Outcome.UNKNOWN] * breaks + [Outcome.OK]
        # The usage is of all parts, in the events as in the receipt.
        billed = [call.usage["input_tokens"] for call in served.sandbox.calls]
        assert message["usage"]["input_tokens"] == receipt.usage.input_tokens == sum(billed)
        assert message["usage"]["output_tokens"] == receipt.usage.output_tokens
        last = served.sandbox.calls[-1].usage["output_tokens"]
        assert receipt.usage.output_tokens >= last + breaks
        # A later part's prompt holds the text so far.
        assert billed == sorted(set(billed))


async def test_anthropics_own_helper_sees_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, retry={"base_s": 0.001}) as served:
        served.sandbox.add_fault(BREAKS)
        async with AsyncAgentCloud(served.inference).messages.stream(
            routing=ON, **PARAMS
        ) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            message = await stream.get_final_message()
        assert [block.type for block in message.content] == ["text"]
        assert message.content[0].type == "text"
        assert message.content[0].text == text
        assert message.usage.input_tokens == message.agentcloud.usage.input_tokens


@pytest.mark.parametrize(
    "why",
    ["not asked", "tools", "thinking", "no prefill", "last attempt", "text is spent"],
)
async def test_what_cannot_go_on_is_broken_with_what_arrived(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    params: dict[str, Any] = dict(PARAMS)
    routing = ON
    changes: dict[str, Any] = {}
    if why == "not asked":
        routing = Routing()
    elif why == "tools":
        params |= {"tools": [TOOL], "messages": [{"role": "user", "content": "Use the tool."}]}
    elif why == "thinking":
        params |= {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    elif why == "no prefill":
        params["model"] = "claude-haiku-5-5"
        changes = {"hosted": {"claude-haiku-5-5": {"account": "main"}}}
    elif why == "last attempt":
        routing = Routing(continuation=True, max_attempts=1)
    else:
        params["max_tokens"] = 8
    async with serving(monkeypatch, clock=FakeClock(), **changes) as served:
        served.sandbox.add_fault(
            Fault(kind=FaultKind.CUT_MID_STREAM, after_deltas=6 if why == "text is spent" else 1)
        )
        stream = served.inference.stream(params, routing)
        events: list[RawMessageStreamEvent] = []
        with pytest.raises(StreamBroken) as caught:
            await read(served, stream, events)
        assert served.sends == 1
        error = caught.value
        assert error.partial is not None
        assert error.partial["content"]
        assert error.usage is not None
        assert error.usage["input_tokens"] > 0
        assert [event.type for event in events].count("message_stop") == 0
        assert ("cannot go on" in str(error)) is (why == "no prefill")
        assert served.scheduler.core.budgets()[0].unknown_usd > 0
