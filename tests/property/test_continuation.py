"""Splicing: wherever a text stream breaks, the caller sees one message with all of the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agentcloud.cluster.continuation import Splice, continuation
from agentcloud.cluster.fold import MessageFold

EVENT: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
PARAMS: dict[str, Any] = {
    "model": "m",
    "max_tokens": 10_000,
    "messages": [{"role": "user", "content": "Tell me."}],
}
#: Pieces that begin and end with white space too.
PIECES = st.lists(st.text("ab \n", min_size=1, max_size=6), min_size=1, max_size=4)
BLOCKS = st.lists(PIECES, min_size=1, max_size=3)


def event(**data: Any) -> RawMessageStreamEvent:
    return EVENT.validate_python(data)


def events_of(blocks: list[list[str]], input_tokens: int) -> Iterator[RawMessageStreamEvent]:
    """The stream of an answer with these text blocks."""
    usage = {"input_tokens": input_tokens, "output_tokens": 1}
    message = {"id": "msg", "type": "message", "role": "assistant", "model": "m", "content": []}
    yield event(
        type="message_start",
        message={**message, "stop_reason": None, "stop_sequence": None, "usage": usage},
    )
    for index, pieces in enumerate(blocks):
        yield event(
            type="content_block_start", index=index, content_block={"type": "text", "text": ""}
        )
        for piece in pieces:
            yield event(
                type="content_block_delta",
                index=index,
                delta={"type": "text_delta", "text": piece},
            )
        yield event(type="content_block_stop", index=index)
    yield event(
        type="message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": 7},
    )
    yield event(type="message_stop")


def folded(events: list[RawMessageStreamEvent]) -> MessageFold:
    fold = MessageFold()
    for each in events:
        fold.add(each.to_dict())
    return fold


@given(BLOCKS, st.data())
def test_all_of_the_text_once_in_one_message(blocks: list[list[str]], data: st.DataObject) -> None:
    whole = list(events_of(blocks, 10))
    cut = data.draw(st.integers(1, len(whole) - 3))
    seen = whole[:cut]
    partial = folded(seen).as_dict()
    kinds = [each.type for each in seen if each.type.startswith("content_block_s")]
    after = continuation(
        PARAMS,
        partial,
        is_open=kinds[-1:] == ["content_block_start"],
        usage=partial["usage"],
    )
    texts = [block["text"] for block in partial["content"]]
    if not texts or not texts[-1].strip():
        assert after is None
        return
    assert after is not None
    # What is sent: the text so far as the assistant's turn, no white space at its end.
    turn = after.params["messages"][-1]
    assert turn["role"] == "assistant"
    prefill = "".join(block["text"] for block in turn["content"])
    assert prefill == "".join(texts).rstrip()
    assert 0 < after.params["max_tokens"] <= 10_000 - len(prefill) // 3
    assert PARAMS["messages"] == [{"role": "user", "content": "Tell me."}], "nothing in place"
    # A model that says the rest, from where the prefill ends.
    said = "".join("".join(pieces) for pieces in blocks)
    rest = said[len(prefill) :]
    size = data.draw(st.integers(1, 5))
    later = [rest[at : at + size] for at in range(0, len(rest), size)]
    splice = Splice(after)
    for each in events_of([later] if later else [], 20):
        seen += splice.take(each)
    kinds = [each.type for each in seen]
    assert kinds.count("message_start") == kinds.count("message_stop") == 1
    assert kinds.count("content_block_start") == kinds.count("content_block_stop")
    open_block: int | None = None
    for each in seen:
        if each.type == "content_block_start":
            assert open_block is None
            open_block = each.index
        elif each.type == "content_block_delta":
            assert each.index == open_block
        elif each.type == "content_block_stop":
            assert each.index == open_block
            open_block = None
    message = folded(seen).as_dict()
    assert "".join(block["text"] for block in message["content"]) == said
    assert message["usage"]["input_tokens"] == 30
    assert message["usage"]["output_tokens"] == 1 + 7


def test_a_callers_own_prefill_is_kept_before_the_text() -> None:
    params = {
        **PARAMS,
        "messages": [*PARAMS["messages"], {"role": "assistant", "content": "Once"}],
    }
    partial = {"content": [{"type": "text", "text": " upon "}], "stop_reason": None}
    after = continuation(params, partial, is_open=True, usage=None)
    assert after is not None
    texts = [block["text"] for block in after.params["messages"][-1]["content"]]
    assert texts == ["Once", " upon"]
    assert len(after.params["messages"]) == 2
