from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic._streaming import SSEDecoder
from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.fold import MessageFold, message_of
from agentcloud.cluster.sse import SseReader

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def wire(events: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(
        f"event: {event['type']}{end}data: {json.dumps(event, ensure_ascii=False)}{end}{end}"
        for event in events
    ).encode()


def stream_of(deltas: list[list[str]]) -> list[dict[str, Any]]:
    """Text blocks and tool calls in turn, in pieces."""
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 2},
    }
    events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
    for index, pieces in enumerate(deltas):
        if index % 2:
            block = {"type": "tool_use", "id": f"t{index}", "name": "f", "input": {}}
            whole = json.dumps({"value": pieces})
            cuts = [
                {"type": "input_json_delta", "partial_json": part}
                for part in (whole[:7], whole[7:])
            ]
        else:
            block = {"type": "text", "text": ""}
            cuts = [{"type": "text_delta", "text": piece} for piece in pieces]
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": cut} for cut in cuts]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}})
    events.append({"type": "message_stop"})
    return events


@given(
    st.lists(st.lists(texts, min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(1, 60), min_size=1, max_size=20),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_cut_of_the_bytes_gives_the_events_that_the_client_reads(
    deltas: list[list[str]], sizes: list[int], end: str
) -> None:
    data = wire(stream_of(deltas), end)
    reader, events, at, turn = SseReader(), [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        events += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    theirs = [sse.json() for sse in SSEDecoder().iter_bytes(iter([data]))]
    assert events == theirs


@settings(deadline=None)
@given(st.lists(st.lists(texts, min_size=1, max_size=4), max_size=4))
def test_folding_gives_the_message_that_the_client_accumulates(deltas: list[list[str]]) -> None:
    events = stream_of(deltas)
    fold, theirs = MessageFold(), None
    buffers: dict[int, bytes] = {}
    for event in events:
        fold.add(event)
        theirs = accumulate_event(event=event, current_snapshot=theirs, json_bufs=buffers)  # type: ignore[arg-type]  # it takes dicts too
    assert theirs is not None
    ours = message_of(fold.as_dict())
    assert ours.to_dict() == {
        key: value for key, value in theirs.to_dict().items() if value is not None
    } | {"stop_sequence": None}
    assert fold.is_complete
    assert ours.usage.output_tokens == 9
    assert ours.usage.cache_read_input_tokens == 2


def test_a_tool_call_cut_by_max_tokens_keeps_what_came() -> None:
    events = stream_of([["a"], ["b"]])
    fold = MessageFold()
    for event in events[:-4]:
        fold.add(event)
    assert not fold.is_complete
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    fold.add({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}})
    fold.add({"type": "message_stop"})
    message = message_of(fold.as_dict())
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert fold.as_dict()["content"][1]["input"] == {}


def test_comments_and_half_events_are_no_events() -> None:
    reader = SseReader()
    assert reader.feed(b": keep-alive\n\nevent: ping\ndata: ") == []
    assert reader.feed(b'{"type": "ping"}\n\n') == [{"type": "ping"}]
    assert reader.feed(b'data: {"a":\ndata: 1}\n\n') == [{"a": 1}]
    with pytest.raises(ValueError, match="EOF"):
        reader.feed(b'event: x\ndata: {"type":\n\n')


def test_a_block_newer_than_this_client_is_kept() -> None:
    fold = MessageFold()
    for event in stream_of([]):
        if event["type"] == "message_delta":
            block = {"type": "hologram", "depth": 3}
            fold.add({"type": "content_block_start", "index": 0, "content_block": block})
            event["delta"]["stop_reason"] = "dreamt"
        fold.add(event)
    message = message_of(fold.as_dict())
    assert message.to_dict(warnings=False)["content"] == [{"type": "hologram", "depth": 3}]
    assert message.stop_reason == "dreamt"  # type: ignore[comparison-overlap]  # not yet in the API
