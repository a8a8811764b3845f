"""Fit a conversation into a context window. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from agentcloud.agents.prompt import MessageDict
from agentcloud.cluster.errors import ContextTooLong

#: Bytes of JSON a token stands for; text has about four, so this errs towards too many tokens.
_BYTES_PER_TOKEN = 3.0
#: Tokens of an image whatever its size, about the API's largest.
_IMAGE_TOKENS = 1_600


def estimate_tokens(part: Any) -> int:
    """A rough upper estimate of the tokens of messages, tools or a system prompt."""
    images = 0

    def shorten(value: Any) -> Any:
        nonlocal images
        if isinstance(value, dict):
            if value.get("type") in ("image", "document"):
                images += 1
                return None
            return {key: shorten(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [shorten(item) for item in value]
        return value

    text = json.dumps(shorten(part), ensure_ascii=False, default=str)
    return images * _IMAGE_TOKENS + math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)


def fit(
    messages: Sequence[MessageDict],
    limit_tokens: int,
    *,
    estimate: Callable[[MessageDict], int] = estimate_tokens,
) -> list[MessageDict]:
    """Drop the oldest turns until the messages fit.

    The first message (the task) and the last turn always stay. A turn is an assistant message with
    the user messages after it, so a tool call is never parted from its result, and roles still
    alternate as they did. The system prompt and tools are no messages: subtract them from
    `limit_tokens`.

    Args:
        messages: the conversation, the first one the user's.
        limit_tokens: tokens for the messages.
        estimate: tokens of one message.

    Raises:
        ContextTooLong: the first message and the last turn alone are too long.
    """
    head, turns = _split(messages)
    sizes = [sum(map(estimate, turn)) for turn in turns]
    total = sum(map(estimate, head)) + sum(sizes)
    dropped = 0
    while total > limit_tokens and dropped < len(turns) - 1:
        total -= sizes[dropped]
        dropped += 1
    if total > limit_tokens:
        raise ContextTooLong(
            f"the task and its last turn are about {total} tokens, but only {limit_tokens} fit; "
            f"shorten the prompt or the tools' results, or use a model with a larger context",
            prompt_tokens=total,
            context_tokens=limit_tokens,
        )
    return [*head, *(message for turn in turns[dropped:] for message in turn)]


def _split(messages: Sequence[MessageDict]) -> tuple[list[MessageDict], list[list[MessageDict]]]:
    """The messages before the first assistant message, and the turns after them."""
    head: list[MessageDict] = []
    turns: list[list[MessageDict]] = []
    for message in messages:
        if message["role"] == "assistant" and not (
            turns and all(earlier["role"] == "assistant" for earlier in turns[-1])
        ):
            turns.append([message])
        elif turns:
            turns[-1].append(message)
        else:
            head.append(message)
    return head, turns
