"""A pydantic model -> a JSON schema that hosted and local models accept; the answer -> the model.

Both sides constrain decoding by the schema, but neither takes numeric or length limits, recursion
or open-ended objects. What the schema cannot say is told in descriptions and checked by pydantic
after the answer; what neither can do is refused before any call, by field name. Recursion is
refused too, not unrolled: a depth that the model does not know of would cut answers off unseen.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

import anthropic
from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from agentcloud.cluster.errors import AgentError

T = TypeVar("T", bound=BaseModel)

#: Trailing blanks from which on an answer has run away instead of being cut short.
_BLANKS = 64
_MAX_ERRORS_TOLD = 8


def output_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema to ask for; callers must not change it.

    Raises:
        AgentError: the model cannot be asked for, naming the field and what to write instead.
    """
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise AgentError(f"output={model!r} is not a pydantic model; subclass pydantic.BaseModel")
    return _schema_of(model)


@functools.lru_cache(maxsize=512)
def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    try:
        schema = model.model_json_schema()
    except PydanticInvalidForJsonSchema as error:
        raise AgentError(f"output={model.__name__} has no JSON schema: {error.message}") from None
    defs: dict[str, Any] = schema.get("$defs", {})
    _refuse_recursion(model.__name__, schema, defs)
    root = _resolve(schema, defs)
    if root.get("type") != "object":
        raise AgentError(
            f"output={model.__name__} is not an object; put the value in a field of a model"
        )
    for name, part in [(model.__name__, schema), *defs.items()]:
        _refuse_unsayable(name, part)
    _refuse_unmatchable(model.__name__, model.__pydantic_core_schema__)
    return anthropic.transform_schema(_tidy(schema))


def output_config(model: type[BaseModel]) -> dict[str, Any]:
    """The request's `output_config` that asks for the model."""
    return {"format": {"type": "json_schema", "schema": output_schema(model)}}


def parse_output(model: type[T], text: str) -> T:
    """The validated object.

    Raises:
        pydantic.ValidationError: the text is no JSON or does not satisfy the model.
    """
    return model.model_validate_json(_without_fence(text))


def explain(error: ValidationError) -> str:
    """What is wrong, for the model to mend: one line a problem, without the input."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'the answer'}: {problem['msg']}"
        for problem in problems[:_MAX_ERRORS_TOLD]
    ]
    if len(problems) > _MAX_ERRORS_TOLD:
        lines.append(f"and {len(problems) - _MAX_ERRORS_TOLD} more problems")
    return "\n".join(lines)


def ran_away(text: str) -> bool:
    """Whether a cut answer ends in endless blanks: more tokens would only buy more blanks."""
    return len(text) - len(text.rstrip()) >= _BLANKS


def _without_fence(text: str) -> str:
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```"):
        return stripped.split("\n", 1)[-1].removesuffix("```")
    return stripped


def _resolve(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    ref = schema.get("$ref")
    return _resolve(defs[_name(ref)], defs) if ref else schema


def _name(ref: str) -> str:
    return ref.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")


def _children(schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Sub-schemas with the field they belong to (empty: the same field)."""
    found: list[tuple[str, Mapping[str, Any]]] = list(schema.get("properties", {}).items())
    for key in ("anyOf", "oneOf", "allOf"):
        found += [("", part) for part in schema.get(key, ())]
    if isinstance(schema.get("items"), dict):
        found.append(("", schema["items"]))
    return found


def _refs(schema: Mapping[str, Any]) -> set[str]:
    refs = {_name(schema["$ref"])} if "$ref" in schema else set()
    return refs.union(*(_refs(part) for _, part in _children(schema)))


def _refuse_recursion(name: str, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> None:
    edges = {key: _refs(part) for key, part in defs.items()}
    done: set[str] = set()

    def visit(node: str, above: tuple[str, ...]) -> None:
        if node in above:
            loop = " -> ".join((*above[above.index(node) :], node))
            raise AgentError(
                f"output={name} is recursive ({loop}), which no endpoint can serve; "
                f"limit the depth, or use a flat list with ids of parents"
            )
        if node in done:
            return
        for following in sorted(edges[node]):
            visit(following, (*above, node))
        done.add(node)

    for first in sorted(_refs(schema)):
        visit(first, ())


def _refuse_unsayable(where: str, schema: Mapping[str, Any]) -> None:
    """Raise for parts whose answer could only ever be empty or unconstrained."""
    remedy = None
    if schema.get("type") == "object" and "properties" not in schema:
        if schema.get("additionalProperties", True) is not False:
            remedy = "a dict cannot be asked for; use a list of models with a key and a value"
    elif schema.get("prefixItems"):
        remedy = "a tuple cannot be asked for; use a model with a field for each part"
    elif schema.get("type") == "array" and not schema.get("items"):
        remedy = "a list of anything cannot be asked for; give its items a type"
    elif not any(k in schema for k in ("type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref")):
        remedy = "Any cannot be asked for; give the field a type"
    if remedy:
        raise AgentError(f"output field {where}: {remedy}")
    for field, part in _children(schema):
        _refuse_unsayable(f"{where}.{field}" if field else where, part)


def _refuse_unmatchable(name: str, core: object) -> None:
    """Raise for literals that pydantic matches with no JSON: every answer would be invalid."""
    if isinstance(core, Mapping):
        if core.get("type") == "literal":
            for member in core["expected"]:
                if isinstance(member, Enum) and member != member.value:
                    raise AgentError(
                        f"output={name}: Literal[{member}] matches no JSON; derive "
                        f"{type(member).__name__} from StrEnum or IntEnum, or write "
                        f"Literal[{member.value!r}]"
                    )
        core = list(core.values())
    if isinstance(core, (list, tuple)):
        for part in core:
            _refuse_unmatchable(name, part)


def _tidy(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same schema, said as both sides read it best.

    Without generated titles, defaults and discriminators: they cost tokens and say nothing. A
    constant is required even where it has a default: it tells the members of a union apart. And a
    reference's description survives only beside `anyOf`.
    """
    cleaned = {k: v for k, v in schema.items() if k not in ("title", "default", "discriminator")}
    for key in ("properties", "$defs"):
        if key in cleaned:
            cleaned[key] = {name: _tidy(part) for name, part in cleaned[key].items()}
    for key in ("anyOf", "oneOf", "allOf"):
        if key in cleaned:
            cleaned[key] = [_tidy(part) for part in cleaned[key]]
    if isinstance(cleaned.get("items"), dict):
        cleaned["items"] = _tidy(cleaned["items"])
    if constants := [
        name for name, part in cleaned.get("properties", {}).items() if "const" in part
    ]:
        required = {*cleaned.get("required", ()), *constants}
        cleaned["required"] = [name for name in cleaned["properties"] if name in required]
    if "$ref" in cleaned and "description" in cleaned:
        cleaned["anyOf"] = [{"$ref": cleaned.pop("$ref")}]
    return cleaned
