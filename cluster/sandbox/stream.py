"""A message as JSON and as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from agentcloud.cluster.sandbox import counting
from agentcloud.cluster.sandbox.answers import Answer, Block
from agentcloud.cluster.sandbox.errors import ApiError
from agentcloud.cluster.sandbox.usage import PromptUsage

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
_FIELDS_OF_DELTA = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes to send at once.

    Attributes:
        data: one event.
        tokens: generated since the frame before.
        is_delta: it carries generated text.
        is_end: all deltas are before it.
    """

    data: bytes
    tokens: int = 0
    is_delta: bool = False
    is_end: bool = False


def message_dict(message_id: str, model: str, answer: Answer, usage: PromptUsage) -> dict[str, Any]:
    """The whole message."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block.as_dict() for block in answer.blocks],
        "stop_reason": answer.stop_reason,
        "stop_sequence": answer.stop_sequence,
        "stop_details": answer.stop_details,
        "usage": usage.as_dict(answer.output_tokens, answer.thinking_tokens),
    }


def frames(message_id: str, model: str, answer: Answer, usage: PromptUsage) -> Iterator[Frame]:
    """The message as events, a delta about every token."""
    yield Frame(_message_start(message_id, model, usage))
    yield Frame(PING)
    meter = _Meter(answer)
    for index, block in enumerate(answer.blocks):
        yield from _block_frames(index, block, meter)
    delta = {
        "stop_reason": answer.stop_reason,
        "stop_sequence": answer.stop_sequence,
        "stop_details": answer.stop_details,
    }
    totals = usage.as_dict(answer.output_tokens, answer.thinking_tokens)
    del totals["cache_creation"], totals["service_tier"]
    data = event("message_delta", {"type": "message_delta", "delta": delta, "usage": totals})
    # Tokens of blocks that have no deltas, and of an answer without blocks.
    yield Frame(data, meter.rest(), is_end=True)
    yield Frame(event("message_stop", {"type": "message_stop"}), is_end=True)


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data))


def error_event(error: ApiError, request_id: str) -> bytes:
    """An error inside a stream."""
    return event("error", error.body(request_id))


class _Meter:
    """Spreads the answer's tokens over its deltas, so that they add up to exactly its count."""

    def __init__(self, answer: Answer) -> None:
        self._total = answer.output_tokens
        chunks = sum(_chunk_count(block) for block in answer.blocks)
        self._chunks = max(1, chunks)
        self._sent_chunks = 0
        self._sent_tokens = 0

    def next(self) -> int:
        self._sent_chunks += 1
        due = self._total * self._sent_chunks // self._chunks
        tokens, self._sent_tokens = due - self._sent_tokens, due
        return tokens

    def rest(self) -> int:
        return self._total - self._sent_tokens


def _chunk_count(block: Block) -> int:
    return counting.text_tokens(block.text) if block.kind in _FIELDS_OF_DELTA else 0


def _message_start(message_id: str, model: str, usage: PromptUsage) -> bytes:
    # As the real API: the count so far, corrected by message_delta.
    message = message_dict(message_id, model, Answer((), "", output_tokens=1), usage)
    message["stop_reason"] = None
    return event("message_start", {"type": "message_start", "message": message})


def _block_frames(index: int, block: Block, meter: _Meter) -> Iterator[Frame]:
    start = _opening(block)
    opening = {"type": "content_block_start", "index": index, "content_block": start}
    yield Frame(event("content_block_start", opening))
    if block.kind in _FIELDS_OF_DELTA:
        delta_type, field = _FIELDS_OF_DELTA[block.kind]
        head = _DELTA % index + b'{"type":"%s","%s":' % (delta_type.encode(), field.encode())
        size = counting.CHARS_PER_TOKEN
        for at in range(0, len(block.text), size):
            piece = json.dumps(block.text[at : at + size]).encode()
            yield Frame(head + piece + b"}}\n\n", meter.next(), is_delta=True)
    if block.kind == "thinking":
        signature = {"type": "signature_delta", "signature": block.fields["signature"]}
        data = {"type": "content_block_delta", "index": index, "delta": signature}
        yield Frame(event("content_block_delta", data))
    yield Frame(event("content_block_stop", {"type": "content_block_stop", "index": index}))


def _opening(block: Block) -> dict[str, Any]:
    if block.kind == "text":
        return {"type": "text", "text": "", "citations": None}
    if block.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    if block.kind == "tool_use":
        return {"type": "tool_use", **block.fields, "input": {}}
    return block.as_dict()
