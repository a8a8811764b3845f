"""Refusing what the real API refuses, naming the field. Messages are checked in conversation.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agentcloud.cluster.sandbox.conversation import check_content, check_mark, check_messages
from agentcloud.cluster.sandbox.errors import invalid
from agentcloud.cluster.sandbox.prompt import MAX_MARKS, PromptBlock
from agentcloud.cluster.sandbox.schemas import check_is_schema, check_schema
from agentcloud.cluster.sandbox.settings import ModelSpec
from agentcloud.cluster.sandbox.signatures import Signer

_KNOWN_FIELDS = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "cache_control",
        "container",
        "context_management",
        "diagnostics",
        "inference_geo",
        "mcp_servers",
        "metadata",
        "output_config",
        "service_tier",
        "speed",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_k",
        "top_p",
        "user_profile_id",
        "workspace_id",
    ]
)
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_MIN_THINKING_TOKENS = 1024


def check_request(
    params: Mapping[str, Any], model: str, spec: ModelSpec, signer: Signer, *, counting: bool
) -> None:
    """Refuse an invalid request of `/v1/messages`, or of count_tokens if `counting`.

    Raises:
        ApiError: the first thing that is wrong.
    """
    for field in params:
        if field not in _KNOWN_FIELDS:
            raise invalid(field, "Extra inputs are not permitted")
    check_mark(params.get("cache_control"), "cache_control")
    if not counting:
        _check_max_tokens(params, model, spec)
        _check_sampling(params, spec)
    check_messages(params, model, spec, signer)
    if params.get("system") is not None:
        check_content(params["system"], "system", "system", signer)
    _check_tools(params)
    _check_thinking(params, spec, counting=counting)
    _check_tool_choice(params, spec)
    _check_output_config(params)


def check_prompt(blocks: list[PromptBlock], model: str, spec: ModelSpec) -> None:
    """Refuse a prompt that is too long, or marked for caching in a way that the API refuses."""
    total = sum(block.tokens for block in blocks)
    if total > spec.context_tokens:
        raise invalid(
            "messages", f"prompt is too long: {total} tokens > {spec.context_tokens} maximum"
        )
    marked = [block for block in blocks if block.ttl is not None]
    if len(marked) > MAX_MARKS:
        raise invalid(
            "cache_control",
            f"A maximum of {MAX_MARKS} blocks with cache_control may be provided. "
            f"Found {len(marked)}.",
        )
    short = False
    for block in marked:
        short = short or block.ttl == "5m"
        if short and block.ttl == "1h":
            raise invalid(
                f"{block.where}.cache_control.ttl",
                "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block",
            )


def _check_max_tokens(params: Mapping[str, Any], model: str, spec: ModelSpec) -> None:
    value = params.get("max_tokens")
    if value is None:
        raise invalid("max_tokens", "Field required")
    if not _is_int(value):
        raise invalid("max_tokens", "Input should be a valid integer")
    if value < 0:
        raise invalid("max_tokens", "Input should be greater than or equal to 0")
    if value > spec.max_output_tokens:
        raise invalid(
            "max_tokens",
            f"{value} > {spec.max_output_tokens}, which is the maximum allowed number of output "
            f"tokens for {model}",
        )


def _check_sampling(params: Mapping[str, Any], spec: ModelSpec) -> None:
    for field in ("temperature", "top_p", "top_k"):
        if params.get(field) is not None and not spec.sampling:
            raise invalid(field, "is not supported for this model")
    for field in ("temperature", "top_p"):
        value = params.get(field)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(field, "Input should be a valid number")
        if not 0 <= value <= 1:
            raise invalid(field, "range: 0..1")
    if params.get("top_k") is not None and not _is_int(params["top_k"]):
        raise invalid("top_k", "Input should be a valid integer")
    stops = params.get("stop_sequences")
    if stops is not None:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise invalid("stop_sequences", "Input should be a list of strings")
        if any(not stop.strip() for stop in stops):
            raise invalid("stop_sequences", "each stop sequence must contain non-whitespace")
    if not isinstance(params.get("stream", False), bool):
        raise invalid("stream", "Input should be a valid boolean")
    if not isinstance(params.get("metadata") or {}, Mapping):
        raise invalid("metadata", "Input should be a valid dictionary")


def _check_tools(params: Mapping[str, Any]) -> None:
    tools = params.get("tools")
    if tools is None:
        return
    if not isinstance(tools, list):
        raise invalid("tools", "Input should be a valid list")
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools.{index}"
        if not isinstance(tool, Mapping):
            raise invalid(where, "Input should be a valid dictionary")
        name = tool.get("name")
        custom = tool.get("type") in (None, "custom")
        if name is None and custom:
            raise invalid(f"{where}.name", "Field required")
        if name is not None and not (isinstance(name, str) and _TOOL_NAME.fullmatch(name)):
            raise invalid(f"{where}.name", "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
        if name in names:
            raise invalid("tools", f"Tool names must be unique: {name}")
        names.add(str(name))
        check_mark(tool.get("cache_control"), f"{where}.cache_control")
        if custom:
            _check_input_schema(tool, f"{where}.input_schema")


def _check_input_schema(tool: Mapping[str, Any], where: str) -> None:
    schema = tool.get("input_schema")
    if schema is None:
        raise invalid(where, "Field required")
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        raise invalid(f"{where}.type", "Input should be 'object'")
    check_is_schema(schema, where)
    if tool.get("strict"):
        check_schema(schema, where)


def _check_thinking(params: Mapping[str, Any], spec: ModelSpec, *, counting: bool) -> None:
    thinking = params.get("thinking")
    if thinking is None:
        return
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    if kind not in ("enabled", "adaptive", "between_tools", "disabled"):
        raise invalid(
            "thinking.type",
            "Input should be 'enabled', 'adaptive', 'between_tools' or 'disabled'",
        )
    if kind not in spec.thinking:
        raise invalid("thinking.type", f'"thinking.type.{kind}" is not supported for this model.')
    if kind != "enabled":
        return
    budget = thinking.get("budget_tokens")
    where = "thinking.enabled.budget_tokens"
    if not _is_int(budget):
        raise invalid(where, "Field required" if budget is None else "Input should be an integer")
    if budget < _MIN_THINKING_TOKENS:
        raise invalid(where, f"Input should be greater than or equal to {_MIN_THINKING_TOKENS}")
    if not counting and budget >= params["max_tokens"]:
        raise invalid("max_tokens", "must be greater than thinking.budget_tokens")


def _check_tool_choice(params: Mapping[str, Any], spec: ModelSpec) -> None:
    choice = params.get("tool_choice")
    if choice is None:
        return
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind not in ("auto", "any", "tool", "none"):
        raise invalid("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")
    names = [tool.get("name") for tool in params.get("tools") or ()]
    if not names:
        raise invalid("tool_choice", "tool_choice may only be specified while providing tools")
    if kind == "tool" and choice.get("name") not in names:
        raise invalid(
            "tool_choice.name", f"Tool '{choice.get('name')}' not found in provided tools"
        )
    if kind not in ("any", "tool"):
        return
    if not spec.forced_tools:
        raise invalid(
            "tool_choice",
            f"tool_choice '{kind}' (forced tool use) is not supported for this model; use 'auto'",
        )
    if thinks(params):
        raise invalid("thinking", "Thinking may not be enabled when tool_choice forces tool use.")


def _check_output_config(params: Mapping[str, Any]) -> None:
    config = params.get("output_config")
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise invalid("output_config", "Input should be a valid dictionary")
    for key in config:
        if key not in ("effort", "format", "task_budget"):
            raise invalid(f"output_config.{key}", "Extra inputs are not permitted")
    effort = config.get("effort")
    if effort is not None and effort not in _EFFORTS:
        raise invalid("output_config.effort", f"Input should be one of {', '.join(_EFFORTS)}")
    form = config.get("format")
    if form is None:
        return
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise invalid("output_config.format.type", "Input should be 'json_schema'")
    if form.get("schema") is None:
        raise invalid("output_config.format.schema", "Field required")
    check_schema(form["schema"], "output_config.format.schema")


def thinks(params: Mapping[str, Any]) -> bool:
    """Whether the request asks for thinking."""
    kind = (params.get("thinking") or {}).get("type")
    return kind in ("enabled", "adaptive", "between_tools")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
