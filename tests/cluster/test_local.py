"""LocalEndpoint against a real replica: real Ray, real vLLM."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import jsonschema
import pytest
from anthropic.types import Message, RawMessageDeltaEvent, RawMessageStartEvent, ToolUseBlock

from agentcloud.cluster.errors import CallTimeout, ContextTooLong, InvalidRequest
from agentcloud.cluster.local import LocalEndpoint
from tests.conftest import RunningReplica, message_call

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(420)]


async def test_an_answer_is_a_message_with_usage_and_timings(
    local_endpoint: LocalEndpoint,
) -> None:
    answer = await local_endpoint.create(message_call("plain", max_tokens=8))
    message, timings = answer.message, answer.timings

    assert message.id == "msg_plain"
    assert (message.role, message.model) == ("assistant", "tiny")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens <= 8
    assert timings.ttft_s is not None
    assert timings.ttft_s > 0
    assert timings.generation_s is not None
    assert timings.generation_s > 0
    assert timings.engine_queue_s is not None
    assert timings.engine_queue_s >= 0


async def test_many_calls_at_once_each_get_their_own_answer(
    local_endpoint: LocalEndpoint,
) -> None:
    calls = [message_call(f"many-{i}", max_tokens=1 + i % 7) for i in range(64)]
    answers = await asyncio.gather(*(local_endpoint.create(call) for call in calls))

    for call, answer in zip(calls, answers, strict=True):
        assert answer.message.id == f"msg_{call.call_id}"
        assert answer.message.usage.output_tokens <= call.params["max_tokens"]


async def test_a_bad_call_fails_alone(local_endpoint: LocalEndpoint) -> None:
    good = [message_call(f"good-{i}") for i in range(4)]
    long = message_call("long", "word " * 5000)
    empty = message_call("empty", messages=[])
    document = message_call(
        "document",
        messages=[{"role": "user", "content": [{"type": "document", "source": {}}]}],
    )
    outcomes = await asyncio.gather(
        *(local_endpoint.create(call) for call in [*good, long, empty, document]),
        return_exceptions=True,
    )

    assert [type(outcome).__name__ for outcome in outcomes[:4]] == ["Answer"] * 4
    assert isinstance(outcomes[4], ContextTooLong)
    assert outcomes[4].context_tokens == 2048
    assert isinstance(outcomes[5], InvalidRequest)
    assert isinstance(outcomes[6], InvalidRequest)
    assert "'document' blocks" in str(outcomes[6])


async def test_answers_come_back_as_they_finish(local_endpoint: LocalEndpoint) -> None:
    order: list[str] = []

    async def run(name: str, max_tokens: int) -> None:
        call = message_call(name, max_tokens=max_tokens, stop_sequences=None)
        await local_endpoint.create(call)
        order.append(name)

    await asyncio.gather(run("slow", 600), run("fast", 2))
    assert order[0] == "fast"


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "size": {"type": "integer"}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}


async def test_output_follows_its_schema_in_compact_json(local_endpoint: LocalEndpoint) -> None:
    call = message_call(
        "schema",
        max_tokens=200,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    answer = await local_endpoint.create(call)
    block = answer.message.content[0]

    assert block.type == "text"
    if answer.message.stop_reason == "end_turn":
        jsonschema.validate(json.loads(block.text), SCHEMA)
    assert not any(blank in block.text for blank in " \n\t")


async def test_cut_json_comes_back_with_its_reason_and_usage(
    local_endpoint: LocalEndpoint,
) -> None:
    call = message_call(
        "cut-json",
        max_tokens=3,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    message = (await local_endpoint.create(call)).message
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 3


TOOL: dict[str, Any] = {"name": "paint", "description": "Paints.", "input_schema": SCHEMA}


@pytest.mark.parametrize("choice", [{"type": "tool", "name": "paint"}, {"type": "any"}])
@pytest.mark.parametrize("max_tokens", [3, 12, 25, 40])
async def test_a_cut_tool_call_comes_back_with_its_reason_and_usage(
    local_endpoint: LocalEndpoint, choice: dict[str, str], max_tokens: int
) -> None:
    call = message_call(
        f"cut-tool-{max_tokens}", max_tokens=max_tokens, tools=[TOOL], tool_choice=choice
    )
    message = (await local_endpoint.create(call)).message
    if message.usage.output_tokens == max_tokens:
        assert message.stop_reason in ("max_tokens", "tool_use")
    else:
        assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens <= max_tokens
    for block in message.content:
        if isinstance(block, ToolUseBlock):
            assert isinstance(block.input, dict)


async def test_a_forced_tool_with_a_broken_schema_is_refused_by_name(
    local_endpoint: LocalEndpoint,
) -> None:
    broken = {"type": "object", "properties": {"colour": {"type": "strin"}}}
    call = message_call(
        "broken-schema",
        tools=[{"name": "paint", "description": "Paints.", "input_schema": broken}],
        tool_choice={"type": "any"},
    )
    with pytest.raises(InvalidRequest, match=r"input_schema .* `strict: false`"):
        await local_endpoint.create(call)


async def test_of_several_calls_only_the_cut_one_is_not_whole(
    local_endpoint: LocalEndpoint,
) -> None:
    async def ask(index: int) -> Message:
        call = message_call(
            f"several-{index}", max_tokens=200, tools=[TOOL], tool_choice={"type": "any"}
        )
        return (await local_endpoint.create(call)).message

    messages = await asyncio.gather(*map(ask, range(16)))
    for message in messages:
        assert {block.type for block in message.content} == {"tool_use"}
        cut = message.stop_reason == "max_tokens"
        for block in message.content[: -1 if cut else None]:
            assert isinstance(block, ToolUseBlock)
            jsonschema.validate(block.input, SCHEMA)
    assert any(len(message.content) > 1 for message in messages)


async def test_a_stream_is_the_same_answer_in_events(local_endpoint: LocalEndpoint) -> None:
    call = message_call("whole", max_tokens=12, temperature=0)
    whole = (await local_endpoint.create(call)).message
    events = [
        event
        async for event in local_endpoint.stream(
            message_call("parts", max_tokens=12, temperature=0)
        )
    ]

    assert isinstance(events[0], RawMessageStartEvent)
    assert events[-1].type == "message_stop"
    text = "".join(
        event.delta.text
        for event in events
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )
    assert whole.content[0].type == "text"
    assert text == whole.content[0].text
    ends = [event for event in events if isinstance(event, RawMessageDeltaEvent)]
    assert ends[-1].usage.output_tokens == whole.usage.output_tokens


async def test_a_stream_of_a_bad_request_raises_before_any_event(
    local_endpoint: LocalEndpoint,
) -> None:
    events = local_endpoint.stream(message_call("long", "word " * 5000))
    with pytest.raises(ContextTooLong):
        await anext(events)


async def test_cancelling_frees_the_call_on_the_replica(
    local_endpoint: LocalEndpoint, replica: RunningReplica
) -> None:
    task = asyncio.create_task(
        local_endpoint.create(message_call("cancel", max_tokens=2000, temperature=0))
    )
    await _until_running(replica, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until_running(replica, 0)


async def test_cancelling_gives_the_call_s_kv_blocks_back(
    local_endpoint: LocalEndpoint, replica: RunningReplica
) -> None:
    # An engine reports while it steps, so another call stays on it all the time; however long its
    # answer becomes meanwhile, it holds far less than the eight that go.
    stays = message_call("stays", max_tokens=2000, temperature=0)
    staying = asyncio.create_task(local_endpoint.create(stays))
    going = [
        asyncio.create_task(
            local_endpoint.create(
                message_call(
                    f"goes-{index}", f"{index} " + "word " * 300, max_tokens=500, temperature=0
                )
            )
        )
        for index in range(8)
    ]
    await _until_running(replica, 9)
    all_of_them = (await replica.actor.load.remote()).kv_used_fraction
    for task in going:
        task.cancel()
    await _until_running(replica, 1)
    await _until_kv_below(replica, all_of_them / 2)
    staying.cancel()
    await asyncio.gather(staying, *going, return_exceptions=True)
    await _until_running(replica, 0)


async def test_leaving_a_stream_frees_the_call_on_the_replica(
    local_endpoint: LocalEndpoint, replica: RunningReplica
) -> None:
    events = local_endpoint.stream(message_call("leave", max_tokens=2000, temperature=0))
    await anext(events)
    await events.aclose()  # type: ignore[attr-defined]  # it is an async generator
    await _until_running(replica, 0)


async def test_a_call_past_its_timeout_is_told_and_freed(
    local_endpoint: LocalEndpoint, replica: RunningReplica
) -> None:
    # Greedy: sampled, the model may end its answer by chance before the time is over.
    late = message_call("late", max_tokens=2000, timeout_s=0.2, temperature=0)
    with pytest.raises(CallTimeout) as raised:
        await local_endpoint.create(late)
    assert raised.value.timeout_s == 0.2
    await _until_running(replica, 0)


async def test_tokens_are_counted_as_the_answer_counts_them(
    local_endpoint: LocalEndpoint,
) -> None:
    call = message_call("count", "count these tokens, please", system="be brief")
    counted = await local_endpoint.count_tokens(call.params)
    usage = (await local_endpoint.create(call)).message.usage
    whole = (
        usage.input_tokens
        + (usage.cache_read_input_tokens or 0)
        + (usage.cache_creation_input_tokens or 0)
    )
    assert counted == whole


async def test_a_repeated_prefix_is_read_from_the_cache(local_endpoint: LocalEndpoint) -> None:
    text = "the same long prefix " * 60
    await local_endpoint.create(message_call("cold", text))
    usage = (await local_endpoint.create(message_call("warm", text))).message.usage
    assert (usage.cache_read_input_tokens or 0) >= 128


async def _until_kv_below(replica: RunningReplica, fraction: float) -> None:
    # The engine tells of its blocks with its next step, which a busy machine may delay.
    async with asyncio.timeout(20):
        while True:
            if 0 < (await replica.actor.load.remote()).kv_used_fraction < fraction:
                return
            await asyncio.sleep(0.05)


async def _until_running(replica: RunningReplica, count: int) -> None:
    async with asyncio.timeout(10):
        while (await replica.actor.load.remote()).running != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
