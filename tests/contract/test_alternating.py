"""One conversation, its endpoint changed at every turn: local, hosted, local, tools included."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from agentcloud.cluster.client import AsyncAgentCloud
from agentcloud.cluster.contracts import EndpointKind, Routing
from agentcloud.cluster.message import RoutedMessage
from tests.cluster.serving import HAIKU, serving
from tests.conftest import RunningReplica

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(420)]

PAINT: dict[str, Any] = {
    "name": "paint",
    "description": "Paints.",
    "input_schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
#: What is asked at a turn, where, and how it is made to answer.
HOSTED: dict[str, Any] = {
    "routing": Routing(endpoint=f"main/{HAIKU}"),
    "max_tokens": 2000,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
}
LOCAL: dict[str, Any] = {"routing": Routing(endpoint="replica:tiny:0"), "max_tokens": 200}


def next_turn(message: RoutedMessage, text: str) -> list[dict[str, Any]]:
    """The answer as a turn, and the user's next: results for its tool calls, else `text`."""
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "painted"}
        for block in message.content
        if block.type == "tool_use"
    ]
    return [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": results or text},
    ]


@pytest.mark.parametrize("streamed", [False, True])
async def test_one_conversation_alternates_at_every_turn(
    monkeypatch: pytest.MonkeyPatch, replica: RunningReplica, streamed: bool
) -> None:
    models = {"tiny": {"path": "unused", "tier": "small"}}
    async with serving(monkeypatch, local=replica.spec, models=models) as served:
        client = AsyncAgentCloud(served.inference)

        async def ask(where: dict[str, Any], **params: Any) -> RoutedMessage:
            arguments = {
                "model": "small",
                "messages": messages,
                "tools": [PAINT],
                **where,
                **params,
            }
            if not streamed:
                answer: RoutedMessage = await client.messages.create(**arguments)
                return answer
            async with client.messages.stream(**arguments) as stream:
                final: Any = await stream.get_final_message()
                return final  # type: ignore[no-any-return]  # a parsed message, which has all of it

        messages: list[dict[str, Any]] = [{"role": "user", "content": "Please paint the door."}]
        first = await ask(HOSTED)
        assert [block.type for block in first.content] == ["thinking", "tool_use"]
        messages += next_turn(first, "")
        second = await ask(LOCAL, tool_choice={"type": "any"})
        paints = [block for block in second.content if block.type == "tool_use"]
        assert "tool_use" in [block.type for block in second.content]
        assert paints[0].input in ({"colour": "red"}, {"colour": "green"})
        messages += next_turn(second, "Go on.")
        third = await ask(HOSTED)
        messages += next_turn(third, "Now the window.")
        fourth = await ask(LOCAL, tool_choice={"type": "none"})
        messages += next_turn(fourth, "Thank you; paint the roof, too.")
        fifth = await ask(HOSTED)
        messages += next_turn(fifth, "Go on.")
        sixth = await ask(LOCAL, tool_choice={"type": "any"})

        served_by = [each.agentcloud.kind for each in (first, second, third, fourth, fifth, sixth)]
        assert served_by == [EndpointKind.HOSTED, EndpointKind.LOCAL] * 3
        assert {call.outcome for call in served.sandbox.calls} == {"ok"}
        assert "thinking" in [block.type for block in fifth.content]

        # The sandbox does reject what it did not sign: the same history, sent past us, fails.
        url = served.sandbox.url
        bare = anthropic.AsyncAnthropic(api_key="sandbox", base_url=url, max_retries=0)
        history: dict[str, Any] = {"model": HAIKU, "max_tokens": 50, "messages": messages}
        async with bare:
            with pytest.raises(anthropic.BadRequestError, match="signature"):
                await bare.messages.create(**history)
