"""What the real API refuses is refused, and the field is named."""

from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from agentcloud.cluster.sandbox import Sandbox, SandboxConfig
from agentcloud.cluster.sandbox.counting import IMAGE_TOKENS
from agentcloud.cluster.sandbox.signatures import Signer

MODEL = "claude-haiku-4-5"
NEWEST = "claude-opus-5-5"
HELLO: Any = [{"role": "user", "content": "Hello there"}]
TOOL: Any = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
USE: Any = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "seen"}
MARKED: Any = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
ABSENT = object()


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def schema_of(part: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"age": part},
        "required": ["age"],
        "additionalProperties": False,
    }
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def foreign_thinking() -> dict[str, Any]:
    signature = Signer("another server").sign("hm", b"12345678")
    return {"type": "thinking", "thinking": "hm", "signature": signature}


async def post(client: AsyncAnthropic, changes: dict[str, Any], path: str = "/v1/messages") -> Any:
    """A raw request, for what the client's own types would not let through."""
    params = {"model": MODEL, "max_tokens": 100, "messages": HELLO, **changes}
    body = {key: value for key, value in params.items() if value is not ABSENT}
    return await client.post(path, body=body, cast_to=object)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": ABSENT}, "model: Field required"),
    ({"model": 7}, "model: Input should be a string"),
    ({"max_tokens": ABSENT}, "max_tokens: Field required"),
    ({"max_tokens": -1}, "max_tokens: Input should be greater than or equal to 0"),
    ({"max_tokens": True}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": "many"}, "max_tokens: Input should be a valid integer"),
    ({"max_tokens": 64_001}, "max_tokens: 64001 > 64000, which is the maximum"),
    ({"prompt": "Hello"}, "prompt: Extra inputs are not permitted"),
    ({"temperature": 1.5}, "temperature: range: 0..1"),
    ({"temperature": "hot"}, "temperature: Input should be a valid number"),
    ({"top_p": -0.1}, "top_p: range: 0..1"),
    ({"temperature": 0.5, "model": NEWEST}, "temperature: is not supported for this model"),
    ({"top_k": 0.5}, "top_k: Input should be a valid integer"),
    ({"stop_sequences": "END"}, "stop_sequences: Input should be a list"),
    ({"stop_sequences": [" "]}, "stop_sequences: each stop sequence must contain non-whitespace"),
    ({"stream": "yes"}, "stream: Input should be a valid boolean"),
    ({"metadata": "me"}, "metadata: Input should be a valid dictionary"),
    ({"system": 5}, "system: Input should be a valid string"),
    ({"system": [USE]}, "system.0.type: Input should be 'text'"),
    # messages
    ({"messages": ABSENT}, "messages: Field required"),
    ({"messages": []}, "messages: at least one message is required"),
    ({"messages": "Hello"}, "messages: Input should be a valid list"),
    ({"messages": ["Hello"]}, "messages.0: Input should be a valid dictionary"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role"),
    ({"messages": [{"content": "Hi"}]}, "messages.0.role: Field required"),
    ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
    ({"messages": [user("")]}, "messages.0: user messages must have non-empty content"),
    ({"messages": [{**user("Hi"), "name": "me"}]}, "messages.0.name: Extra inputs"),
    ({"messages": [assistant("Hi"), user("Hi")]}, 'first message must use the "user" role'),
    ({"messages": [user("Hi"), assistant("So")], "model": NEWEST}, "assistant message prefill"),
    ({"messages": [user([{"type": "text"}])]}, "messages.0.content.0.text: Field required"),
    ({"messages": [user([{"type": "text", "text": ""}])]}, "text content blocks must be non-empty"),
    ({"messages": [user([{"type": "song"}])]}, "messages.0.content.0.type: Input tag 'song'"),
    ({"messages": [user([{"text": "Hi"}])]}, "messages.0.content.0.type: Field required"),
    ({"messages": [user([{"type": "image"}])]}, "messages.0.content.0.source: Field required"),
    ({"messages": [user([USE])]}, "`tool_use` blocks are not allowed in `user` messages"),
    # tools answered
    ({"messages": [user("Hi"), assistant([USE]), user("and?")]}, "messages.1: `tool_use` ids were"),
    ({"messages": [user("Hi"), assistant([USE])]}, "without `tool_result` blocks immediately"),
    ({"messages": [user([RESULT])]}, "messages.0.content: unexpected `tool_use_id`"),
    (
        {"messages": [user("Hi"), *[assistant([USE]), user([RESULT])] * 2]},
        "`tool_use` ids must be unique",
    ),
    # thinking
    ({"messages": [user("Hi"), assistant([foreign_thinking()]), user("So")]}, "Invalid `sign"),
    (
        {"messages": [user("Hi"), assistant([{"type": "redacted_thinking", "data": "x"}])]},
        "Invalid `data` in `redacted_thinking`",
    ),
    ({"thinking": {"type": "hard"}}, "thinking.type: Input should be"),
    ({"thinking": {"type": "adaptive"}}, '"thinking.type.adaptive" is not supported for this'),
    ({"thinking": {"type": "enabled"}}, "thinking.enabled.budget_tokens: Field required"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "greater than or equal to 1024"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "greater than thinking.budget"),
    ({"thinking": {"type": "disabled"}, "model": NEWEST}, '"thinking.type.disabled" is not'),
    # tools
    ({"tools": "hammer"}, "tools: Input should be a valid list"),
    ({"tools": [{"input_schema": {"type": "object"}}]}, "tools.0.name: Field required"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.name: String should match pattern"),
    ({"tools": [TOOL, TOOL]}, "tools: Tool names must be unique"),
    ({"tools": [{"name": "look"}]}, "tools.0.input_schema: Field required"),
    ({"tools": [{"name": "look", "input_schema": {}}]}, "tools.0.input_schema.type"),
    ({"tools": [{**TOOL, "strict": True}]}, "tools.0.input_schema: For 'object' type"),
    ({"tool_choice": {"type": "auto"}}, "tool_choice may only be specified while providing tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "must"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "Tool 'x' not found"),
    ({"tools": [TOOL], "tool_choice": {"type": "any"}, "model": NEWEST}, "forced tool use"),
    (
        {
            "tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 2000,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
        },
        "Thinking may not be enabled when tool_choice forces tool use",
    ),
    # structured output
    ({"output_config": []}, "output_config: Input should be a valid dictionary"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"),
    ({"output_config": {"style": "x"}}, "output_config.style: Extra inputs"),
    ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: Field"),
    (
        schema_of({"type": "integer", "minimum": 0}),
        "output_config.format.schema.properties.age: For 'integer' type, properties minimum",
    ),
    # caching
    ({"system": [MARKED] * 5}, "A maximum of 4 blocks with cache_control may be provided. Found 5"),
    ({"cache_control": {"type": "for ever"}}, "cache_control.type: Input should be 'ephemeral'"),
    (
        {"system": [{**MARKED, "cache_control": {"type": "ephemeral", "ttl": "2h"}}]},
        "system.0.cache_control.ttl: Input should be '5m' or '1h'",
    ),
    (
        {"system": [MARKED, {**MARKED, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        "must not come after a ttl='5m'",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
async def test_bad_requests_are_refused_by_field(
    client: AsyncAnthropic, sandbox: Sandbox, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await post(client, changes)
    assert caught.value.type == "invalid_request_error"
    assert problem in str(caught.value.api_message)
    assert sandbox.calls[0].usage == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 1, "top_p": 0.5, "top_k": 40},
        {"messages": [user("Hi"), {"role": "system", "content": "Be terse."}, user("So?")]},
        {"messages": [user("Hi"), assistant("So I")]},
        {"messages": [user("Hi"), assistant([USE]), user([RESULT, {"type": "text", "text": "?"}])]},
        {"messages": [user("Hi"), assistant([USE]), user([RESULT]), user("and?")]},
        {"messages": [user("Hi"), assistant([USE]), user([{**RESULT, "content": [MARKED]}])]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [TOOL], "tool_choice": {"type": "none"}},
        {"system": [MARKED] * 4},
        {"output_config": {"effort": "low"}, "metadata": {"user_id": "me"}},
        {"thinking": {"type": "disabled"}},
    ],
)
async def test_unusual_but_valid_requests_pass(
    client: AsyncAnthropic, changes: dict[str, Any]
) -> None:
    message = await post(client, changes)
    assert message["type"] == "message"


async def test_images_and_documents_are_counted(client: AsyncAnthropic) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    counted = await client.messages.count_tokens(model=MODEL, messages=[user(content)])  # type: ignore[list-item]  # a plain dict
    assert counted.input_tokens == IMAGE_TOKENS + 3 + 3


async def test_a_prompt_above_the_context_is_refused_and_a_full_one_stops_early(
    client: AsyncAnthropic,
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="too long: 200003 tokens > 200000"):
        await post(client, {"messages": [user("a" * 800_000)]})
    full = await post(client, {"messages": [user("a" * (4 * (200_000 - 3 - 10)))]})
    assert full["stop_reason"] == "model_context_window_exceeded"
    assert full["usage"]["output_tokens"] == 10


async def test_bodies_that_are_no_json_or_too_large_are_refused() -> None:
    async with (
        Sandbox(SandboxConfig(max_body_bytes=1000)) as sandbox,
        AsyncAnthropic(base_url=sandbox.url, api_key="sandbox", max_retries=0) as client,
    ):
        for body, problem in ((b"{", "not valid JSON"), (b"[]", "valid dictionary")):
            with pytest.raises(anthropic.BadRequestError, match=problem):
                await client.post("/v1/messages", content=body, cast_to=object)
        with pytest.raises(anthropic.RequestTooLargeError) as caught:
            await post(client, {"messages": [user("a" * 2000)]})
        assert '"type":"request_too_large"' in caught.value.response.text


async def test_routes_and_the_version_header_are_checked(client: AsyncAnthropic) -> None:
    for path in ("/v1/nothing", "/v1/messages/nothing"):
        with pytest.raises(anthropic.NotFoundError):
            await client.post(path, body={}, cast_to=object)
    with pytest.raises(anthropic.BadRequestError, match="anthropic-version: header is required"):
        await client.post(
            "/v1/messages",
            body={},
            cast_to=object,
            options={"headers": {"anthropic-version": anthropic.Omit()}},
        )
    for query in ("limit=0", "limit=x", "after_id=nothing"):
        with pytest.raises(anthropic.BadRequestError):
            await client.get(f"/v1/models?{query}", cast_to=object)


async def test_counting_checks_what_creating_checks(client: AsyncAnthropic) -> None:
    counting = "/v1/messages/count_tokens"
    assert await post(client, {"max_tokens": ABSENT}, counting) == {"input_tokens": 6}
    with pytest.raises(anthropic.BadRequestError, match="messages: Field required"):
        await post(client, {"max_tokens": ABSENT, "messages": ABSENT}, counting)
    with pytest.raises(anthropic.NotFoundError):
        await post(client, {"model": "nothing"}, counting)


async def test_own_thinking_is_accepted_and_altered_thinking_is_not(client: AsyncAnthropic) -> None:
    params: Any = {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    first = await post(client, params)
    block = first["content"][0]
    turn = {**params, "messages": [*HELLO, assistant([block]), user("So?")]}
    assert (await post(client, turn))["type"] == "message"
    block["thinking"] += "!"
    with pytest.raises(anthropic.BadRequestError, match=r"messages.1.content.0: Invalid `sign"):
        await post(client, turn)
