"""A scripted client, for the agents' own logic; test_real_client.py has the real one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from anthropic.types import Message

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import (
    EndpointKind,
    Receipt,
    Routing,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.ports import Step
from agentcloud.cluster.tiers import FleetTiers

Reply = Message | Exception | Callable[[dict[str, Any]], Message]


def message(
    *blocks: str | dict[str, Any], stop_reason: str | None = None, **receipt: Any
) -> Message:
    """An answer; a str is a text block. Its receipt says 10 + 5 tokens and a tenth of a cent."""
    content = [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]
    has_tools = any(block["type"] == "tool_use" for block in content)
    answer = Message.model_validate(
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "scripted",
            "content": content,
            "stop_reason": stop_reason or ("tool_use" if has_tools else "end_turn"),
            "usage": {"input_tokens": 10, "output_tokens": 5},
        }
    )
    settings: dict[str, Any] = {"attempts": 1, "cost_usd": Decimal("0.001"), **receipt}
    answer.agentcloud = Receipt(  # type: ignore[attr-defined]  # the client adds it just so
        call_id="call_1",
        endpoint="scripted:0",
        model="scripted",
        kind=EndpointKind.LOCAL,
        reason="the only one",
        usage=TokenUsage(input_tokens=10, output_tokens=5),
        timings=Timings(),
        **settings,
    )
    return answer


def call(name: str, id: str = "toolu_1", /, **arguments: Any) -> dict[str, Any]:
    """A tool call block."""
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


class ScriptedClient:
    """Answers from a list, in order; keeps what it was asked, as JSON-able copies."""

    def __init__(self, *replies: Reply) -> None:
        self.messages = self
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.routings: list[Routing] = []

    async def tiers(self) -> FleetTiers:
        """Two local tiers and a hosted one above them."""
        config = parse_fleet(
            {
                "models": {
                    "tiny": {"path": "x", "tier": "small"},
                    "mid": {"path": "x", "tier": "medium", "usd_per_gpu_hour": 2},
                },
                "accounts": {"main": {}},
                "hosted": {"claude-sonnet-5-5": {"account": "main", "tier": "large"}},
            }
        )
        return FleetTiers.of(config, load_catalog().with_overrides(config.hosted))

    async def create(self, *, routing: Routing, **params: Any) -> Message:
        self.requests.append(json.loads(json.dumps(params)))
        self.routings.append(routing)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Message) else reply(params)

    @asynccontextmanager
    async def stream(self, *, routing: Routing, **params: Any) -> AsyncIterator[ScriptedStream]:
        yield ScriptedStream(await self.create(routing=routing, **params))


class ScriptedStream:
    def __init__(self, answer: Message) -> None:
        self._answer = answer

    @property
    async def text_stream(self) -> AsyncIterator[str]:
        for block in self._answer.content:
            if block.type == "text":
                for word in block.text.split(" "):
                    yield word

    async def get_final_message(self) -> Message:
        return self._answer


class MemoryRecorder:
    """Answers by content and occurrence, in memory."""

    def __init__(self, recorded: dict[str, bytes] | None = None) -> None:
        self.recorded = dict(recorded or {})
        self.begun: list[tuple[str, str]] = []
        self._seen: dict[str, int] = {}

    async def begin(self, kind: str, name: str, content: Any) -> Step:
        self.begun.append((kind, name))
        key = json.dumps([kind, name, content], sort_keys=True)
        number = self._seen[key] = self._seen.get(key, 0) + 1
        id_ = f"{key}#{number}"
        return Step(id_, key, number, self.recorded.get(id_))

    async def done(self, step: Step, answer: bytes, receipt: Receipt | None = None) -> None:
        self.recorded[step.id] = answer

    def failed(self, step: Step) -> None:
        self._seen[step.key] -= 1
