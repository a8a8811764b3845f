"""What an MCP tool returned -> content of a tool result. Pure, over the protocol's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentcloud.agents.tool_base import ToolContent

#: What the Messages API takes as an image.
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_NOTHING = "(the tool returned nothing)"


def to_content(blocks: Sequence[Mapping[str, Any]], structured: Any = None) -> ToolContent:
    """Text as text, images and PDFs as blocks, and a line about what no model can be shown.

    Args:
        blocks: `content` of the result.
        structured: `structuredContent` of the result; told as JSON where the server did not tell
            it as text itself, as the protocol asks of it.
    """
    converted = [block for block in map(_convert, blocks) if block.get("text") != ""]
    if structured is not None and not any(block["type"] == "text" for block in converted):
        converted.append(_text(json.dumps(structured, ensure_ascii=False)))
    if all(block["type"] == "text" for block in converted):
        return "\n".join(texts_of(converted)) or _NOTHING
    return converted


def texts_of(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of content blocks."""
    return [block["text"] for block in blocks if block["type"] == "text"]


def _convert(block: Mapping[str, Any]) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return _text(block["text"])
    if kind == "image":
        return _file(block["mimeType"], block["data"], "an image")
    if kind == "resource":
        resource = block["resource"]
        if "text" in resource:
            return _text(f"{resource['uri']}:\n{resource['text']}")
        return _file(resource.get("mimeType", ""), resource["blob"], resource["uri"])
    if kind == "resource_link":
        return _text(" ".join([block["uri"], block.get("description", "")]).strip())
    return _text(f"({kind} of type {block.get('mimeType', 'unknown')}, which cannot be shown)")


def _file(media_type: str, data: str, what: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": data}
    if media_type in _IMAGES:
        return {"type": "image", "source": source}
    if media_type == "application/pdf":
        return {"type": "document", "source": source}
    return _text(f"({what} of type {media_type or 'unknown'}, which cannot be shown)")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
