"""Fitting a conversation: whatever it is, calls keep their results and the task stays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.agents.history import estimate_tokens, fit
from agentcloud.cluster.errors import ContextTooLong

TEXTS = st.text(min_size=1, max_size=40)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A task, then turns: plain talk, or calls of tools with their results."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": draw(TEXTS)}]
    for turn in range(draw(st.integers(0, 8))):
        calls = [f"t{turn}.{n}" for n in range(draw(st.integers(0, 3)))]
        blocks = [{"type": "tool_use", "id": id, "name": "f", "input": {}} for id in calls]
        messages.append(
            {"role": "assistant", "content": [{"type": "text", "text": draw(TEXTS)}, *blocks]}
        )
        results = [
            {"type": "tool_result", "tool_use_id": id, "content": draw(TEXTS)} for id in calls
        ]
        messages.append({"role": "user", "content": results or draw(TEXTS)})
    if draw(st.booleans()) and len(messages) > 1:
        messages.pop()
    return messages


def ids(messages: list[dict[str, Any]], key: str) -> list[str]:
    return [
        block[key]
        for message in messages
        if isinstance(message["content"], list)
        for block in message["content"]
        if key in block
    ]


@given(conversations(), st.integers(0, 600))
def test_fit(messages: list[dict[str, Any]], limit_tokens: int) -> None:
    try:
        fitted = fit(messages, limit_tokens)
    except ContextTooLong:
        least = [messages[0], *messages[1:][-2:]]
        assert sum(map(estimate_tokens, least)) > limit_tokens
        return
    assert sum(map(estimate_tokens, fitted)) <= limit_tokens
    assert fitted[0] == messages[0]
    tail = fitted[1:]
    assert not tail or messages[-len(tail) :] == tail
    assert len(messages) == 1 or fitted[-1] == messages[-1]
    # No result without its call, and roles alternate as they did.
    assert set(ids(fitted, "tool_use_id")) <= set(ids(fitted, "id"))
    roles = [message["role"] for message in fitted]
    assert all(one != other for one, other in pairwise(roles))
    if sum(map(estimate_tokens, messages)) <= limit_tokens:
        assert fitted == messages


@given(conversations())
def test_the_least_is_dropped(messages: list[dict[str, Any]]) -> None:
    total = sum(map(estimate_tokens, messages))
    if len(messages) >= 5:
        fitted = fit(messages, total - 1)
        assert len(fitted) == len(messages) - 2


def test_images_count_by_their_size_as_images_not_as_text() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "x" * 1_000_000}}
    assert 1_600 <= estimate_tokens({"role": "user", "content": [image]}) < 1_700


def test_what_cannot_fit_says_so() -> None:
    with pytest.raises(ContextTooLong, match="only 10 fit; shorten the prompt"):
        fit([{"role": "user", "content": "word " * 100}], 10)
