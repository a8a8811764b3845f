"""Counting tokens, the same everywhere: count_tokens, usage, limits, `max_tokens`.

The rule: a token is four characters of text, rounded up for each piece of text. Anything that is
not text (tools, tool input, schemas) counts as its JSON. Images count 1,500, documents of pages
one token for every 8 bytes; a message adds 3. It is no model's tokenizer, but it is deterministic
and additive over blocks, which prompt caching needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

CHARS_PER_TOKEN = 4
MESSAGE_TOKENS = 3
IMAGE_TOKENS = 1500
_DOCUMENT_CHARS_PER_TOKEN = 8


def text_tokens(text: str) -> int:
    """Tokens of a piece of text."""
    return -(-len(text) // CHARS_PER_TOKEN)


def cut_text(text: str, tokens: int) -> str:
    """The first `tokens` tokens of a text."""
    return text[: tokens * CHARS_PER_TOKEN]


def json_tokens(value: Any) -> int:
    """Tokens of anything as JSON."""
    return -(-len(to_json(value)) // CHARS_PER_TOKEN)


def block_tokens(block: Mapping[str, Any]) -> int:
    """Tokens of one content block of a prompt."""
    kind = block.get("type")
    if kind == "text":
        return text_tokens(block["text"])
    if kind == "tool_result":
        content = block.get("content") or ""
        if isinstance(content, str):
            return MESSAGE_TOKENS + text_tokens(content)
        return MESSAGE_TOKENS + sum(block_tokens(part) for part in content)
    if kind == "tool_use":
        return text_tokens(block["name"]) + json_tokens(block["input"])
    if kind == "thinking":
        return text_tokens(block["thinking"])
    if kind == "image":
        return IMAGE_TOKENS
    if kind == "document":
        return _document_tokens(block.get("source") or {})
    return json_tokens({key: value for key, value in block.items() if key != "cache_control"})


def _document_tokens(source: Mapping[str, Any]) -> int:
    if source.get("type") == "text":
        return text_tokens(str(source.get("data", "")))
    if source.get("type") == "base64":
        return max(1, len(str(source.get("data", ""))) // _DOCUMENT_CHARS_PER_TOKEN)
    return json_tokens(source)
