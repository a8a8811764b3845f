from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.contracts import Feature
from agentcloud.cluster.gpu_share import GpuShare
from agentcloud.cluster.sandbox.prompt import count_tokens
from agentcloud.cluster.sizing import estimated_input_tokens, needs_of

TOOL = {"name": "f", "description": "find", "input_schema": {"type": "object"}}
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "A" * 999},
}


def user(content: Any, **params: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **params}


@pytest.mark.parametrize(
    ("params", "needs"),
    [
        (user("x"), set()),
        (user([IMAGE]), {Feature.IMAGES}),
        (user([{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}]), {Feature.IMAGES}),
        (user([{"type": "document", "source": {}}]), {Feature.DOCUMENTS}),
        (user("x", tools=[TOOL]), {Feature.TOOLS}),
        (user("x", tools=[TOOL], tool_choice={"type": "auto"}), {Feature.TOOLS}),
        (
            user("x", tools=[{**TOOL, "strict": True}], tool_choice={"type": "any"}),
            {Feature.TOOLS, Feature.STRICT_TOOLS, Feature.FORCED_TOOLS},
        ),
        (
            user("x", tools=[{"type": "web_search_20250305", "name": "web_search"}]),
            {Feature.TOOLS, Feature.SERVER_TOOLS},
        ),
        (
            user("x", thinking={"type": "enabled", "budget_tokens": 1024}),
            {Feature.THINKING, Feature.THINKING_BUDGET},
        ),
        (user("x", thinking={"type": "adaptive"}), {Feature.THINKING}),
        (user("x", thinking={"type": "disabled"}), {Feature.THINKING_DISABLED}),
        (user("x", temperature=0), {Feature.SAMPLING}),
        (user("x", temperature=1, top_p=1), set()),
        (user("x", top_k=5), {Feature.SAMPLING}),
        ({"messages": [{"role": "assistant", "content": "{"}]}, {Feature.PREFILL}),
        (
            user("x", output_config={"format": {"type": "json_schema", "schema": {}}}),
            {Feature.JSON_SCHEMA},
        ),
        (user("x", output_config={"effort": "low"}), set()),
    ],
)
def test_needs(params: dict[str, Any], needs: set[Feature]) -> None:
    assert needs_of(params) == needs


WORDS = st.lists(
    st.sampled_from(
        [
            "please",
            "sort",
            "this",
            "ticket",
            "the",
            "app",
            "fails",
            "on",
            "login",
            "查询",
            "订单",
            "état",
        ]
    )
)


@given(WORDS, WORDS)
def test_the_estimate_is_not_below_an_ordinary_count(system: list[str], words: list[str]) -> None:
    params = user(" ".join(words) or "x", system=" ".join(system) or "y", tools=[TOOL])
    assert estimated_input_tokens(params) >= count_tokens(params)


def test_an_image_weighs_what_the_api_scales_it_to_not_its_bytes() -> None:
    big = {**IMAGE, "source": {**IMAGE["source"], "data": "A" * 4_000_000}}  # type: ignore[dict-item]  # a mapping
    assert estimated_input_tokens(user([big])) == estimated_input_tokens(user([IMAGE]))


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10)), min_size=1, max_size=12))
def test_shares_add_up_to_the_busy_time(calls: list[tuple[float, float]]) -> None:
    moments = sorted(
        [(began, 1, index) for index, (began, _) in enumerate(calls)]
        + [(began + took, 0, index) for index, (began, took) in enumerate(calls)]
    )
    share, marks, total_s, running, busy_s, last_s = GpuShare(), {}, 0.0, 0, 0.0, 0.0
    for at_s, starts, index in moments:
        busy_s += (at_s - last_s) if running else 0.0
        last_s = at_s
        if starts:
            marks[index] = share.begin(at_s)
            running += 1
        else:
            total_s += share.end(marks[index], at_s)
            running -= 1
    assert total_s == pytest.approx(busy_s)
