"""The client's keyword arguments -> a Messages request as plain JSON data, and routing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import httpx2
from anthropic import NotGiven, Omit
from anthropic.types.message_create_params import (
    MessageCreateParamsBase,
    MessageCreateParamsStreaming,
)
from pydantic import BaseModel

from agentcloud.cluster.contracts import Routing

_ABSENT: Final = (NotGiven, Omit)
_PLAIN: Final = (str, int, float, bool, type(None))
#: Arguments of the bare client that are not part of the request's body.
_OUTSIDE: Final = ("extra_headers", "extra_query", "user_profile_id", "workspace_id")
#: The API's own parameters, as the installed client knows them, and those that it knew before.
KNOWN: Final = (
    frozenset(MessageCreateParamsStreaming.__annotations__)
    | frozenset(MessageCreateParamsBase.__annotations__)
    | {"temperature", "top_p", "top_k"}
)


def request_of(
    arguments: Mapping[str, Any], routing: Routing, default_timeout_s: float | None
) -> tuple[dict[str, Any], Routing]:
    """Split a call's arguments into the request and its routing.

    `timeout` limits one send, as it does in the bare client. `extra_body` is merged in.

    Raises:
        TypeError: an argument that agentcloud cannot pass to every endpoint.
    """
    arguments = {key: value for key, value in arguments.items() if not isinstance(value, _ABSENT)}
    for name in _OUTSIDE:
        if arguments.pop(name, None):
            raise TypeError(
                f"{name} cannot be used: the call may be served by any endpoint; give it to the "
                f"account in fleet.yaml or use the bare anthropic client for this call"
            )
    timeout_s = seconds(arguments.pop("timeout", None), default_timeout_s)
    if timeout_s is not None and routing.timeout_s is None:
        routing = replace(routing, timeout_s=timeout_s)
    extra = arguments.pop("extra_body", None) or {}
    if unknown := arguments.keys() - KNOWN:
        raise TypeError(
            f"unexpected arguments: {', '.join(sorted(unknown))}; new parameters of the API go "
            f"into extra_body"
        )
    return {**{key: plain(value) for key, value in arguments.items()}, **plain(extra)}, routing


def plain(value: Any) -> Any:
    """A value as JSON data: models dumped, iterables listed, files read, absent keys left out.

    Raises:
        TypeError: it cannot be sent.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items() if not isinstance(item, _ABSENT)}
    if isinstance(value, BaseModel):
        hidden = getattr(value, "__api_exclude__", None)
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=hidden)
    if isinstance(value, Path):
        return base64.b64encode(value.read_bytes()).decode()
    if callable(read := getattr(value, "read", None)):
        return base64.b64encode(read()).decode()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be part of a request; it must be JSON data")


def seconds(timeout: Any, default_s: float | None) -> float | None:
    """The bare client's `timeout` argument in seconds; `default_s` where there is none."""
    if timeout is None or isinstance(timeout, _ABSENT):
        return default_s
    if isinstance(timeout, httpx2.Timeout):
        return timeout.read
    return float(timeout)
