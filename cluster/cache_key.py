"""Pure: which calls the response cache may answer, and what two calls must share to be equal.

The key is a hash over everything that changes an answer: the models that may serve the name that
was asked for, and the request's parameters, in any order of their keys. What only says who asks,
how urgently or at what price is no part of it: `metadata`, `service_tier`, marks for the model's
own cache, and all of `Routing` but the endpoint and the log-probability.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import Params, Routing

#: `model` is in the key as what it stands for in this fleet.
_NO_PART: Final = frozenset({"model", "metadata", "service_tier", "cache_control", "stream"})
_MARK: Final = "cache_control"
_OWN_TOOL_TYPES: Final = (None, "custom")
#: What of a local model decides its answers.
_OF_MODEL: Final = {
    "path", "dtype", "context_tokens", "max_output_tokens", "tool_parser", "engine_args",
}  # fmt: skip


def may_be_cached(params: Params, routing: Routing) -> bool:
    """Whether the response cache may answer a call: its caller says so, or its answer is certain.

    Certain is temperature 0, where nothing but the model has a say: no server tool, no MCP server.
    """
    if routing.cache is not None:
        return routing.cache
    # A temperature that is left out is 1.
    return params.get("temperature", 1) == 0 and not (
        params.get("mcp_servers")
        or params.get("container")
        or any(tool.get("type") not in _OWN_TOOL_TYPES for tool in params.get("tools") or ())
    )


def served_by(models: frozenset[str], config: FleetConfig) -> str:
    """What may serve a name in this fleet: another one when fleet.yaml puts another model there.

    Args:
        models: the models behind the name.
        config: fleet.yaml.
    """
    facts: list[Any] = []
    for name in sorted(models):
        if (local := config.models.get(name)) is not None:
            facts.append([name, local.model_dump(mode="json", include=_OF_MODEL)])
        else:
            facts.append([name, config.accounts[config.hosted[name].account].base_url])
    return _hash(facts)


def key_of(params: Params, served: str, routing: Routing) -> str:
    """The name of a call's answer: 64 hex digits.

    Args:
        params: the request, JSON-able.
        served: `served_by` of the model or tier that was asked for.
        routing: what its caller added.
    """
    request = {name: value for name, value in params.items() if name not in _NO_PART}
    for part in ("tools", "system"):
        if isinstance(request.get(part), list | tuple):
            request[part] = [_unmarked(block) for block in request[part]]
    request["messages"] = [
        {**message, "content": _unmarked_content(message.get("content"))}
        for message in request.get("messages") or ()
    ]
    return _hash([served, routing.endpoint, routing.mean_logprob, _plain(request)])


def _unmarked(block: Any) -> Any:
    """A block without marks, its inner blocks too; what a tool was given is left alone."""
    if not isinstance(block, Mapping):
        return block
    plain = {name: value for name, value in block.items() if name != _MARK}
    if "content" in plain:
        plain["content"] = _unmarked_content(plain["content"])
    if isinstance(source := plain.get("source"), Mapping) and "content" in source:
        plain["source"] = {**source, "content": _unmarked_content(source["content"])}
    return plain


def _unmarked_content(content: Any) -> Any:
    return [_unmarked(each) for each in content] if isinstance(content, list | tuple) else content


def _plain(value: Any) -> Any:
    """Numbers that are equal written alike: 0 and 0.0 are one temperature."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
