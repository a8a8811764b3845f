"""What a responder returns, and how it is cut and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic_core import from_json

from agentcloud.cluster.sandbox import counting
from agentcloud.cluster.sandbox.signatures import Signer


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a responder gets it.

    Attributes:
        params: the request's body, without `stream`.
        model: name of the model that serves it.
        digest: 32 bytes that depend on the content of the request only.
        output_budget_tokens: the most that may be generated.
        thinks: whether the answer starts with thinking.
        hides_thinking: whether that thinking's text is left out.
        signer: signs thinking blocks.
    """

    params: Mapping[str, Any]
    model: str
    digest: bytes
    output_budget_tokens: int
    thinks: bool
    hides_thinking: bool
    signer: Signer


@dataclass(frozen=True, slots=True)
class Block:
    """One content block of an answer.

    Attributes:
        kind: `text`, `thinking`, `tool_use`, or another whose `fields` are the whole block.
        text: the text, the thinking, or the JSON text of a tool's input.
        fields: what else the block has: id and name of a tool, signature of thinking.
        tokens: what it counts as; for hidden thinking more than its text.
    """

    kind: str
    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The block as the API writes it."""
        if self.kind == "text":
            return {"type": "text", "text": self.text, "citations": None}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": self.text, **self.fields}
        if self.kind == "tool_use":
            # A call that was cut off keeps the part of its input that can be read.
            value = from_json(self.text, allow_partial=True) if self.text else {}
            return {"type": "tool_use", **self.fields, "input": value}
        return {"type": self.kind, **self.fields}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer.

    Attributes:
        blocks: its content.
        stop_reason: as the API names it.
        stop_sequence: the one that was met.
        stop_details: of a refusal.
        input_tokens: the prompt as the responder's own tokenizer counts it; None: ours counts.
        output_tokens: tokens generated, thinking included.
        thinking_tokens: thinking among them.
    """

    blocks: tuple[Block, ...]
    stop_reason: str = "end_turn"
    stop_sequence: str | None = None
    stop_details: Mapping[str, Any] | None = None
    input_tokens: int | None = None
    output_tokens: int = 0
    thinking_tokens: int = 0


class Responder(Protocol):
    """Where answers come from: synthetic, or a real engine behind the sandbox."""

    async def respond(self, call: Call) -> Answer:
        """Answer one call.

        Raises:
            ApiError: the call fails with this error.
        """
        ...


def text_block(text: str) -> Block:
    """A block of text."""
    return Block("text", text, tokens=counting.text_tokens(text))


def tool_block(use_id: str, name: str, input_json: str) -> Block:
    """A call of a tool."""
    tokens = counting.text_tokens(name) + counting.text_tokens(input_json)
    return Block("tool_use", input_json, {"id": use_id, "name": name}, tokens)


def assemble(blocks: Sequence[Block], stop_reason: str, stops: Sequence[str]) -> Answer:
    """An answer of `blocks`, ended early where a stop sequence is met in a text."""
    kept: list[Block] = []
    for block in blocks:
        met = _first_stop(block.text, stops) if block.kind == "text" else None
        if met is None:
            kept.append(block)
            continue
        position, stop = met
        if position:
            kept.append(text_block(block.text[:position]))
        return _counted(Answer(tuple(kept), "stop_sequence", stop))
    return _counted(Answer(tuple(kept), stop_reason))


def cut(answer: Answer, tokens: int, stop_reason: str) -> Answer:
    """The first `tokens` tokens of an answer, with that stop reason; blocks are cut in mid-text."""
    kept: list[Block] = []
    left = tokens
    for block in answer.blocks:
        if block.tokens <= left:
            kept.append(block)
            left -= block.tokens
            continue
        shorter = _cut_block(block, left)
        if shorter is not None:
            kept.append(shorter)
        break
    cut_answer = replace(
        answer, blocks=tuple(kept), stop_reason=stop_reason, stop_sequence=None, stop_details=None
    )
    return _counted(cut_answer)


def _cut_block(block: Block, tokens: int) -> Block | None:
    if tokens <= 0:
        return None
    if block.kind == "text":
        return text_block(counting.cut_text(block.text, tokens))
    if block.kind == "tool_use":
        name_tokens = block.tokens - counting.text_tokens(block.text)
        kept = counting.cut_text(block.text, max(0, tokens - name_tokens))
        return replace(block, text=kept, tokens=tokens)
    # Half a thinking block would have no valid signature: its tokens are spent, it is not shown.
    return None if block.kind == "thinking" else replace(block, tokens=tokens)


def _counted(answer: Answer) -> Answer:
    thinking = sum(block.tokens for block in answer.blocks if block.kind == "thinking")
    total = sum(block.tokens for block in answer.blocks)
    return replace(answer, output_tokens=total, thinking_tokens=thinking)


def _first_stop(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    return min(found) if found else None
