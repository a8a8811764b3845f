"""GET /v1/models in the API's paged shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentcloud.cluster.sandbox.errors import invalid
from agentcloud.cluster.sandbox.settings import ModelSpec

_MAX_PAGE = 1000
_NO = {"supported": False}
_YES = {"supported": True}


def list_models(models: Mapping[str, ModelSpec], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of models, the newest first.

    Raises:
        ApiError: `limit` is not a number from 1 to 1000, or a cursor names no model.
    """
    names = sorted(models, key=lambda name: (models[name].created_at, name), reverse=True)
    try:
        limit = int(query.get("limit", "20"))
    except ValueError as error:
        raise invalid("limit", "Input should be a valid integer") from error
    if not 1 <= limit <= _MAX_PAGE:
        raise invalid("limit", f"Input should be from 1 to {_MAX_PAGE}")
    if "before_id" in query:
        end = _position(names, query["before_id"], "before_id")
        page = names[max(0, end - limit) : end]
        has_more = end > limit
    else:
        start = 0
        if "after_id" in query:
            start = _position(names, query["after_id"], "after_id") + 1
        page = names[start : start + limit]
        has_more = start + limit < len(names)
    return {
        "data": [model_info(name, models[name]) for name in page],
        "has_more": has_more,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def model_info(name: str, spec: ModelSpec) -> dict[str, Any]:
    """One model as the API describes it."""
    return {
        "type": "model",
        "id": name,
        "display_name": spec.display_name,
        "created_at": spec.created_at,
        "lifecycle": "active",
        "line": spec.line,
        "max_input_tokens": spec.context_tokens,
        "max_tokens": spec.max_output_tokens,
        "capabilities": {
            "batch": _NO,
            "citations": _NO,
            "code_execution": _NO,
            "context_management": _NO,
            "effort": {"supported": True, **dict.fromkeys(("low", "medium", "high", "max"), _YES)},
            "image_input": _YES,
            "pdf_input": _YES,
            "server_tools": {"supported": False, "code_execution": _NO, "web_search": _NO},
            "structured_outputs": _YES,
            "thinking": {
                "supported": spec.thinking != {"disabled"},
                "types": {
                    kind: {"supported": kind in spec.thinking}
                    for kind in ("adaptive", "between_tools", "disabled", "enabled")
                },
            },
        },
    }


def _position(names: list[str], name: str, field: str) -> int:
    if name not in names:
        raise invalid(field, f"no model is called {name}")
    return names.index(name)
