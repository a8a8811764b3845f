"""What vLLM's Messages handler would drop in silence or trip over, settled before it sees it.

Pure: no vllm. Everything here works on the Messages API's own JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentcloud.cluster.contracts import Params
from agentcloud.cluster.errors import InvalidRequest

#: Blocks that a text model on vLLM understands.
_BLOCKS = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"})
#: Tool choices after which there must be a call.
_FORCED = frozenset({"any", "tool"})
_TOOL_RESULT_BLOCKS = frozenset({"text"})


def check_request(params: Params, *, images: bool) -> None:
    """Refuse what the engine cannot serve, by name.

    Args:
        params: the request.
        images: whether the model reads images.

    Raises:
        InvalidRequest: the request holds a block or a tool that local models do not serve.
    """
    allowed = _BLOCKS | {"image"} if images else _BLOCKS
    within = _TOOL_RESULT_BLOCKS | {"image"} if images else _TOOL_RESULT_BLOCKS
    for index, message in enumerate(_mappings(params.get("messages"))):
        where = f"messages.{index}.content"
        for block in _mappings(message.get("content")):
            _check_block(block, allowed, where)
            if block.get("type") == "tool_result":
                for part in _mappings(block.get("content")):
                    _check_block(part, within, f"{where}: tool_result")
    for block in _mappings(params.get("system")):
        _check_block(block, frozenset({"text"}), "system")
    for tool in _mappings(params.get("tools")):
        if (kind := tool.get("type", "custom")) != "custom":
            raise InvalidRequest(
                f"tools: {kind!r} runs on a hosted model's servers; local models take only "
                "tools with an input_schema of your own"
            )


def hold_forced_calls(params: Params) -> dict[str, Any]:
    """The request with a forced tool call held to its tool's schema.

    For a tool that is not `strict` vLLM's grammar covers the wrapper of a forced call only, so that
    a weak model may put any JSON in its input, even a bare string. A tool that says
    `strict: false` stays as it is.
    """
    fields = dict(params)
    if (params.get("tool_choice") or {}).get("type") in _FORCED:
        fields["tools"] = [{"strict": True, **tool} for tool in _mappings(params.get("tools"))]
    return fields


def _check_block(block: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    if (kind := block.get("type")) not in allowed:
        raise InvalidRequest(
            f"{where}: {kind!r} blocks are not served by local models "
            f"(served: {', '.join(sorted(allowed))})"
        )


def _mappings(value: object) -> Iterable[Mapping[str, Any]]:
    """The mappings of a list; nothing for text or for what the handler will refuse itself."""
    if isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Mapping))
