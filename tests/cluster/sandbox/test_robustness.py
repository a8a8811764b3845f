"""Whatever is sent, the answer is one of the API's: never a failure of the sandbox itself."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.sandbox import SandboxConfig
from agentcloud.cluster.sandbox.calls import CallRecord
from agentcloud.cluster.sandbox.core import SandboxCore
from agentcloud.cluster.sandbox.errors import ApiError
from agentcloud.cluster.sandbox.stream import frames

WHOLE: Any = {
    "model": "claude-haiku-4-5",
    "max_tokens": 2000,
    "stream": True,
    "temperature": 0.5,
    "stop_sequences": ["END"],
    "metadata": {"user_id": "me"},
    "cache_control": {"type": "ephemeral", "ttl": "5m"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "auto"},
    "system": [{"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}],
    "output_config": {
        "effort": "low",
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {
                    "a": {"$ref": "#/$defs/b"},
                    "c": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
                    "d": {"type": "array", "items": {"enum": [1, "x"]}, "minItems": 1},
                },
                "required": ["a"],
                "additionalProperties": False,
                "$defs": {"b": {"type": ["integer", "null"]}},
            },
        },
    },
    "tools": [
        {
            "name": "look",
            "description": "Looks.",
            "input_schema": {
                "type": "object",
                "properties": {"at": {"type": "string", "maxLength": 9, "pattern": "a+"}},
                "required": ["at"],
            },
        },
        {"type": "web_search_20250305", "name": "search", "max_uses": 3},
    ],
    "messages": [
        {"role": "user", "content": "look"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "x"}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "seen"}],
                },
                {"type": "image", "source": {"type": "base64", "data": "AA"}},
                {"type": "document", "source": {"type": "text", "data": "page"}},
                {"type": "text", "text": "look again"},
            ],
        },
    ],
}


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    inner: Any = ()
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        found.extend(paths_of(part, (*path, key)))
    return found


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(
        ["object", "array", "string", "auto", "any", "tool_use", "thinking", "#", "$ref"]
    ),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "name", "$ref", "allOf", "items", "x", "required", "enum"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=5,
    ),
)
REMOVED = object()
changes = st.lists(
    st.tuples(st.sampled_from(paths_of(WHOLE)), st.just(REMOVED) | junk), min_size=1, max_size=3
)


def changed(steps: list[tuple[tuple[Any, ...], Any]]) -> Any:
    request = copy.deepcopy(WHOLE)
    for path, value in steps:
        place = request
        try:
            for key in path[:-1]:
                place = place[key]
            if value is REMOVED:
                del place[path[-1]]
            else:
                place[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return request


def a_record() -> CallRecord:
    return CallRecord(0, 0.0, "/v1/messages", "account", "req_1", "")


async def status_of(body: bytes) -> int:
    """Status of the answer to a request; a whole answer must come out as events, too."""
    core = SandboxCore(SandboxConfig(), clock=FakeClock())
    try:
        outcome = await core.answer(body, a_record(), None)
    except ApiError as error:
        return error.status
    events = frames("msg", outcome.model, outcome.answer, outcome.usage)
    assert b"".join(frame.data for frame in events).endswith(b'{"type":"message_stop"}\n\n')
    return 200


def status_of_count(body: bytes) -> int:
    core = SandboxCore(SandboxConfig(), clock=FakeClock())
    try:
        return 200 if core.count(body, a_record()) > 0 else 500
    except ApiError as error:
        return error.status


@settings(deadline=None, max_examples=400)
@given(steps=changes)
async def test_a_damaged_request_is_answered_or_refused(
    steps: list[tuple[tuple[Any, ...], Any]],
) -> None:
    body = to_json(changed(steps))
    assert await status_of(body) in (200, 400, 404)
    assert status_of_count(body) in (200, 400, 404)


async def test_the_undamaged_request_is_answered() -> None:
    core = SandboxCore(SandboxConfig(), clock=FakeClock())
    outcome = await core.answer(to_json(WHOLE), a_record(), None)
    assert [block.kind for block in outcome.answer.blocks] == ["thinking", "text"]


@settings(deadline=None)
@given(body=st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
async def test_bodies_of_anything_are_refused(body: bytes) -> None:
    assert await status_of(body) == 400
