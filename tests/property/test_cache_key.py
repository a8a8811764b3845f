"""Which calls share an answer: equal requests in any order of their keys, and no others."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.cache_key import key_of, may_be_cached, served_by
from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import Routing

_text = st.text(max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _text,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_text, inner, max_size=2),
    max_leaves=4,
)
_inner = st.fixed_dictionaries({"type": st.just("text"), "text": _text})
_block = st.one_of(
    _inner,
    st.fixed_dictionaries(
        {
            "type": st.just("tool_result"),
            "tool_use_id": _text,
            "content": _text | st.lists(_inner, max_size=2),
        }
    ),
    st.fixed_dictionaries(
        {"type": st.just("tool_use"), "id": _text, "name": _text, "input": _json}
    ),
)
_message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant"]),
        "content": _text | st.lists(_block, max_size=3),
    }
)
_tool = st.fixed_dictionaries(
    {"name": _text, "input_schema": st.dictionaries(_text, _json, max_size=2)}
)
_params = st.fixed_dictionaries(
    {
        "model": st.just("small"),
        "max_tokens": st.integers(1, 9),
        "messages": st.lists(_message, min_size=1, max_size=3),
    },
    optional={
        "system": _text | st.lists(_inner, max_size=2),
        "tools": st.lists(_tool, max_size=2),
        "tool_choice": st.sampled_from([{"type": "any"}, {"type": "auto"}]),
        "temperature": st.sampled_from([0, 0.5, 1]),
        "top_p": st.sampled_from([0.1, 0.9]),
        "stop_sequences": st.lists(_text, max_size=2),
        "output_config": st.fixed_dictionaries({"format": _json}),
        "thinking": st.sampled_from([{"type": "disabled"}, {"type": "adaptive"}]),
    },
)
MARK = {"type": "ephemeral"}
SERVED = "what serves it"
DEFAULT = Routing()


def shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(key, shuffled(each, rng)) for key, each in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list):
        return [shuffled(each, rng) for each in value]
    return float(value) if type(value) is int else value


def marked(value: Any) -> Any:
    """Marks on every block of a request."""
    if isinstance(value, list):
        return [marked(each) for each in value]
    if isinstance(value, dict):
        return (
            value
            | {"cache_control": MARK}
            | ({"content": marked(value["content"])} if "content" in value else {})
        )
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, each in value.items():
            found += places(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found += places(each, (*path, index))
    return found


def changed(value: Any, path: tuple[Any, ...]) -> Any:
    """The value with another thing at one place."""
    if not path:
        return "another" if value != "another" else "yet another"
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:])
    return copy


@given(_params, st.randoms(use_true_random=False))
def test_the_order_of_keys_and_what_only_names_the_asker_change_nothing(
    params: dict[str, Any], rng: random.Random
) -> None:
    key = key_of(params, SERVED, DEFAULT)
    again = shuffled(params, rng) | {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": MARK,
        "model": "an alias of small",
    }
    assert key_of(again, SERVED, DEFAULT) == key
    urgent = Routing(
        tier="small", priority=-1, deadline_s=3, budget=("job:j",), cache=True, kind="k", step="s"
    )
    assert key_of(json.loads(json.dumps(params)), SERVED, urgent) == key


@given(_params)
def test_marks_for_the_models_own_cache_change_nothing(params: dict[str, Any]) -> None:
    with_marks = dict(params)
    for part in ("system", "tools"):
        if part in params:
            with_marks[part] = marked(params[part])
    with_marks["messages"] = [
        message | {"content": marked(message["content"])} for message in params["messages"]
    ]
    assert key_of(with_marks, SERVED, DEFAULT) == key_of(params, SERVED, DEFAULT)


@given(_params, st.data())
def test_whatever_else_is_changed_gives_another_key(
    params: dict[str, Any], data: st.DataObject
) -> None:
    key = key_of(params, SERVED, DEFAULT)
    path = data.draw(st.sampled_from([each for each in places(params) if each[0] != "model"]))
    if path != ("messages",) and not (path[0] == "messages" and len(path) == 2):
        assert key_of(changed(params, path), SERVED, DEFAULT) != key
    more = dict(params)
    more["top_k"] = 5
    assert key_of(more, SERVED, DEFAULT) != key
    assert key_of(params, "another model", DEFAULT) != key
    assert key_of(params, SERVED, Routing(mean_logprob=True)) != key
    assert key_of(params, SERVED, Routing(endpoint="replica:m:0")) != key


def test_a_field_of_a_tool_that_is_named_like_a_mark_counts() -> None:
    def tool(given: dict[str, Any]) -> dict[str, Any]:
        block = {"type": "tool_use", "id": "t", "name": "n", "input": given}
        return {"max_tokens": 1, "messages": [{"role": "assistant", "content": [block]}]}

    assert key_of(tool({"cache_control": 1}), SERVED, DEFAULT) != key_of(tool({}), SERVED, DEFAULT)


def test_another_model_behind_the_same_name_gives_another_key() -> None:
    def served(**changes: Any) -> str:
        local = {"path": "/m/one", "tier": "small"} | changes
        config = parse_fleet({"models": {"one": local}})
        return served_by(frozenset({"one"}), config)

    assert served() == served(replicas=3, usd_per_gpu_hour="2", max_concurrency=1)
    changes: list[dict[str, Any]] = [
        {"path": "/m/two"},
        {"dtype": "float16"},
        {"engine_args": {"quantization": "fp8"}},
    ]
    assert len({served(), *(served(**each) for each in changes)}) == 4


@pytest.mark.parametrize(
    ("params", "cache", "may"),
    [
        ({"temperature": 0}, None, True),
        ({"temperature": 0.0}, None, True),
        ({}, None, False),
        ({"temperature": 0.1}, None, False),
        ({"temperature": 1}, True, True),
        ({"temperature": 0}, False, False),
        ({"temperature": 0, "tools": [{"name": "own"}]}, None, True),
        ({"temperature": 0, "tools": [{"type": "web_search_20250305"}]}, None, False),
        ({"temperature": 0, "mcp_servers": [{"url": "u"}]}, None, False),
    ],
)
def test_sampled_calls_must_ask_for_it(
    params: dict[str, Any], cache: bool | None, may: bool
) -> None:
    assert may_be_cached(params, Routing(cache=cache)) is may
