"""An error answer of the API: status, type, message, headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The status that goes with each type of error.
STATUS_OF = {
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


class ApiError(Exception):
    """A call that the sandbox answers with an error."""

    def __init__(
        self, error_type: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message
        self.status = STATUS_OF[error_type]
        self.headers = dict(headers or {})

    def body(self, request_id: str) -> dict[str, Any]:
        """The JSON body of the error."""
        return {
            "type": "error",
            "error": {"type": self.error_type, "message": self.message},
            "request_id": request_id,
        }


def invalid(where: str, message: str) -> ApiError:
    """An `invalid_request_error` that names the field."""
    return ApiError("invalid_request_error", f"{where}: {message}")
