"""Marks for hosted caches: where they go, and what they save at the sandbox."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.cache_marks import MOST_MARKS, reuse_pays, with_marks
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.prefix_chunks import prefix_chunks
from tests.cluster.serving import serving

MODEL = "claude-opus-5"
MARK = {"type": "ephemeral"}
RULES = "rules of the house. " * 400
TOOL = {"name": "look", "description": "looks " * 500, "input_schema": {"type": "object"}}


def request(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "max_tokens": 16, "system": RULES, "messages": messages} | more


def reused(params: dict[str, Any], other: dict[str, Any]) -> int:
    mine, theirs = (prefix_chunks(each, 9999).hashes for each in (params, other))
    return sum(one == two for one, two in zip(mine, theirs, strict=False))


def marks(params: Any) -> list[str]:
    """Where marks are."""
    found = [f"tools.{at}" for at, tool in enumerate(params.get("tools") or ()) if _is(tool)]
    if not isinstance(params.get("system") or "", str):
        found += [f"system.{at}" for at, block in enumerate(params["system"]) if _is(block)]
    for index, message in enumerate(params["messages"]):
        if not isinstance(message["content"], str):
            found += [f"{index}.{at}" for at, each in enumerate(message["content"]) if _is(each)]
    return found


def _is(block: dict[str, Any]) -> bool:
    return "cache_control" in block


def test_tools_system_and_the_shared_part_of_the_messages_are_marked() -> None:
    first = {"role": "user", "content": "a long document. " * 400}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "an answer. " * 300}]}

    def turn(question: str) -> dict[str, Any]:
        last = {"role": "user", "content": question}
        return request("", tools=[TOOL], messages=[first, answer, last])

    one, two = turn("first?"), turn("second?")
    before = repr(two)
    marked = with_marks(two, reused(one, two), 512)
    assert marks(marked) == ["tools.0", "system.0", "1.0"]
    assert repr(two) == before, "nothing is changed in place"
    assert prefix_chunks(marked, 9999) == prefix_chunks(two, 9999)


def test_what_the_caller_marked_stays_and_nothing_comes_before_it() -> None:
    blocks = [{"type": "text", "text": f"{at}: " + "a document. " * 300} for at in range(4)]
    shared = [*blocks[:2], {**blocks[2], "cache_control": MARK}, blocks[3]]

    def asks(question: str) -> dict[str, Any]:
        content = [*shared, {"type": "text", "text": question}]
        return request("", messages=[{"role": "user", "content": content}])

    one, two = asks("first?"), asks("second?")
    assert marks(with_marks(two, reused(one, two), 512)) == ["0.2", "0.3"]
    automatic = {**two, "cache_control": MARK}
    assert with_marks(automatic, reused(one, two), 512) is automatic
    full = asks("third?")
    for block in full["messages"][0]["content"][:3]:
        block["cache_control"] = MARK
    full["system"] = [{"type": "text", "text": RULES, "cache_control": MARK}]
    assert marks(with_marks(full, 99, 512)) == marks(full)


def test_a_prompt_below_the_models_minimum_is_not_marked() -> None:
    one, two = request("first?"), request("second?")
    assert marks(with_marks(two, reused(one, two), 512)) == ["system.0"]
    assert marks(with_marks(two, reused(one, two), 4096)) == []


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.integers(0, 900), st.booleans()), max_size=4),
        max_size=4,
    ),
    st.integers(0, 40),
    st.booleans(),
)
def test_never_more_than_four_and_the_prompt_stays_the_same(
    turns: list[list[tuple[bool, int, bool]]], chunks: int, tools: bool
) -> None:
    left = MOST_MARKS
    messages: list[dict[str, Any]] = []
    for turn in turns:
        content: list[dict[str, Any]] = []
        for thinks, size, mark in turn:
            block: dict[str, Any] = {"type": "text", "text": "word " * size}
            if thinks:
                block = {"type": "thinking", "thinking": "word " * size, "signature": "s"}
            elif mark and left:
                block["cache_control"] = MARK
                left -= 1
            content.append(block)
        messages.append({"role": "user", "content": content})
    params = request("", messages=messages, **({"tools": [TOOL]} if tools else {}))
    marked = with_marks(params, chunks, 512)
    placed = marks(marked)
    assert set(marks(params)) <= set(placed)
    assert len(placed) <= MOST_MARKS
    assert prefix_chunks(marked, 9999) == prefix_chunks(params, 9999)
    for message in marked["messages"]:
        for block in message["content"]:
            assert not (_is(block) and block["type"] == "thinking")


def test_marks_pay_by_the_catalogues_prices() -> None:
    catalog = load_catalog()
    assert all(reuse_pays(entry, 5000) for entry in catalog.entries.values() if entry.prices)


async def test_a_shared_beginning_is_written_once_and_read_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosted = {MODEL: {"account": "main"}}
    async with serving(monkeypatch, hosted=hosted, aliases={}) as served:
        receipts = []
        for number in range(4):
            message = await served.inference.create(request(f"question {number}?"))
            receipts.append(message.agentcloud)
        plain, wrote, *read = receipts
        assert (plain.usage.cache_write_tokens, plain.usage.cache_read_tokens) == (0, 0)
        assert wrote.usage.cache_write_tokens > 1500
        assert wrote.usage.cache_read_tokens == 0
        for receipt in read:
            assert receipt.usage.cache_read_tokens == wrote.usage.cache_write_tokens
            assert receipt.usage.cache_write_tokens == 0
        costs = [receipt.cost_usd or Decimal(0) for receipt in receipts]
        assert costs[2] < costs[0] / 3 < costs[0] < costs[1]
        # What was saved is what plain input would have cost more.
        saved = [receipt.saved_usd or Decimal(0) for receipt in receipts]
        assert saved[0] == 0
        assert costs[1] + saved[1] == costs[0] == costs[2] + saved[2]
        totals = served.scheduler.core.totals["main/" + MODEL]
        assert totals.saved_usd == sum(saved) > 0
        assert totals.prefix_hit_rate is not None
        assert 0.4 < totals.prefix_hit_rate < 0.5
        # What a mark may cost was reserved before the call was sent.
        reserved = [lease.reserved_usd for lease in served.scheduler.leases]
        assert all(cost <= held for cost, held in zip(costs, reserved, strict=True))
        # Another model's beginning, or one that nobody used: no mark. Nor where it is not wanted.
        off = Routing(cache_marks=False)
        for routing in (off, off):
            message = await served.inference.create(request("?", system=RULES[7:]), routing)
            assert message.agentcloud.usage.cache_write_tokens == 0


async def test_fleet_yaml_can_turn_marks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = {MODEL: {"account": "main"}}
    async with serving(monkeypatch, hosted=hosted, aliases={}, cache_marks=False) as served:
        for number in range(3):
            message = await served.inference.create(request(f"question {number}?"))
            assert message.agentcloud.usage.cache_write_tokens == 0
        message = await served.inference.create(request("?"), Routing(cache_marks=True))
        assert message.agentcloud.usage.cache_write_tokens > 0
