"""Our errors -> anthropic's own exception classes, for users of the Messages client.

Where the API defines the failure, `except anthropic.RateLimitError` and its kin catch it; our error
is the `__cause__`. What only agentcloud can fail with (NoEndpoint, BudgetExceeded, ConfigError)
stays ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anthropic
import httpx2

from agentcloud.cluster.errors import BackendError, CallTimeout, ConnectionFailed, StreamBroken

#: The API's error type -> anthropic's class and the status that goes with it.
_CLASSES: Final[dict[str, tuple[type[anthropic.APIStatusError], int]]] = {
    "invalid_request_error": (anthropic.BadRequestError, 400),
    "authentication_error": (anthropic.AuthenticationError, 401),
    "billing_error": (anthropic.PaymentRequiredError, 402),
    "permission_error": (anthropic.PermissionDeniedError, 403),
    "not_found_error": (anthropic.NotFoundError, 404),
    "conflict_error": (anthropic.ConflictError, 409),
    "request_too_large": (anthropic.ContentTooLargeError, 413),
    "rate_limit_error": (anthropic.RateLimitError, 429),
    "api_error": (anthropic.InternalServerError, 500),
    "timeout_error": (anthropic.GatewayTimeoutError, 504),
    "overloaded_error": (anthropic.OverloadedError, 529),
}
#: Names no server: an exception must carry a request, and ours may never have been HTTP.
_URL: Final = "https://agentcloud.invalid/v1/messages"


def to_anthropic(error: BackendError) -> anthropic.APIError:
    """The exception that the bare client would have raised for this failure."""
    request = httpx2.Request("POST", _URL)
    if isinstance(error, CallTimeout):
        return _with_message(anthropic.APITimeoutError(request=request), error)
    if isinstance(error, ConnectionFailed) or (
        isinstance(error, StreamBroken) and error.kind not in _CLASSES
    ):
        return anthropic.APIConnectionError(message=error.message, request=request)
    if isinstance(error, StreamBroken) and error.kind == BackendError.default_kind:
        # Cut with no error told: to the caller a lost connection.
        return anthropic.APIConnectionError(message=error.message, request=request)
    cls, status = _CLASSES.get(error.kind, (anthropic.InternalServerError, error.status or 500))
    body = {"type": "error", "error": {"type": error.kind, "message": error.message}}
    headers = dict(error.headers)
    retry_after_s = error.retry_after_s
    if retry_after_s is not None:
        headers["retry-after"] = f"{retry_after_s:g}"
    response = httpx2.Response(status, headers=headers, json=body, request=request)
    return cls(error.message, response=response, body=body)


@contextmanager
def raising_anthropic() -> Iterator[None]:
    """Raise anthropic's class for any `BackendError` of the block, with ours as its cause."""
    try:
        yield
    except BackendError as error:
        raise to_anthropic(error) from error


def _with_message(raised: anthropic.APIError, error: BackendError) -> anthropic.APIError:
    # Its constructor takes no message, and its own would not say which endpoint and how long.
    raised.message = error.message
    raised.args = (error.message,)
    return raised
