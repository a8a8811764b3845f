"""pydantic models -> schemas: what is accepted, what is refused, what is checked after."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from agentcloud.agents.output import explain, output_schema, parse_output, ran_away
from agentcloud.cluster.errors import AgentError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    model_config = ConfigDict(extra="allow")
    title: Annotated[str, Field(min_length=1, pattern="^[A-Z]")]
    due: date | None = None


class Whole(BaseModel):
    """A whole thing."""

    default: int = Field(description="a field named as a keyword of schemas")
    parts: Annotated[list[Part], Field(max_length=4)]
    colour: Colour
    kind: Literal["a", "b"]
    price: Decimal | None = None


class Node(BaseModel):
    children: list[Node]


class Tree(BaseModel):
    root: Node | None


class Ping(BaseModel):
    pong: Pong | None


class Pong(BaseModel):
    ping: Ping | None


class Shared(BaseModel):
    left: Part
    right: Part


def test_a_schema_both_sides_accept() -> None:
    schema = output_schema(Whole)
    assert schema["required"] == ["default", "parts", "colour", "kind"]
    assert list(schema["properties"]) == ["default", "parts", "colour", "kind", "price"]
    assert schema["properties"]["kind"] == {"enum": ["a", "b"]}
    assert schema["$defs"]["Colour"] == {"enum": ["red", "blue"]}
    assert schema["properties"]["parts"] == {
        "type": "array",
        "items": {"$ref": "#/$defs/Part"},
        "description": "{maxItems: 4}",
    }
    part = schema["$defs"]["Part"]
    assert part["additionalProperties"] is False
    assert part["properties"]["title"]["type"] == "string"
    assert part["properties"]["due"]["anyOf"] == [
        {"type": "string", "format": "date"},
        {"type": "null"},
    ]


def test_the_same_part_twice_is_not_recursion() -> None:
    assert output_schema(Shared)["required"] == ["left", "right"]


def test_the_schema_is_made_once() -> None:
    assert output_schema(Whole) is output_schema(Whole)


def unsayable(kind: Any) -> type[BaseModel]:
    class Bad(BaseModel):
        field: kind

    return Bad


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Node, r"recursive \(Node -> Node\), which no endpoint can serve; limit the depth"),
        (Tree, r"recursive \(Node -> Node\)"),
        (Ping, r"recursive \(Ping -> Pong -> Ping\)"),
        (RootModel[list[int]], "is not an object; put the value in a field"),
        (unsayable(dict[str, int]), "output field Bad.field: a dict cannot be asked for"),
        (unsayable(dict[str, int] | None), "output field Bad.field: a dict cannot"),
        (unsayable(list[dict[str, Any]]), "output field Bad.field: a dict cannot"),
        (unsayable(tuple[int, str]), "output field Bad.field: a tuple cannot be asked for"),
        (unsayable(list[Any]), "output field Bad.field: a list of anything"),
        (unsayable(Any), "output field Bad.field: Any cannot be asked for"),
        (int, "is not a pydantic model"),
        (Whole(default=1, parts=[], colour=Colour.RED, kind="a"), "is not a pydantic model"),
    ],
)
def test_what_no_endpoint_can_serve_is_refused_by_name(model: Any, words: str) -> None:
    with pytest.raises(AgentError, match=words) as caught:
        output_schema(model)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_schema_is_refused() -> None:
    from collections.abc import Callable

    with pytest.raises(AgentError, match="output=Bad has no JSON schema"):
        output_schema(unsayable(Callable[[], int]))


def test_constraints_are_checked_after() -> None:
    text = '{"title": "lower"}'
    with pytest.raises(ValidationError) as caught:
        parse_output(Part, text)
    assert explain(caught.value) == "title: String should match pattern '^[A-Z]'"
    assert parse_output(Part, '```json\n{"title": "Upper"}\n```').title == "Upper"


def test_explanations_are_short() -> None:
    with pytest.raises(ValidationError) as caught:
        parse_output(unsayable(list[int]), json.dumps({"field": ["x"] * 20}))
    lines = explain(caught.value).splitlines()
    assert len(lines) == 9
    assert lines[-1] == "and 12 more problems"
    with pytest.raises(ValidationError) as not_json:
        parse_output(Part, "Sure! Here you go")
    assert explain(not_json.value).startswith("the answer: Invalid JSON")


def test_running_away_is_told_from_being_cut() -> None:
    assert ran_away('{"a":' + "\n" * 64)
    assert not ran_away('{"a": "' + "x" * 1000)
