"""The anthropic client's errors -> ours, once, at the edge. Used by hosted.py only.

Classified by the type in the body, not by the status: an error may arrive inside a stream whose
status was 200. Messages never hold request headers, so no key can leak through them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import aiohttp
import anthropic

from agentcloud.cluster.errors import (
    BackendError,
    CallTimeout,
    ConnectionFailed,
    ContextTooLong,
    InvalidRequest,
    Overloaded,
    RateLimited,
    Unusable,
)
from agentcloud.cluster.retry import kind_of_status

#: The API's error type -> our class.
_CLASSES: Final[dict[str, type[BackendError]]] = {
    "invalid_request_error": InvalidRequest,
    "request_too_large": InvalidRequest,
    "authentication_error": Unusable,
    "billing_error": Unusable,
    "permission_error": Unusable,
    "not_found_error": Unusable,
    "rate_limit_error": RateLimited,
    "overloaded_error": Overloaded,
    "api_error": Overloaded,
    "timeout_error": Overloaded,
    "conflict_error": BackendError,
}
#: The status that the API gives a type, for errors that came inside a stream.
_STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_LIMIT_PREFIX: Final = "anthropic-ratelimit-"
_TOO_LONG: Final = ("prompt is too long", "exceed context limit", "exceeds the context")
#: `prompt is too long: 210000 tokens > 200000 maximum`, and
#: `input length and max_tokens exceed context limit: 190000 + 20000 > 200000`.
_HOW_LONG: Final = re.compile(r"(?P<prompt>\d+)(?: tokens| \+ \d+) > (?P<context>\d+)")


def limit_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those of a response's headers that tell of limits, lower case."""
    return {
        name: value
        for name, value in headers.items()
        if name.startswith(_LIMIT_PREFIX) or name == "retry-after"
    }


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asked to wait; None where it did not say it in seconds."""
    try:
        return float(headers["retry-after"])
    except (KeyError, ValueError):
        return None


def translate(error: Exception, endpoint: str, *, timeout_s: float, began: bool) -> BackendError:
    """Our error for one that the anthropic client (or its transport) raised.

    Args:
        error: as raised.
        endpoint: name of the endpoint.
        timeout_s: the send's limit, for the message.
        began: the answer had begun to arrive, so the send may have cost money.
    """
    if isinstance(error, anthropic.APIStatusError):
        return _of_status(error, endpoint, began)
    if isinstance(error, TimeoutError | anthropic.APITimeoutError):
        sent = not _never_sent(error)
        what = f"no answer within {timeout_s:g} s" if sent else "no connection in time"
        return CallTimeout(
            f"{endpoint}: {what}", timeout_s=timeout_s, endpoint=endpoint, maybe_paid=sent
        )
    if isinstance(error, ValueError | KeyError | IndexError | TypeError):
        return Overloaded(
            f"{endpoint}: its answer is not one of the Messages API ({type(error).__name__})",
            endpoint=endpoint,
            kind="api_error",
            status=500,
            maybe_paid=True,
        )
    if _never_sent(error):
        return ConnectionFailed(f"{endpoint}: cannot connect ({_root(error)})", endpoint=endpoint)
    return ConnectionFailed(
        f"{endpoint}: the connection was cut before the answer was whole ({_root(error)})",
        endpoint=endpoint,
        maybe_paid=True,
    )


def _of_status(error: anthropic.APIStatusError, endpoint: str, began: bool) -> BackendError:
    headers = limit_headers(error.response.headers)
    return of_body(error.body, headers, endpoint, status=error.status_code, began=began)


def of_body(
    body: object,
    headers: Mapping[str, str],
    endpoint: str,
    *,
    began: bool,
    status: int | None = None,
) -> BackendError:
    """Our error for an error body of the API, or for an `error` event inside a stream.

    Args:
        body: the JSON as received.
        headers: the response's, those about limits.
        endpoint: name of the endpoint.
        began: the answer had begun to arrive.
        status: HTTP status; None, or below 400, inside a stream.
    """
    kind, said = _body(body)
    if kind not in _STATUSES:
        kind = kind_of_status(status)
    cls = _CLASSES[kind]
    if cls is InvalidRequest and any(mark in said.lower() for mark in _TOO_LONG):
        cls = ContextTooLong
    translated = cls(
        f"{endpoint}: {kind}: {said or 'no message given'}",
        endpoint=endpoint,
        kind=kind,
        status=status if status is not None and status >= 400 else _STATUSES[kind],
        maybe_paid=began,
        headers=headers,
    )
    translated.retry_after_s = retry_after_s(headers)
    if isinstance(translated, ContextTooLong) and (found := _HOW_LONG.search(said)):
        # By these a conversation is cut to what fits, not to half.
        translated.prompt_tokens = int(found["prompt"])
        translated.context_tokens = int(found["context"])
    return translated


def _body(body: object) -> tuple[str, str]:
    """Type and message of an error body, `""` where it has none."""
    inner = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(inner, Mapping):
        return "", _line(body[:200]) if isinstance(body, str) else ""
    return str(inner.get("type") or ""), _line(str(inner.get("message") or ""))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def _never_sent(error: BaseException) -> bool:
    """Whether the request cannot have reached the server: the connection was never made."""
    return any(
        isinstance(link, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        for link in _chain(error)
    )


def _root(error: BaseException) -> str:
    *_, root = _chain(error)
    said = _line(str(root))
    return f"{type(root).__name__}: {said}" if said else type(root).__name__


def _line(text: str) -> str:
    return " ".join(text.split())
