"""Schemas: what is refused, and that instances of what is accepted are valid."""

import re
from random import Random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.sandbox.errors import ApiError
from agentcloud.cluster.sandbox.instances import make_instance
from agentcloud.cluster.sandbox.schemas import STRING_FORMATS, check_schema

PERSON: Any = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def an_object(properties: dict[str, Any], optional: set[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


literals = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text("abc", max_size=3))
leaves = st.one_of(
    st.sampled_from(["string", "integer", "number", "boolean", "null"]).map(
        lambda kind: {"type": kind}
    ),
    st.lists(literals, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    literals.map(lambda value: {"const": value}),
    st.sampled_from(sorted(STRING_FORMATS)).map(lambda form: {"type": "string", "format": form}),
    st.just({"type": ["string", "null"]}),
    st.just({"$ref": "#/$defs/person"}),
)
names = st.text("abcdef", min_size=1, max_size=4)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(an_object, st.dictionaries(names, inner, max_size=4), st.sets(names, max_size=2)),
        st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            inner,
            st.integers(0, 1),
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda variants: {"anyOf": variants}),
        inner.map(lambda part: {"allOf": [part]}),
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(schema=schemas, seed=st.integers(0, 2**32))
def test_instances_of_accepted_schemas_are_valid(schema: dict[str, Any], seed: int) -> None:
    whole = {**an_object({"value": schema}, set()), "$defs": {"person": PERSON}}
    check_schema(whole, "schema")
    instance = make_instance(whole, Random(seed))
    jsonschema.validate(
        instance, whole, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    assert instance == make_instance(whole, Random(seed))


loose_tools = st.one_of(
    st.builds(
        lambda low, span, step: {
            "type": "integer", "minimum": low, "maximum": low + span * step, "multipleOf": step
        },
        st.integers(-50, 50), st.integers(1, 9), st.integers(1, 7),
    ),
    st.builds(
        lambda low, span: {"type": "number", "exclusiveMinimum": low, "maximum": low + span},
        st.integers(-50, 50), st.integers(1, 9),
    ),
    st.integers(-50, 50).map(lambda high: {"type": "number", "exclusiveMaximum": high}),
    st.integers(-50, 50).map(lambda low: {"type": "integer", "exclusiveMinimum": low}),
    st.builds(
        lambda least, span: {"type": "string", "minLength": least, "maxLength": least + span},
        st.integers(0, 60), st.integers(0, 9),
    ),
    st.builds(
        lambda least, span: {
            "type": "array", "items": {"type": "integer"},
            "minItems": least, "maxItems": least + span, "uniqueItems": True,
        },
        st.integers(0, 6), st.integers(0, 4),
    ),
    st.just({"oneOf": [{"type": "integer"}, {"type": "string"}]}),
)  # fmt: skip


@settings(deadline=None)
@given(schema=loose_tools, seed=st.integers(0, 2**32))
def test_limits_of_tools_that_are_not_strict_are_kept(schema: dict[str, Any], seed: int) -> None:
    jsonschema.validate(make_instance(schema, Random(seed)), schema)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{2}-\d{4}$", r"^(red|green|blue)+$", r"^[^x]y?$", r"\w+@\w+\.(com|org)",
        r"^\S{3,}$", r"^.{2}\s.*$", r"^[a-f0-9]{8}$",
    ],
)  # fmt: skip
@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_patterns_are_met(pattern: str, seed: int) -> None:
    made = make_instance({"type": "string", "pattern": pattern}, Random(seed))
    assert re.search(pattern, made)


def test_recursive_tool_schemas_end() -> None:
    tree = {
        "type": "object",
        "properties": {
            "left": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            "right": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
        "required": ["left", "right"],
    }
    for seed in range(50):
        jsonschema.validate(make_instance(tree, Random(seed)), tree)


OPEN = {key: value for key, value in PERSON.items() if key != "additionalProperties"}


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 9},
         "schema.properties.value: For 'integer' type, properties maximum, minimum are not"),
        ({"type": "number", "multipleOf": 2}, "multipleOf"),
        ({"type": "string", "maxLength": 9}, "maxLength"),
        ({"type": "string", "format": "credit-card"}, "format 'credit-card'"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 3}, "maxItems"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, "minItems"),
        ({"type": "array", "items": OPEN}, r"schema.properties.value.items: For 'object' type"),
        (OPEN, "'additionalProperties' must be explicitly set to false"),
        ({**PERSON, "additionalProperties": {"type": "string"}}, "additionalProperties"),
        ({**PERSON, "required": ["nobody"]}, "'nobody' is not in properties"),
        ({"anyOf": [{"type": "string"}, OPEN]}, r"schema.properties.value.anyOf.1"),
        ({"oneOf": [{"type": "string"}]}, "'oneOf' is not supported"),
        ({"type": "file"}, "JSON schema is invalid.*'file'"),
        ({}, "must have a 'type'"),
        ({"enum": []}, "enum"),
        ({"enum": [{"a": 1}]}, "Only strings, numbers"),
        ({"$ref": "#/$defs/nothing"}, r"must name a definition"),
        ({"$ref": "https://elsewhere.example/schema"}, r"must name a definition"),
        ({"$ref": "#/$defs/loop"}, "Recursive schemas are not supported"),
        ({"$ref": "#"}, "Recursive schemas are not supported"),
        ("text", r"JSON schema is invalid.*properties.value: 'text'"),
        (True, "valid dictionary"),
    ],
)  # fmt: skip
def test_schemas_the_api_refuses(part: Any, problem: str) -> None:
    schema = {
        **an_object({"value": part}, set()),
        "$defs": {"loop": an_object({"next": {"$ref": "#/$defs/loop"}}, set())},
    }
    with pytest.raises(ApiError, match=problem) as caught:
        check_schema(schema, "schema")
    assert caught.value.status == 400
    assert caught.value.error_type == "invalid_request_error"


def test_one_definition_may_be_used_twice() -> None:
    reference = {"$ref": "#/$defs/person"}
    schema = {**an_object({"a": reference, "b": reference}, set()), "$defs": {"person": PERSON}}
    check_schema(schema, "schema")
