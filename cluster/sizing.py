"""Pure: what a request needs and how large it is, told without a tokenizer.

The scheduler is told sizes before a send and the truth after it. The estimate is cheap and meant
to be above: three bytes of text a token, where English takes four and most scripts at least three.
It is no guarantee (dense numbers, rare scripts and small vocabularies take fewer bytes a token):
limits are corrected from the response's headers, money from its usage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from agentcloud.cluster.contracts import Feature, Params

_BYTES_PER_TOKEN: Final = 3
#: The API scales an image down to about this many tokens.
IMAGE_TOKENS: Final = 1600
#: Base64 characters of a document to one token: a page is about 2,000 tokens and 50 kB.
_DOCUMENT_CHARS_PER_TOKEN: Final = 25
#: Roles, separators and the hidden tool prompt.
_MESSAGE_TOKENS: Final = 6
_TOOLS_TOKENS: Final = 400
#: Values that every model takes.
_USUAL_SAMPLING: Final = {"temperature": (None, 1), "top_p": (None, 1), "top_k": (None,)}
_OWN_TOOL_TYPES: Final = (None, "custom")


def needs_of(params: Params) -> frozenset[Feature]:
    """What an endpoint must be able to do to serve the request."""
    needs: set[Feature] = set()
    messages = params.get("messages") or ()
    for message in messages:
        content = message.get("content")
        if not isinstance(content, str):
            _block_needs(content or (), needs)
    if tools := params.get("tools"):
        needs.add(Feature.TOOLS)
        for tool in tools:
            if tool.get("type") not in _OWN_TOOL_TYPES:
                needs.add(Feature.SERVER_TOOLS)
            if tool.get("strict"):
                needs.add(Feature.STRICT_TOOLS)
        if (params.get("tool_choice") or {}).get("type") in ("any", "tool"):
            needs.add(Feature.FORCED_TOOLS)
    needs |= _thinking_needs(params.get("thinking") or {})
    if any(params.get(name) not in usual for name, usual in _USUAL_SAMPLING.items()):
        needs.add(Feature.SAMPLING)
    if messages and messages[-1].get("role") == "assistant":
        needs.add(Feature.PREFILL)
    if ((params.get("output_config") or {}).get("format") or {}).get("type") == "json_schema":
        needs.add(Feature.JSON_SCHEMA)
    return frozenset(needs)


def estimated_input_tokens(params: Params) -> int:
    """Tokens of the prompt, estimated from above: system, messages, tools, output schema."""
    tokens = _weigh(params.get("system"))
    for message in params.get("messages") or ():
        tokens += _MESSAGE_TOKENS + _weigh(message.get("content"))
    if tools := params.get("tools"):
        tokens += _TOOLS_TOKENS + _weigh(tools)
    if config := params.get("output_config"):
        tokens += _weigh(config)
    return tokens


def text_tokens(text: str) -> int:
    """Tokens of a text, estimated from above."""
    return _weigh(text)


def _thinking_needs(thinking: Mapping[str, Any]) -> set[Feature]:
    kind = thinking.get("type")
    if kind == "enabled":
        return {Feature.THINKING, Feature.THINKING_BUDGET}
    if kind == "adaptive":
        return {Feature.THINKING}
    return {Feature.THINKING_DISABLED} if kind == "disabled" else set()


def _block_needs(blocks: Iterable[Mapping[str, Any]], needs: set[Feature]) -> None:
    for block in blocks:
        kind = block.get("type")
        if kind == "image":
            needs.add(Feature.IMAGES)
        elif kind == "document":
            needs.add(Feature.DOCUMENTS)
        elif kind == "tool_result" and not isinstance(block.get("content"), str):
            _block_needs(block.get("content") or (), needs)


def document_tokens(source: Any) -> int:
    """Tokens of a document's source."""
    if isinstance(source, Mapping) and source.get("type") == "base64":
        return -(-len(source.get("data") or "") // _DOCUMENT_CHARS_PER_TOKEN)
    return _weigh(source)


def _weigh(value: Any) -> int:
    if isinstance(value, str):
        size = len(value) if value.isascii() else len(value.encode())
        return -(-size // _BYTES_PER_TOKEN)
    if isinstance(value, Mapping):
        kind = value.get("type")
        if kind == "image":
            return IMAGE_TOKENS
        source = value.get("source") if kind == "document" else None
        if isinstance(source, Mapping) and source.get("type") == "base64":
            return document_tokens(source)
        return sum(1 + _weigh(key) + _weigh(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_weigh(item) for item in value)
    return 0 if value is None else 1
