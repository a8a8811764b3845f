"""Texts that match a regular expression, for schemas with a `pattern`."""

from __future__ import annotations

import re
import sys
from random import Random

# The parser's module was renamed in 3.11; its tree is what `re` itself compiles from.
from re import _constants as tokens  # type: ignore[attr-defined]  # no stub for private modules
from re import _parser as parser  # type: ignore[attr-defined]  # no stub for private modules
from typing import Any

_PRINTABLE = [chr(code) for code in range(32, 127)]
_CLASSES = {
    tokens.CATEGORY_DIGIT: "0123456789",
    tokens.CATEGORY_NOT_DIGIT: "abcxyz ",
    tokens.CATEGORY_SPACE: " ",
    tokens.CATEGORY_NOT_SPACE: "abcxyz0189",
    tokens.CATEGORY_WORD: "abcxyz0189_",
    tokens.CATEGORY_NOT_WORD: " -.",
}
_REPEATS_MOST = 4


def text_matching(pattern: str, rng: Random) -> str:
    """A text in which `pattern` matches; look-arounds and back-references are ignored."""
    try:
        tree = parser.parse(pattern)
    except re.error:
        return ""
    return _walk(tree, rng)


def _walk(tree: Any, rng: Random) -> str:
    return "".join(_one(operation, argument, rng) for operation, argument in tree)


def _one(operation: Any, argument: Any, rng: Random) -> str:
    if operation is tokens.LITERAL:
        return chr(argument)
    if operation is tokens.NOT_LITERAL:
        return rng.choice([char for char in _PRINTABLE if ord(char) != argument])
    if operation is tokens.ANY:
        return rng.choice(_PRINTABLE)
    if operation is tokens.IN:
        return rng.choice(_members(argument))
    if operation is tokens.BRANCH:
        return _walk(rng.choice(argument[1]), rng)
    if operation is tokens.SUBPATTERN:
        return _walk(argument[-1], rng)
    if operation in (tokens.MAX_REPEAT, tokens.MIN_REPEAT):
        least, most, part = argument
        times = rng.randint(least, min(int(most), least + _REPEATS_MOST))
        return "".join(_walk(part, rng) for _ in range(times))
    return ""


def _members(parts: Any) -> list[str]:
    negated = False
    members: set[str] = set()
    for operation, argument in parts:
        if operation is tokens.NEGATE:
            negated = True
        elif operation is tokens.LITERAL:
            members.add(chr(argument))
        elif operation is tokens.RANGE:
            low, high = argument
            members.update(map(chr, range(low, min(high, low + 255, sys.maxunicode) + 1)))
        elif operation is tokens.CATEGORY:
            members.update(_CLASSES[argument])
    if negated:
        return [char for char in _PRINTABLE if char not in members] or ["\u00e9"]
    return sorted(members)
