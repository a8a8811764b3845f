"""Answers of a real engine behind the sandbox's API, limits and prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import to_json

from agentcloud.cluster.errors import BackendError
from agentcloud.cluster.sandbox import counting
from agentcloud.cluster.sandbox.answers import Answer, Block, Call
from agentcloud.cluster.sandbox.errors import STATUS_OF, ApiError
from agentcloud.cluster.sandbox.signatures import Signer

if TYPE_CHECKING:
    # The server starts three times as fast without the client's types.
    from anthropic.types import Message

#: What a local engine is not told: it did not sign the thinking and keeps no billed cache.
_NOT_FORWARDED = ("stream", "thinking", "cache_control", "metadata", "service_tier")
_THINKING = ("thinking", "redacted_thinking")


class Backend(Protocol):
    """Whoever answers requests of the Messages API, e.g. a replica's engine."""

    async def create(self, params: dict[str, Any]) -> Message:
        """Answer one request."""
        ...


class BackedResponder:
    """Takes content, stop reason and token counts from `backend`, and nothing else.

    Model name, ids, headers, limits, cache accounting and latency stay the sandbox's. Thinking
    blocks of earlier turns are dropped, for the backend did not sign them; thinking of its own is
    signed here.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def respond(self, call: Call) -> Answer:
        """Answer one call."""
        params = {key: value for key, value in call.params.items() if key not in _NOT_FORWARDED}
        params["messages"] = [_without_thinking(message) for message in params["messages"]]
        params["max_tokens"] = call.output_budget_tokens
        try:
            message = await self._backend.create(params)
        except BackendError as error:
            kind = error.kind if error.kind in STATUS_OF else "api_error"
            raise ApiError(kind, error.message) from error
        blocks = tuple(_block(part.to_dict(), call.signer, call.digest) for part in message.content)
        return Answer(
            blocks,
            stop_reason=message.stop_reason or "end_turn",
            stop_sequence=message.stop_sequence,
            input_tokens=_prompt_tokens(message),
            output_tokens=message.usage.output_tokens,
            thinking_tokens=sum(block.tokens for block in blocks if block.kind == "thinking"),
        )


def _without_thinking(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return message
    kept = [
        {key: value for key, value in block.items() if key != "cache_control"}
        for block in content
        if block["type"] not in _THINKING
    ]
    return {**message, "content": kept}


def _prompt_tokens(message: Message) -> int:
    usage = message.usage
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return usage.input_tokens + cached


def _block(part: dict[str, Any], signer: Signer, digest: bytes) -> Block:
    kind = part.pop("type")
    if kind == "text":
        return Block("text", part["text"], tokens=counting.text_tokens(part["text"]))
    if kind == "thinking":
        text = part["thinking"]
        signature = {"signature": signer.sign(text, digest[8:16])}
        return Block("thinking", text, signature, counting.text_tokens(text))
    if kind == "tool_use":
        text = to_json(part.pop("input")).decode()
        named = {"id": part["id"], "name": part["name"]}
        return Block("tool_use", text, named, counting.text_tokens(text))
    return Block(str(kind), "", part, 0)
