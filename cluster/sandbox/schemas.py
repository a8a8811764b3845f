"""What JSON schemas the API accepts for structured output and strict tools."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic_core import from_json, to_json

from agentcloud.cluster.sandbox.errors import invalid

STRING_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"]
)
_UNIONS = ("anyOf", "allOf")
#: Keywords of JSON Schema that the API refuses, by the type they belong to.
_REFUSED = {
    "object": ("minProperties", "maxProperties", "patternProperties", "propertyNames"),
    "array": ("maxItems", "uniqueItems", "contains", "prefixItems"),
    "string": ("minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "any": ("oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"),
}
_REFUSED["integer"] = _REFUSED["number"]
_MAX_DEPTH = 64


def check_schema(schema: Any, where: str) -> None:
    """Refuse a schema that constrained generation could not follow.

    Raises:
        ApiError: names the place: recursion, limits of numbers or lengths, objects that are open.
    """
    check_is_schema(schema, where)
    _Checker(schema, where).check(schema, where, ())


def check_is_schema(schema: Any, where: str) -> None:
    """Refuse what is no JSON schema at all.

    Raises:
        ApiError: it is none of draft 2020-12.
    """
    if not isinstance(schema, Mapping):
        raise invalid(where, "Input should be a valid dictionary")
    problem = _schema_problem(to_json(schema))
    if problem is not None:
        raise invalid(
            where,
            f"JSON schema is invalid. It must match JSON Schema draft 2020-12: {problem}",
        )


# Calls repeat their schemas, and a check takes about a millisecond.
@lru_cache(maxsize=1024)
def _schema_problem(schema_json: bytes) -> str | None:
    try:
        Draft202012Validator.check_schema(from_json(schema_json))
    except SchemaError as error:
        return f"{error.json_path}: {error.message}"
    return None


class _Checker:
    def __init__(self, root: Mapping[str, Any], where: str) -> None:
        self._root = root
        self._where = where
        self._done: set[str] = set()

    def check(self, schema: Any, where: str, refs: tuple[str, ...]) -> None:
        if not isinstance(schema, Mapping):
            raise invalid(where, "Input should be a valid dictionary")
        if where.count(".") > _MAX_DEPTH * 2:
            raise invalid(where, "Schema is nested too deeply")
        for keyword in _REFUSED["any"]:
            if keyword in schema:
                raise invalid(where, f"'{keyword}' is not supported")
        if "$ref" in schema:
            self._check_ref(schema["$ref"], where, refs)
            return
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [] if kinds is None else [kinds]
        for kind in kinds:
            self._check_limits(schema, kind, where)
        unions = [name for name in _UNIONS if name in schema]
        if not kinds and not unions and "enum" not in schema and "const" not in schema:
            raise invalid(where, "Schema must have a 'type', 'anyOf', 'allOf', 'enum' or 'const'")
        for name in unions:
            for index, variant in enumerate(schema[name]):
                self.check(variant, f"{where}.{name}.{index}", refs)
        _check_literals(schema, where)
        if "object" in kinds:
            self._check_object(schema, where, refs)
        if "array" in kinds and "items" in schema:
            self.check(schema["items"], f"{where}.items", refs)

    def _check_limits(self, schema: Mapping[str, Any], kind: str, where: str) -> None:
        refused = sorted(name for name in _REFUSED.get(kind, ()) if name in schema)
        if refused:
            names = ", ".join(refused)
            raise invalid(where, f"For '{kind}' type, properties {names} are not supported")
        if kind == "array" and schema.get("minItems", 0) not in (0, 1):
            raise invalid(
                where, "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
            )
        if kind == "string" and schema.get("format") not in (None, *STRING_FORMATS):
            raise invalid(where, f"For 'string' type, format '{schema['format']}' is not supported")

    def _check_object(self, schema: Mapping[str, Any], where: str, refs: tuple[str, ...]) -> None:
        if schema.get("additionalProperties") is not False:
            raise invalid(
                where, "For 'object' type, 'additionalProperties' must be explicitly set to false"
            )
        properties = schema.get("properties") or {}
        for name in schema.get("required") or ():
            if name not in properties:
                raise invalid(f"{where}.required", f"'{name}' is not in properties")
        for name, value in properties.items():
            self.check(value, f"{where}.properties.{name}", refs)

    def _check_ref(self, ref: Any, where: str, refs: tuple[str, ...]) -> None:
        if ref in refs:
            raise invalid(where, f"Recursive schemas are not supported: {ref}")
        target = resolve_ref(self._root, ref)
        if target is None:
            raise invalid(where, f"'$ref' must name a definition of this schema, not {ref}")
        if ref not in self._done:
            self.check(target, f"{self._where}.{str(ref)[2:].replace('/', '.')}", (*refs, ref))
            self._done.add(ref)


def resolve_ref(root: Mapping[str, Any], ref: Any) -> Any:
    """What `#/…` names in `root`; None if nothing."""
    if not isinstance(ref, str) or not ref.startswith("#"):
        return None
    target: Any = root
    for part in ref[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(target, Mapping) or name not in target:
            return None
        target = target[name]
    return target


def _check_literals(schema: Mapping[str, Any], where: str) -> None:
    if "enum" in schema:
        values = schema["enum"]
        if not values:
            raise invalid(f"{where}.enum", "Input should be a non-empty list")
        if any(isinstance(value, list | dict) for value in values):
            raise invalid(f"{where}.enum", "Only strings, numbers, booleans and null are supported")
    if isinstance(schema.get("const"), list | dict):
        raise invalid(f"{where}.const", "Only strings, numbers, booleans and null are supported")
