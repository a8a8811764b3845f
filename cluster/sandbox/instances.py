"""Instances of JSON schemas: the same seed gives the same instance.

Follows what structured output accepts (see schemas.py) and, for tools that are not strict, limits
of numbers, lengths and items besides. Patterns are followed for plain regular expressions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Any

from agentcloud.cluster.sandbox.patterns import text_matching
from agentcloud.cluster.sandbox.schemas import resolve_ref

WORDS = [
    "amber",
    "basin",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "harbor",
    "inlet",
    "juniper",
    "kelp",
    "lagoon",
    "meadow",
    "nectar",
    "orchid",
    "pebble",
    "quartz",
    "ridge",
    "saffron",
    "tundra",
    "umber",
    "valley",
    "willow",
    "xenon",
    "yarrow",
    "zephyr",
]
#: Below this depth optional parts are left out, so that recursive tool schemas end.
_DEEP = 6
#: Schemas that demand to be recursed for ever get nothing below this depth.
_TOO_DEEP = 40


def make_instance(schema: Mapping[str, Any], rng: Random) -> Any:
    """A value that is valid against `schema`."""
    return _Maker(schema, rng).make(schema, 0)


class _Maker:
    def __init__(self, root: Mapping[str, Any], rng: Random) -> None:
        self._root = root
        self._rng = rng

    def make(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, Mapping) or depth > _TOO_DEEP:
            return None
        schema = self._flatten(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(schema["enum"])
        for union in ("anyOf", "oneOf"):
            if schema.get(union):
                rest = {key: value for key, value in schema.items() if key != union}
                chosen = self._choose_variant(schema[union], depth)
                return self.make(_merged(rest, self._flatten(chosen)), depth)
        return self._make_typed(schema, self._type_of(schema, depth), depth)

    def _make_typed(self, schema: Mapping[str, Any], kind: str, depth: int) -> Any:
        if kind == "object":
            return self._make_object(schema, depth)
        if kind == "array":
            return self._make_array(schema, depth)
        if kind == "string":
            return _make_string(schema, self._rng)
        if kind == "integer":
            return _make_integer(schema, self._rng)
        if kind == "number":
            return _make_number(schema, self._rng)
        if kind == "boolean":
            return self._rng.random() < 0.5
        return None

    def _flatten(self, schema: Any) -> dict[str, Any]:
        """`$ref` and `allOf` merged into the schema itself."""
        flat = dict(schema) if isinstance(schema, Mapping) else {}
        for _ in range(_TOO_DEEP):
            if "$ref" not in flat and "allOf" not in flat:
                break
            parts: list[Any] = list(flat.pop("allOf", ()))
            if "$ref" in flat:
                parts.append(resolve_ref(self._root, flat.pop("$ref")))
            for part in parts:
                if isinstance(part, Mapping):
                    flat = _merged(flat, dict(part))
        return flat

    def _choose_variant(self, variants: list[Any], depth: int) -> Any:
        if depth >= _DEEP:
            for variant in variants:
                kind = self._flatten(variant).get("type")
                if kind not in ("object", "array", None):
                    return variant
        return self._rng.choice(variants)

    def _type_of(self, schema: Mapping[str, Any], depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            plain = [name for name in kind if name not in ("object", "array")]
            return str(self._rng.choice(plain if depth >= _DEEP and plain else kind))
        if kind is not None:
            return str(kind)
        return "object" if "properties" in schema else "string"

    def _make_object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = set(schema.get("required") or ())
        value = {}
        for name, part in (schema.get("properties") or {}).items():
            wanted = self._rng.random() < 0.75 and depth < _DEEP
            if name in required or wanted:
                value[name] = self.make(part, depth + 1)
        for name in required - value.keys():
            value[name] = self._rng.choice(WORDS)
        return value

    def _make_array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 3)))
        wanted = least if depth >= _DEEP else self._rng.randint(max(least, min(1, most)), most)
        items = schema.get("items", {"type": "string"})
        values: list[Any] = []
        # A closed set of values may hold fewer different ones than wanted: stop trying then.
        for _ in range(wanted * 8):
            if len(values) >= wanted:
                break
            value = self.make(items, depth + 1)
            if not (schema.get("uniqueItems") and value in values):
                values.append(value)
        return values


def _merged(left: dict[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**left, **right}
    if "properties" in left and "properties" in right:
        merged["properties"] = {**left["properties"], **right["properties"]}
    if "required" in left and "required" in right:
        merged["required"] = [*left["required"], *right["required"]]
    return merged


def _make_string(schema: Mapping[str, Any], rng: Random) -> str:
    if "format" in schema and schema["format"] in _FORMATS:
        return _FORMATS[schema["format"]](rng)
    if "pattern" in schema:
        return text_matching(schema["pattern"], rng)
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    text = " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))
    while len(text) < least:
        text += " " + rng.choice(WORDS)
    return text if most is None else text[: int(most)]


def _make_integer(schema: Mapping[str, Any], rng: Random) -> int:
    low, high = _bounds(schema, 1)
    step = int(schema.get("multipleOf", 1)) or 1
    first, last = math.ceil(low / step), math.floor(high / step)
    return rng.randint(first, max(first, last)) * step


def _make_number(schema: Mapping[str, Any], rng: Random) -> float:
    if "multipleOf" in schema:
        step = float(schema["multipleOf"])
        low, high = _bounds(schema, step)
        first, last = math.ceil(low / step), math.floor(high / step)
        return rng.randint(first, max(first, last)) * step
    low, high = _bounds(schema, 1e-6)
    return min(high, max(low, round(rng.uniform(low, high), 3)))


def _bounds(schema: Mapping[str, Any], nudge: float) -> tuple[float, float]:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if above is not None and (low is None or above >= low):
        low = above + nudge
    if below is not None and (high is None or below <= high):
        high = below - nudge
    if low is None:
        low = 0 if high is None or high >= 0 else high - 100
    return low, max(low, low + 100 if high is None else high)


def _uuid(rng: Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    # Version 4, variant 1: validators look at both.
    parts = digits[:8], digits[8:12], "4" + digits[13:16], "8" + digits[17:20], digits[20:]
    return "-".join(parts)


def _date(rng: Random) -> str:
    return f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _time(rng: Random) -> str:
    return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}Z"


_FORMATS = {
    "date-time": lambda rng: f"{_date(rng)}T{_time(rng)}",
    "date": _date,
    "time": _time,
    "duration": lambda rng: f"P{rng.randint(1, 30)}DT{rng.randint(0, 23)}H",
    "email": lambda rng: f"{rng.choice(WORDS)}@{rng.choice(WORDS)}.example",
    "hostname": lambda rng: f"{rng.choice(WORDS)}.example",
    "uri": lambda rng: f"https://{rng.choice(WORDS)}.example/{rng.choice(WORDS)}",
    "ipv4": lambda rng: f"192.0.2.{rng.randint(1, 254)}",
    "ipv6": lambda rng: f"2001:db8::{rng.randint(1, 0xFFFF):x}",
    "uuid": _uuid,
}
