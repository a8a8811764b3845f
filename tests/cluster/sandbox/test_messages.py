"""The real client against every route."""

import asyncio
import hashlib
from typing import Any

import anthropic
import jsonschema
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, TextBlock, ThinkingBlock, ToolUseBlock
from pydantic import BaseModel

from agentcloud.cluster.sandbox import Sandbox, SandboxConfig

MODEL = "claude-haiku-4-5"
NEWEST = "claude-haiku-5-5"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "strict": True,
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
ONE_TOOL = {"type": "auto", "disable_parallel_tool_use": True}
TIME: Any = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}


async def streamed(client: AsyncAnthropic, **params: Any) -> Message:
    async with client.messages.stream(**params) as stream:
        async for _ in stream:
            pass
        return await stream.get_final_message()


def texts(message: Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


async def test_a_unary_answer_is_whole_and_labelled(client: AsyncAnthropic) -> None:
    message = await client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    assert message.model == MODEL
    assert texts(message).startswith("[synthetic claude-haiku-4-5 ")
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == 32
    assert message.usage.cache_creation is not None
    assert message._request_id is not None
    assert message._request_id.startswith("req_")


async def test_equal_requests_have_equal_answers_and_others_others(client: AsyncAnthropic) -> None:
    one = await client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    two = await client.messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    other = await client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "Good bye"}]
    )
    assert one.content == two.content != other.content
    assert one.id != two.id


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"max_tokens": 5},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}},
        {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 6},
        {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {
            "max_tokens": 2000,
            "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
        },
        {"output_config": {"format": {"type": "json_schema", "schema": WEATHER["input_schema"]}}},
        {"extra_headers": {"x-sandbox-fault": "refusal"}},
    ],
    ids=["text", "cut", "tool", "cut-tool", "thinking", "hidden-thinking", "json", "refusal"],
)
async def test_a_stream_accumulates_to_the_unary_answer(
    client: AsyncAnthropic, extra: dict[str, Any]
) -> None:
    params: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": HELLO, **extra}
    unary = await client.messages.create(**params)
    whole = await streamed(client, **params)
    want, got = unary.to_dict(), whole.to_dict()
    for volatile in ("id", "parsed_output"):
        want.pop(volatile, None)
        got.pop(volatile, None)
    for block in got["content"]:  # type: ignore[attr-defined]  # to_dict is untyped inside
        block.pop("parsed_output", None)
    assert got == want


async def test_raw_events_come_in_the_apis_order(client: AsyncAnthropic) -> None:
    stream = await client.messages.create(model=MODEL, max_tokens=3, messages=HELLO, stream=True)
    kinds = [event.type async for event in stream]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_max_tokens_cuts_and_is_counted_exactly(client: AsyncAnthropic) -> None:
    message = await client.messages.create(model=MODEL, max_tokens=7, messages=HELLO)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 7
    assert len(texts(message)) == 28


async def test_no_tokens_at_all_only_warm_the_cache(client: AsyncAnthropic) -> None:
    message = await client.messages.create(model=MODEL, max_tokens=0, messages=HELLO)
    assert (message.content, message.stop_reason) == ([], "max_tokens")
    assert message.usage.output_tokens == 0


async def test_a_stop_sequence_ends_the_answer(client: AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=MODEL, max_tokens=100, messages=HELLO, stop_sequences=["haiku"]
    )
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == "haiku"
    assert texts(message) == "[synthetic claude-"


@pytest.mark.parametrize(
    ("choice", "text", "called"),
    [
        (None, "What is the get weather in Rome?", ["get_weather"]),
        (None, "Call get_weather and get_time now", ["get_weather", "get_time"]),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            "get_weather, get_time",
            ["get_weather"],
        ),
        (None, "use a tool", ["get_weather"]),
        (None, "just say hello", []),
        ({"type": "none"}, "get_weather", []),
        ({"type": "any"}, "hello", ["get_weather"]),
        ({"type": "tool", "name": "get_time"}, "hello", ["get_time"]),
    ],
)
async def test_tools_are_called_by_the_documented_rule(
    client: AsyncAnthropic, choice: Any, text: str, called: list[str]
) -> None:
    params: dict[str, Any] = {"tool_choice": choice} if choice else {}
    message = await client.messages.create(
        model=MODEL,
        max_tokens=200,
        tools=[WEATHER, TIME],
        messages=[{"role": "user", "content": text}],
        **params,
    )
    uses = [block for block in message.content if isinstance(block, ToolUseBlock)]
    assert [use.name for use in uses] == called
    assert message.stop_reason == ("tool_use" if called else "end_turn")
    for use in uses:
        if use.name == "get_weather":
            jsonschema.validate(use.input, WEATHER["input_schema"])


async def test_a_tool_conversation_with_thinking_goes_round(client: AsyncAnthropic) -> None:
    params: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 2000,
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    ask: Any = {"role": "user", "content": "get_weather of Rome"}
    first = await client.messages.create(messages=[ask], **params)
    assert isinstance(first.content[0], ThinkingBlock)
    use = first.content[1]
    assert isinstance(use, ToolUseBlock)
    assert first.usage.output_tokens_details is not None
    assert first.usage.output_tokens_details.thinking_tokens > 0
    result: Any = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}],
    }
    second = await client.messages.create(messages=[ask, first.to_param(), result], **params)
    assert second.stop_reason == "end_turn"


async def test_structured_output_parses_in_the_client(client: AsyncAnthropic) -> None:
    class Ticket(BaseModel):
        title: str
        urgent: bool
        tags: list[str]

    message = await client.messages.parse(
        model=NEWEST, max_tokens=500, messages=HELLO, output_format=Ticket
    )
    assert isinstance(message.parsed_output, Ticket)


async def test_count_tokens_is_what_usage_says(client: AsyncAnthropic) -> None:
    params: dict[str, Any] = {
        "model": MODEL,
        "system": "You are terse.",
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "How warm is it in Rome?"}]}
        ],
    }
    counted = await client.messages.count_tokens(**params)
    message = await client.messages.create(max_tokens=10, **params)
    assert counted.input_tokens == message.usage.input_tokens > 20


async def test_models_are_paged_newest_first(client: AsyncAnthropic) -> None:
    page = await client.models.list(limit=2)
    assert len(page.data) == 2
    assert page.has_more
    names = [model.id async for model in page]
    assert names[0] == NEWEST
    assert len(names) == len(set(names)) == 5
    before = await client.models.list(limit=20, before_id=names[2])
    assert [model.id for model in before.data] == names[:2]
    model = await client.models.retrieve(NEWEST)
    assert model.max_tokens == 128_000
    assert model.capabilities is not None
    assert not model.capabilities.thinking.types.enabled.supported


async def test_unknown_models_are_not_found_unless_configured(client: AsyncAnthropic) -> None:
    dated: Any = "claude-sonnet-4-20250514"
    with pytest.raises(anthropic.NotFoundError, match="model: nothing"):
        await client.messages.create(model="nothing", max_tokens=1, messages=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        await client.models.retrieve(dated)
    async with (
        Sandbox(SandboxConfig(aliases={"dated": MODEL})) as other,
        AsyncAnthropic(base_url=other.url, api_key="sandbox", max_retries=0) as aliased,
    ):
        message = await aliased.messages.create(model="dated", max_tokens=9, messages=HELLO)
    assert message.model == MODEL


@pytest.mark.parametrize("credentials", [{"api_key": "wrong"}, {"auth_token": "wrong"}])
async def test_wrong_keys_are_refused(sandbox: Sandbox, credentials: dict[str, str]) -> None:
    async with AsyncAnthropic(base_url=sandbox.url, max_retries=0, **credentials) as client:  # type: ignore[arg-type]  # keyword sets
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
    assert caught.value.type == "authentication_error"
    assert caught.value.request_id


async def test_bearer_tokens_and_configured_keys_open_accounts() -> None:
    config = SandboxConfig.model_validate({"api_keys": ["one", "two"]})
    assert "one" not in repr(config)
    async with Sandbox(config) as sandbox:
        async with AsyncAnthropic(base_url=sandbox.url, auth_token="one", max_retries=0) as bearer:
            await bearer.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
        async with AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as wrong:
            with pytest.raises(anthropic.AuthenticationError):
                await wrong.messages.create(model=MODEL, max_tokens=1, messages=HELLO)
        assert [call.account for call in sandbox.calls] == [hashlib.sha256(b"one").hexdigest()[:12]]


async def test_the_state_lists_calls_and_reset_forgets_them(
    sandbox: Sandbox, client: AsyncAnthropic
) -> None:
    await asyncio.gather(
        *(client.messages.create(model=MODEL, max_tokens=4, messages=HELLO) for _ in range(3))
    )
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.create(model=MODEL, max_tokens=10**9, messages=HELLO, timeout=9)
    state: Any = await client.get("/sandbox/state?last=2", cast_to=object)
    assert state["count"] == 4
    assert state["outcomes"] == {"ok": 3, "invalid_request_error": 1}
    assert [call["number"] for call in state["calls"]] == [3, 4]
    assert state["calls"][0]["usage"]["output_tokens"] == 4
    assert state["calls"][0]["headers"]["x-stainless-retry-count"] == "0"
    await client.post("/sandbox/reset", cast_to=object)
    assert sandbox.state()["count"] == 0


async def test_models_that_think_unasked_do_so_when_told(sandbox: Sandbox) -> None:
    async with (
        Sandbox(SandboxConfig(think_by_default=True)) as thinking,
        AsyncAnthropic(base_url=thinking.url, api_key="sandbox", max_retries=0) as client,
    ):
        message = await client.messages.create(
            model="claude-opus-5-5", max_tokens=100, messages=HELLO
        )
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert isinstance(message.content[0], ThinkingBlock)
    assert message.content[0].thinking == ""
    assert sandbox.core.signer.is_own("", message.content[0].signature)
