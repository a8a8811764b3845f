"""pydantic models -> schemas: what is accepted, what is refused, what is checked after."""

from __future__ import annotations

import json
import re
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, RootModel, ValidationError

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


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    good: bool


class Home(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind", description="who lives here")]
    first: Cat | None = None
    guest: Dog = Field(description="who visits")


def test_members_of_a_union_are_told_apart_by_a_field_that_is_always_there() -> None:
    schema = output_schema(Home)
    assert schema["$defs"]["Cat"]["required"] == ["kind"]
    assert schema["$defs"]["Dog"]["required"] == ["kind", "good"]
    assert schema["properties"]["pet"] == {
        "anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "description": "who lives here",
    }
    home = parse_output(Home, '{"pet": {"kind": "cat"}, "guest": {"kind": "dog", "good": true}}')
    assert home.pet == Cat()


def test_what_a_field_says_of_its_model_is_kept() -> None:
    guest = output_schema(Home)["properties"]["guest"]
    assert guest == {"anyOf": [{"$ref": "#/$defs/Dog"}], "description": "who visits"}


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
        (unsayable(Literal[Colour.RED]), r"Literal\[Colour.RED\] matches no JSON; derive Colour"),
        (unsayable(list[Literal[Colour.RED]] | None), r"StrEnum or IntEnum, or write Literal\['re"),
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


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (Annotated[int, Field(ge=1, le=5)], "6", "less than or equal to 5"),
        (Annotated[float, Field(gt=0)], "0", "greater than 0"),
        (Annotated[int, Field(multiple_of=5)], "7", "multiple of 5"),
        (Annotated[str, Field(min_length=2)], '"x"', "at least 2 characters"),
        (Annotated[list[int], Field(max_length=1)], "[1, 2]", "at most 1 item"),
        (date, '"2026-02-30"', "valid date"),
        (UUID, '"x"', "valid UUID"),
        (HttpUrl, '"ftp://x"', "URL scheme"),
        (Colour, '"green"', "'red' or 'blue'"),
    ],
)
def test_each_kind_of_limit_is_checked_after(kind: Any, text: str, words: str) -> None:
    model = unsayable(kind)
    asked = json.dumps(output_schema(model))
    assert not {"minimum", "maximum", "minLength", "maxItems"} & set(re.findall(r'"(\w+)":', asked))
    with pytest.raises(ValidationError) as caught:
        parse_output(model, f'{{"field": {text}}}')
    assert explain(caught.value).startswith("field: ")
    assert words in explain(caught.value)


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
