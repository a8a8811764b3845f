"""What the API says in words, as figures."""

from __future__ import annotations

import pytest

from agentcloud.cluster.errors import ContextTooLong
from agentcloud.cluster.hosted_errors import of_body


@pytest.mark.parametrize(
    ("said", "prompt_tokens", "context_tokens"),
    [
        ("prompt is too long: 210000 tokens > 200000 maximum", 210_000, 200_000),
        (
            "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000, "
            "decrease input length or `max_tokens` and try again",
            190_000,
            200_000,
        ),
        ("prompt is too long", None, None),
    ],
)
def test_how_much_too_long_a_prompt_is(
    said: str, prompt_tokens: int | None, context_tokens: int | None
) -> None:
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    error = of_body(body, {}, "main/claude", began=False, status=400)
    assert isinstance(error, ContextTooLong)
    assert (error.prompt_tokens, error.context_tokens) == (prompt_tokens, context_tokens)
