"""Generated pydantic models: their schemas are accepted, and their objects obey them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum
from random import Random
from typing import Annotated, Any, Literal
from uuid import UUID

import jsonschema
import pydantic
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError
from xgrammar.testing import _is_grammar_accept_string as accepts

from agentcloud.agents.output import output_schema, parse_output
from agentcloud.cluster.sandbox.instances import make_instance
from agentcloud.cluster.sandbox.schemas import check_schema

NAMES = st.sampled_from(["a", "b", "title", "default", "items", "type", "enum", "properties"])


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


LEAVES: list[Any] = [
    int,
    float,
    bool,
    str,
    Mood,
    Literal["x", "y"],
    Literal["only"],
    date,
    datetime,
    UUID,
    Literal[1, "z", None],
    Annotated[int, Field(ge=0, le=9)],
    Annotated[str, Field(max_length=5)],
]


#: Problems that the schema cannot say and pydantic finds after.
LIMITS = {"greater_than_equal", "less_than_equal", "too_long", "string_too_long"}


def many(kind: Any) -> Any:
    return list[kind]


def few(kind: Any) -> Any:
    return Annotated[many(kind), Field(max_length=3)]


def kinds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(many),
        inner.map(lambda kind: kind | None),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(few),
        models(inner),
    )


def models(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[type[BaseModel]]:
    def build(fields: dict[str, tuple[Any, bool]], number: int) -> type[BaseModel]:
        described: dict[str, Any] = {
            name: (kind | None, None) if optional else (kind, Field(description=f"the {name}"))
            for name, (kind, optional) in fields.items()
        }
        return pydantic.create_model(f"Model{number}", **described)

    fields = st.dictionaries(NAMES, st.tuples(inner, st.booleans()), min_size=1, max_size=4)
    return st.builds(build, fields, st.integers(0, 10**9))


MODELS = models(st.recursive(st.sampled_from(LEAVES), kinds, max_leaves=6))


def validator(schema: dict[str, Any]) -> Callable[[Any], None]:
    checker = jsonschema.Draft202012Validator
    checker.check_schema(schema)
    return checker(schema).validate


@settings(max_examples=150, deadline=None)
@given(MODELS, st.integers(0, 2**32))
def test_any_object_of_the_schema_is_one_of_the_model_save_for_its_limits(
    model: type[BaseModel], seed: int
) -> None:
    schema = output_schema(model)
    check_schema(schema, "schema")
    instance = make_instance(schema, Random(seed))
    validator(schema)(instance)
    # The grammar of vLLM's own backend allows what the API's schema does, and nothing besides.
    text = json.dumps(schema)
    grammar = xgrammar.Grammar.from_json_schema(text, any_whitespace=False)
    # xgrammar takes two objects for one that differ in nothing but a property of such a name.
    if all(text.count(f'"{name}": {{') < 2 for name in ("title", "default")):
        assert accepts(grammar, json.dumps(instance, ensure_ascii=False))
    assert not accepts(grammar, json.dumps({**instance, "no such field": 1}, ensure_ascii=False))
    try:
        parsed = parse_output(model, json.dumps(instance))
    except ValidationError as error:
        problems = {problem["type"] for problem in error.errors()}
    else:
        # And back: what the model holds is what its schema allows.
        validator(schema)(parsed.model_dump(mode="json", exclude_unset=True))
        problems = LIMITS
    assert problems & LIMITS
