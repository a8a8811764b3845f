"""The clients over real HTTP: anthropic's parameters, answers, helpers and exceptions."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, ParsedMessage
from pydantic import BaseModel, ValidationError

from agentcloud.cluster.client import AgentCloud, AsyncAgentCloud
from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.errors import BudgetExceeded, ConfigError, NoEndpoint, RateLimited
from agentcloud.cluster.sandbox import Fault, FaultKind
from tests.cluster.serving import HAIKU, PARAMS, Served, serving


class Ticket(BaseModel):
    category: str
    urgent: bool


def text_of(message: ParsedMessage[Any]) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    async with serving(monkeypatch) as path:
        yield path


@pytest.fixture
def client(served: Served) -> AsyncAgentCloud:
    return AsyncAgentCloud(served.inference)


async def test_an_answer_is_anthropics_own_with_a_receipt(client: AsyncAgentCloud) -> None:
    message = await client.messages.create(**PARAMS)
    receipt = message.agentcloud
    assert issubclass(type(message), Message)
    assert receipt.endpoint == f"main/{HAIKU}"
    assert receipt.model == message.model == HAIKU
    assert receipt.reason
    assert receipt.usage.output_tokens == message.usage.output_tokens
    # Dollars per million tokens: 1 in, 5 out.
    expected = (message.usage.input_tokens + 5 * message.usage.output_tokens) * Decimal("1e-6")
    assert receipt.cost_usd == expected
    # The receipt is not part of the message's data, and outlives pickling.
    assert "agentcloud" not in message.to_json()
    assert pickle.loads(pickle.dumps(message)).agentcloud == receipt
    again = await client.messages.create(
        **{
            **PARAMS,
            "messages": [
                *PARAMS["messages"],
                {"role": "assistant", "content": message.content},
                {"role": "user", "content": "And this one?"},
            ],
        }
    )
    assert again.stop_reason == "end_turn"


async def test_the_stream_helper_is_anthropics_own(client: AsyncAgentCloud) -> None:
    async with client.messages.stream(**PARAMS) as stream:
        assert isinstance(stream, anthropic.AsyncMessageStream)
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert text == text_of(message)
    assert message.agentcloud.attempts == 1
    assert message.agentcloud.timings.ttft_s is not None
    assert stream.agentcloud == message.agentcloud


async def test_raw_events(client: AsyncAgentCloud) -> None:
    stream = await client.messages.create(stream=True, **PARAMS)
    assert isinstance(stream, anthropic.AsyncStream)
    kinds = [event.type async for event in stream]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert stream.agentcloud is not None


async def test_a_stream_left_early_gives_its_lease_back(
    served: Served, client: AsyncAgentCloud
) -> None:
    async with client.messages.stream(**PARAMS) as stream:
        async for _ in stream.text_stream:
            break
        assert served.scheduler.core.inflight == 1, "held until the stream closes"
    assert served.scheduler.core.inflight == 0


async def test_count_tokens_and_parse(client: AsyncAgentCloud) -> None:
    counted = await client.messages.count_tokens(model=HAIKU, messages=PARAMS["messages"])
    message = await client.messages.create(**PARAMS)
    assert counted.input_tokens == message.usage.input_tokens
    parsed = await client.messages.parse(output_format=Ticket, **PARAMS)
    assert isinstance(parsed.parsed_output, Ticket)
    assert parsed.agentcloud.cost_usd is not None
    async with client.messages.stream(output_format=Ticket, **PARAMS) as stream:
        final = await stream.get_final_message()
    assert isinstance(final.parsed_output, Ticket)


async def test_an_answer_that_does_not_validate_was_paid_and_settled(
    served: Served, client: AsyncAgentCloud
) -> None:
    served.sandbox.add_fault(Fault(kind=FaultKind.MAX_TOKENS))
    with pytest.raises(ValidationError):
        await client.messages.parse(output_format=Ticket, **PARAMS)
    assert served.scheduler.settled[-1].cost_usd


@pytest.mark.parametrize(
    ("kind", "raised"),
    [
        (FaultKind.RATE_LIMIT, anthropic.RateLimitError),
        (FaultKind.API_ERROR, anthropic.InternalServerError),
        (FaultKind.OVERLOADED, anthropic.OverloadedError),
        (FaultKind.AUTHENTICATION, anthropic.AuthenticationError),
        (FaultKind.PERMISSION, anthropic.PermissionDeniedError),
        (FaultKind.SPEND_LIMIT, anthropic.BadRequestError),
        (FaultKind.CONFLICT, anthropic.ConflictError),
        (FaultKind.CUT_BEFORE_HEADERS, anthropic.APIConnectionError),
        (FaultKind.HANG, anthropic.APITimeoutError),
    ],
)
async def test_a_failure_is_raised_as_the_bare_client_raises_it(
    served: Served, client: AsyncAgentCloud, kind: FaultKind, raised: type[anthropic.APIError]
) -> None:
    once = client.with_options(max_retries=0)
    served.sandbox.add_fault(Fault(kind=kind, retry_after_s=0), count=2)
    timeout = 0.3 if kind is FaultKind.HANG else 20
    with pytest.raises(raised) as caught:
        await once.messages.create(timeout=timeout, **PARAMS)
    bare = anthropic.AsyncAnthropic(
        api_key="sandbox", base_url=served.sandbox.url, max_retries=0, timeout=timeout
    )
    async with bare:
        with pytest.raises(raised) as theirs:
            await bare.messages.create(**PARAMS)
    assert type(caught.value) is type(theirs.value)
    ours: Any = caught.value
    assert getattr(ours, "status_code", None) == getattr(theirs.value, "status_code", None)
    assert getattr(ours, "type", None) == getattr(theirs.value, "type", None)
    assert ours.__cause__.endpoint == f"main/{HAIKU}"
    assert f"main/{HAIKU}" in str(ours)


async def test_a_stream_fails_where_the_bare_client_fails(
    served: Served, client: AsyncAgentCloud
) -> None:
    served.sandbox.add_fault(Fault(kind=FaultKind.STREAM_ERROR, after_deltas=2))
    stream = await client.messages.create(stream=True, **PARAMS)
    with pytest.raises(anthropic.OverloadedError):
        async for _ in stream:
            pass
    served.sandbox.add_fault(Fault(kind=FaultKind.CUT_MID_STREAM, after_deltas=2))
    async with client.messages.stream(**PARAMS) as helper:
        with pytest.raises(anthropic.APIConnectionError):
            await helper.get_final_message()


async def test_what_only_agentcloud_can_fail_with_stays_ours(
    served: Served, client: AsyncAgentCloud
) -> None:
    with pytest.raises(NoEndpoint, match=r"'gpt-9'.*there are: claude-haiku-4-5, small.*aliases"):
        await client.messages.create(**{**PARAMS, "model": "gpt-9"})
    served.scheduler.core.open_budget(("job:a",), Decimal(0))
    with pytest.raises(BudgetExceeded, match="job:a"):
        await client.messages.create(routing=Routing(budget=("job:a",)), **PARAMS)
    assert served.sends == 0


async def test_routing_options_and_tiers(served: Served, client: AsyncAgentCloud) -> None:
    routed = client.with_routing(Routing(tier="small", priority=3))
    await routed.with_options(max_retries=1, timeout=7).messages.create(**PARAMS)
    routing = served.scheduler.asked[-1].routing
    assert (routing.priority, routing.max_attempts, routing.timeout_s) == (3, 2, 7.0)
    assert served.scheduler.asked[-1].model == "small"
    await client.messages.create(**PARAMS)
    assert served.scheduler.asked[-1].routing == Routing()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base_url": "http://x"}, "base_url of an account in fleet.yaml"),
        ({"http_client": object()}, "http_client"),
        ({"temprature": 1}, "takes no temprature"),
        ({"max_retries": -1}, "give 0 or more"),
    ],
)
async def test_wrong_arguments_of_the_constructor(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AsyncAgentCloud(**arguments)


async def test_wrong_arguments_of_a_call(client: AsyncAgentCloud) -> None:
    with pytest.raises(TypeError, match="unexpected arguments: temprature"):
        await client.messages.create(temprature=1, **PARAMS)
    with pytest.raises(TypeError, match="extra_headers cannot be used"):
        await client.messages.create(extra_headers={"anthropic-beta": "x"}, **PARAMS)
    with pytest.raises(anthropic.BadRequestError, match="lacks max_tokens"):
        await client.messages.create(model=HAIKU, messages=[])
    await client.messages.create(extra_headers=None, system=anthropic.omit, **PARAMS)


async def test_without_an_event_loop(served: Served) -> None:
    def program() -> None:
        with AgentCloud(served.inference, api_key="unused") as client:
            message = client.messages.create(**PARAMS)
            assert message.agentcloud.attempts == 1
            with client.messages.stream(**PARAMS) as stream:
                assert isinstance(stream, anthropic.MessageStream)
                text = "".join(stream.text_stream)
                final = stream.get_final_message()
            assert text_of(final) == text
            assert final.agentcloud.endpoint == f"main/{HAIKU}"
            raw = client.messages.create(stream=True, **PARAMS)
            assert [event.type for event in raw][-1] == "message_stop"
            assert client.messages.count_tokens(model=HAIKU, messages=PARAMS["messages"])
            parsed = client.messages.parse(output_format=Ticket, **PARAMS)
            assert isinstance(parsed.parsed_output, Ticket)
            served.sandbox.add_fault(Fault(kind=FaultKind.RATE_LIMIT, retry_after_s=0))
            with pytest.raises(anthropic.RateLimitError) as caught:
                client.with_options(max_retries=0).messages.create(**PARAMS)
            assert isinstance(caught.value.__cause__, RateLimited)

    # The sandbox serves on this loop, so the program needs a thread of its own.
    await asyncio.to_thread(program)
