"""Pure: a stream that broke after part of its text, carried on by another send.

The text so far becomes the start of the assistant's turn (a prefill), and the later events are
spliced to the earlier ones, so that the caller sees one message: one start, blocks that continue,
one stop, the usage of both. Only plain text can be carried on: half a thought is signed by nobody,
half a tool call cannot be prefilled, and a schema's grammar would begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from anthropic.types import RawContentBlockStopEvent, RawMessageStreamEvent

from agentcloud.cluster.contracts import Params
from agentcloud.cluster.sizing import text_tokens

#: Counts of a usage that add up over the parts of one answer.
COUNTS: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)

UsageDict = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What to send after a break, and how its events join on.

    Attributes:
        params: the request, its last turn the text so far.
        blocks: content blocks that the caller has seen the start of.
        is_open: whether the last of them has not ended.
        tail: white space at its end, which a prefill must not end with.
        usage: of the parts before, as far as known.
    """

    params: Params
    blocks: int
    is_open: bool
    tail: str
    usage: UsageDict | None


def continuation(
    params: Params, message: Mapping[str, Any], *, is_open: bool, usage: UsageDict | None
) -> Continuation | None:
    """How to carry an answer on; None where it cannot be.

    Args:
        params: the caller's request.
        message: the answer as far as it came.
        is_open: whether its last block has not ended.
        usage: of the parts so far, as far as known.
    """
    content = message.get("content") or []
    forced = (params.get("tool_choice") or {}).get("type") in ("any", "tool")
    thinks = (params.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    shaped = (params.get("output_config") or {}).get("format") is not None
    if forced or thinks or shaped or message.get("stop_reason") is not None:
        return None
    if any(block.get("type") != "text" or block.get("citations") for block in content):
        return None
    texts = [str(block["text"]) for block in content]
    if not texts or not texts[-1].strip():
        return None
    tail = texts[-1][len(texts[-1].rstrip()) :]
    texts[-1] = texts[-1].rstrip()
    # Estimated from above: the whole never passes the caller's `max_tokens`.
    left_tokens = params["max_tokens"] - sum(text_tokens(text) for text in texts)
    if left_tokens < 1:
        return None
    messages, own = list(params["messages"]), [{"type": "text", "text": text} for text in texts]
    if messages[-1].get("role") == "assistant":
        before = messages.pop().get("content") or []
        if isinstance(before, str):
            before = [{"type": "text", "text": before}]
        own = [*before, *own]
    messages.append({"role": "assistant", "content": own})
    return Continuation(
        {**params, "messages": messages, "max_tokens": left_tokens},
        len(content),
        is_open,
        tail,
        usage,
    )


class Splice:
    """Turns the events of a later part into those of the one message that the caller sees."""

    def __init__(self, after: Continuation) -> None:
        self._is_open = after.is_open
        self._shift = after.blocks - after.is_open
        self._tail = after.tail
        self._before = after.usage
        self._usage: UsageDict = {}

    def take(self, event: RawMessageStreamEvent) -> list[RawMessageStreamEvent]:
        """The events that the caller is to see for one of the later part's."""
        if event.type == "message_start":
            self._usage = event.message.usage.to_dict()
            return []
        if event.type == "message_delta":
            self._usage = {**self._usage, **event.usage.to_dict()}
            for name, count in (added(self._before, self._usage) or {}).items():
                setattr(event.usage, name, count)
            return [*self._closed(), event]
        if event.type == "content_block_start":
            if self._is_open and event.content_block.type == "text":
                self._is_open = False
                return []
            closed = self._closed()
            event.index += self._shift
            return [*closed, event]
        if event.type in ("content_block_delta", "content_block_stop"):
            event.index += self._shift
        if event.type == "content_block_delta" and event.delta.type == "text_delta" and self._tail:
            event.delta.text = self._without_tail(event.delta.text)
            return [event] if event.delta.text else []
        return [event]

    def _closed(self) -> list[RawMessageStreamEvent]:
        """The end of the block that was open at the break, where nothing continues it."""
        if not self._is_open:
            return []
        self._is_open = False
        self._shift += 1
        return [RawContentBlockStopEvent(type="content_block_stop", index=self._shift - 1)]

    def _without_tail(self, text: str) -> str:
        """White space that the caller has had already is not given twice."""
        while self._tail and text.startswith(self._tail[0]):
            text, self._tail = text[1:], self._tail[1:]
        if text:
            self._tail = ""
        return text

    def __repr__(self) -> str:
        return f"<Splice shift={self._shift} open={self._is_open}>"


def added(one: UsageDict | None, other: UsageDict | None) -> dict[str, Any] | None:
    """The counts of two usages together; None where neither is known."""
    if one is None or other is None:
        known = one if other is None else other
        return None if known is None else {name: known.get(name) for name in COUNTS}
    counts: dict[str, Any] = {}
    for name in COUNTS:
        both = [usage[name] for usage in (one, other) if usage.get(name) is not None]
        counts[name] = sum(both) if both else None
    return counts
