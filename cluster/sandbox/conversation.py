"""Checks of a conversation: roles, content blocks, tools answered, thinking issued here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentcloud.cluster.sandbox.errors import invalid
from agentcloud.cluster.sandbox.settings import ModelSpec
from agentcloud.cluster.sandbox.signatures import Signer

_ROLES = ("user", "assistant", "system")
_USER_BLOCKS = frozenset(
    {"text", "image", "document", "search_result", "tool_result", "container_upload"}
)
_ASSISTANT_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
#: Blocks of tools that run at the server: they are passed through unread.
_SERVER_BLOCK_ENDINGS = ("server_tool_use", "_tool_result")
_UNCACHEABLE = ("thinking", "redacted_thinking")


def check_messages(params: Mapping[str, Any], model: str, spec: ModelSpec, signer: Signer) -> None:
    """Refuse a conversation that the API refuses.

    Raises:
        ApiError: the first thing that is wrong, by its path in the request.
    """
    messages = params.get("messages")
    if messages is None:
        raise invalid("messages", "Field required")
    if not isinstance(messages, list):
        raise invalid("messages", "Input should be a valid list")
    if not messages:
        raise invalid("messages", "at least one message is required")
    for index, message in enumerate(messages):
        _check_message(message, index, signer)
    if messages[0]["role"] != "user":
        raise invalid("messages", 'first message must use the "user" role')
    if messages[-1]["role"] == "assistant" and not spec.prefill:
        raise invalid(
            "messages",
            f"{model} does not support assistant message prefill. "
            "The conversation must end with a user message.",
        )
    _check_tool_pairs(messages)


def check_content(content: Any, role: str, where: str, signer: Signer) -> None:
    """Refuse bad content of a message, of a tool result or of the system prompt."""
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid(where, "Input should be a valid string or a list of blocks")
    for index, block in enumerate(content):
        path = f"{where}.{index}"
        if not isinstance(block, Mapping):
            raise invalid(path, "Input should be a valid dictionary")
        _check_block(block, role, path, signer)


def check_mark(mark: Any, where: str) -> None:
    """Refuse a bad `cache_control`."""
    if mark is None:
        return
    if not isinstance(mark, Mapping) or mark.get("type") != "ephemeral":
        raise invalid(f"{where}.type", "Input should be 'ephemeral'")
    if mark.get("ttl", "5m") not in ("5m", "1h"):
        raise invalid(f"{where}.ttl", "Input should be '5m' or '1h'")


def _check_message(message: Any, index: int, signer: Signer) -> None:
    where = f"messages.{index}"
    if not isinstance(message, Mapping):
        raise invalid(where, "Input should be a valid dictionary")
    role = message.get("role")
    if role not in _ROLES:
        problem = "Field required" if role is None else "Input should be 'user' or 'assistant'"
        raise invalid(f"{where}.role", problem)
    if "content" not in message:
        raise invalid(f"{where}.content", "Field required")
    for field in message:
        if field not in ("role", "content"):
            raise invalid(f"{where}.{field}", "Extra inputs are not permitted")
    content = message["content"]
    if content in ("", []):
        raise invalid(where, f"{role} messages must have non-empty content")
    check_content(content, role, f"{where}.content", signer)


def _check_block(block: Mapping[str, Any], role: str, where: str, signer: Signer) -> None:
    kind = block.get("type")
    _check_kind(kind, role, where)
    mark = block.get("cache_control")
    if mark is not None:
        check_mark(mark, f"{where}.cache_control")
        if kind in _UNCACHEABLE:
            raise invalid(f"{where}.cache_control", "Extra inputs are not permitted")
    if kind == "text":
        _require(block, "text", str, where)
        if not block["text"]:
            raise invalid(where, "text content blocks must be non-empty")
    elif kind in ("image", "document"):
        _require(block, "source", Mapping, where)
    elif kind == "tool_use":
        _require(block, "id", str, where)
        _require(block, "name", str, where)
        _require(block, "input", Mapping, where)
    elif kind == "tool_result":
        _require(block, "tool_use_id", str, where)
        if block.get("content") is not None:
            check_content(block["content"], "tool_result", f"{where}.content", signer)
    elif kind == "thinking":
        _require(block, "thinking", str, where)
        _require(block, "signature", str, where)
        if not signer.is_own(block["thinking"], block["signature"]):
            raise invalid(where, "Invalid `signature` in `thinking` block")
    elif kind == "redacted_thinking":
        _require(block, "data", str, where)
        if not signer.is_own("", block["data"]):
            raise invalid(where, "Invalid `data` in `redacted_thinking` block")


def _check_kind(kind: Any, role: str, where: str) -> None:
    if not isinstance(kind, str):
        raise invalid(f"{where}.type", "Field required")
    if role == "system" and kind != "text":
        raise invalid(f"{where}.type", "Input should be 'text'")
    if kind.endswith(_SERVER_BLOCK_ENDINGS) and kind != "tool_result":
        return
    allowed = _ASSISTANT_BLOCKS if role == "assistant" else _USER_BLOCKS
    if kind in allowed or (
        role in ("system", "tool_result") and kind in ("text", "tool_reference")
    ):
        return
    if kind in _ASSISTANT_BLOCKS | _USER_BLOCKS:
        raise invalid(where, f"`{kind}` blocks are not allowed in `{role}` messages")
    raise invalid(f"{where}.type", f"Input tag '{kind}' is not one of the expected tags")


def _require(block: Mapping[str, Any], field: str, kind: type, where: str) -> None:
    if field not in block:
        raise invalid(f"{where}.{field}", "Field required")
    if not isinstance(block[field], kind):
        wanted = "a valid string" if kind is str else "a valid dictionary"
        raise invalid(f"{where}.{field}", f"Input should be {wanted}")


def _check_tool_pairs(messages: list[Mapping[str, Any]]) -> None:
    """Every `tool_use` is answered in the next turn, and nothing else is.

    Messages of one role in a row are one turn, as the API joins them.
    """
    asked: list[str] = []
    seen: set[str] = set()
    asked_in = 0
    turn = ""
    for index, message in enumerate(messages):
        content, role = message["content"], message["role"]
        blocks = content if isinstance(content, list) else []
        if role == "assistant" and turn != "assistant":
            # The user's turn is over: whatever it left unanswered stays so.
            _check_answered(asked, asked_in)
            asked = []
        for block in blocks:
            kind = block.get("type")
            if kind == "tool_use":
                if block["id"] in seen:
                    raise invalid(f"messages.{index}", "`tool_use` ids must be unique")
                seen.add(block["id"])
                asked.append(block["id"])
                asked_in = index
            elif kind == "tool_result":
                if block["tool_use_id"] not in asked:
                    raise invalid(
                        f"messages.{index}.content",
                        "unexpected `tool_use_id` found in `tool_result` blocks: "
                        f"{block['tool_use_id']}. Each `tool_result` block must have a "
                        "corresponding `tool_use` block in the previous message.",
                    )
                asked.remove(block["tool_use_id"])
        turn = turn if role == "system" else role
    _check_answered(asked, asked_in)


def _check_answered(asked: list[str], index: int) -> None:
    if asked:
        raise invalid(
            f"messages.{index}",
            "`tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(asked)}. Each `tool_use` block must have a corresponding `tool_result` "
            "block in the next message.",
        )
