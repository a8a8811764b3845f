"""Chains of hashes that tell which prompts begin alike."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.prefix_chunks import STEP_BYTES, Place, places, prefix_chunks, written
from agentcloud.cluster.sizing import estimated_input_tokens

_text = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="ab", min_size=1, max_size=4).map(lambda text: text * 700),
)
_block = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": _text}),
    st.fixed_dictionaries(
        {
            "type": st.just("tool_result"),
            "tool_use_id": st.sampled_from(["a", "b"]),
            "content": st.one_of(
                _text, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _text}))
            ),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("image"),
            "source": st.fixed_dictionaries({"type": st.just("base64"), "data": _text}),
        }
    ),
)
_message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant"]),
        "content": st.one_of(_text, st.lists(_block, max_size=3)),
    }
)
_tool = st.fixed_dictionaries({"name": st.sampled_from(["x", "y"]), "description": _text})
_params = st.fixed_dictionaries(
    {"messages": st.lists(_message, max_size=4)},
    optional={
        "system": st.one_of(_text, st.lists(_block, max_size=2)),
        "tools": st.lists(_tool, max_size=2),
        "tool_choice": st.just({"type": "any"}),
    },
)


def chain(params: dict[str, Any]) -> tuple[int, ...]:
    return prefix_chunks(params, 10**6).hashes


def flat(params: dict[str, Any]) -> bytes:
    return b"".join(part for _, part in written(params))


def simple(params: dict[str, Any]) -> Any:
    """The request with text and lists of one text written alike, and nothing that is empty."""

    def content(value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else list(value)

    kept = {key: value for key, value in params.items() if value and key != "messages"}
    if "system" in params and (system := content(params["system"])):
        kept["system"] = system
    kept["messages"] = [
        {"role": each["role"], "content": content(each["content"])} for each in params["messages"]
    ]
    return kept


@given(_params, _params)
@settings(max_examples=400, deadline=None)
def test_chains_agree_exactly_as_far_as_the_prompts_do(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    mine, theirs = chain(one), chain(other)
    alike = 0
    while alike < min(len(mine), len(theirs)) and mine[alike] == theirs[alike]:
        alike += 1
    assert not set(mine[alike:]) & set(theirs[alike:]), "what differs once differs from there on"
    a, b = flat(one), flat(other)
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    common = min(len(a), len(b)) if common is None else common
    size = len(a)
    ends = [tokens * size for tokens in prefix_chunks(one, size).tokens]
    within = sum(end // size <= common for end in ends)
    # A chunk within what they share is known to both; one beyond it to neither.
    assert within == alike


@given(_params, _params)
@settings(max_examples=400, deadline=None)
def test_different_prompts_are_never_written_alike(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (flat(one) == flat(other)) == (simple(one) == simple(other))


def test_roles_and_blocks_do_not_collide_by_concatenation() -> None:
    long = "word " * 300
    kinds: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": long + long}]},
        {"messages": [{"role": "assistant", "content": long + long}]},
        {"messages": [{"role": "user", "content": long}, {"role": "user", "content": long}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": long}] * 2}]},
        {"system": long, "messages": [{"role": "user", "content": long}]},
        {"tools": [{"name": long}], "messages": [{"role": "user", "content": long}]},
        {"messages": [{"role": "user", "content": long + "\xfc" + long}]},
    ]
    assert len({chain(kind)[-1] for kind in kinds}) == len(kinds)


def test_what_the_prompt_does_not_depend_on_changes_nothing() -> None:
    plain = {"system": "rules " * 400, "messages": [{"role": "user", "content": "hello " * 200}]}
    marked = {
        "model": "another",
        "max_tokens": 9,
        "system": [
            {"type": "text", "text": plain["system"], "cache_control": {"type": "ephemeral"}}
        ],
        "messages": plain["messages"],
    }
    assert chain(plain) == chain(marked)


@given(_params, st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_places_are_the_blocks_within_the_first_chunks(params: dict[str, Any], count: int) -> None:
    size = len(flat(params))
    ends = prefix_chunks(params, size).tokens if size else ()
    count = min(count, len(ends))
    upto = ends[count - 1] if count else 0
    at, expected = 0, list[Place]()
    for place, part in written(params):
        at += len(part)
        if at <= upto:
            expected.append(place)
    if size * 3 >= STEP_BYTES // 2:
        assert [place for place, _ in places(params, count)] == expected


def test_a_long_prompt_has_few_chunks_and_a_short_one_none() -> None:
    short = {"messages": [{"role": "user", "content": "x" * 400}]}
    assert prefix_chunks(short, estimated_input_tokens(short)).hashes == ()
    turns = [{"role": "user", "content": "x" * 600} for _ in range(667)]
    for messages in ([{"role": "user", "content": "x" * 400_000}], turns):
        long = {"messages": messages}
        tokens = estimated_input_tokens(long)
        chunks = prefix_chunks(long, tokens)
        assert 50 < len(chunks.hashes) <= 150
        assert list(chunks.tokens) == sorted(set(chunks.tokens))
        assert chunks.tokens[-1] <= tokens
        assert all(0 <= each < 1 << 63 for each in chunks.hashes)


def test_a_prompt_of_4_kb_costs_microseconds() -> None:
    params = {
        "system": "rules and more rules. " * 90,
        "messages": [{"role": "user", "content": "a ticket to sort. " * 110}],
    }
    tokens = estimated_input_tokens(params)
    best_s = min(_timed_s(params, tokens) for _ in range(200))
    assert (
        best_s < 200e-6
    )  # 15 us where nothing else runs; the bound leaves room for a busy machine


def _timed_s(params: dict[str, Any], tokens: int) -> float:
    began_s = time.perf_counter()
    prefix_chunks(params, tokens)
    return time.perf_counter() - began_s
