"""Conversations that outgrow the context: sent again without their oldest turns, or summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import structlog
from anthropic.types import Message

from agentcloud.agents.history import estimate_tokens, fit
from agentcloud.agents.ports import Sender
from agentcloud.agents.prompt import MessageDict, answer_text
from agentcloud.agents.summary import summary_prompt, with_summary, without_summary
from agentcloud.cluster.errors import AgentError, ContextTooLong, Refused

#: What becomes of the oldest turns: `truncate` drops them, `summarise` has a model sum them up.
LongContext: TypeAlias = Literal["truncate", "summarise"]

#: The most tokens of a summary, and the most of the context that it may take.
_SUMMARY_TOKENS: Final = 1024
_SUMMARY_SHARE: Final = 1 / 8
#: What is kept where an endpoint does not say how much is too much.
_BLIND_SHARE: Final = 0.5
#: Part of the context that an estimate is trusted to fill.
_SAFE_SHARE: Final = 0.9
_CHARS_PER_TOKEN: Final = 4


def check_long_context(value: str) -> LongContext:
    """See that it is one.

    Raises:
        AgentError: it is not.
    """
    if value not in get_args(LongContext):
        raise AgentError(f"long_context={value!r} is unknown; write 'truncate' or 'summarise'")
    return cast(LongContext, value)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Sends conversations, shortened as often as an endpoint calls them too long.

    Each shortening spends one of the task's extra attempts. That a conversation was too long is
    recorded like an answer, so a resumed task shortens it where it did before.

    Attributes:
        long_context: what becomes of the oldest turns.
        log: is told of summaries that could not be had.
    """

    long_context: LongContext = "truncate"
    log: Any = field(default_factory=structlog.get_logger)

    async def send(
        self, sender: Sender, params: dict[str, Any]
    ) -> tuple[Message, list[MessageDict]]:
        """The answer, and the conversation that it answers.

        Raises:
            ContextTooLong: the first message and the last turn alone are too long.
            AttemptsExhausted: no attempt is left to shorten it.
        """
        messages: list[MessageDict] = params["messages"]
        max_tokens: int = params["max_tokens"]
        while True:
            handled = partial(_can_shorten, messages, max_tokens)
            try:
                request = {**params, "messages": messages}
                return await sender.send(request, keep_too_long=handled), messages
            except ContextTooLong as error:
                shorter = _truncate(messages, error, max_tokens)
                if shorter is None:
                    raise
                sender.spend_attempt("a shorter conversation", str(error))
                if self.long_context == "summarise":
                    summed_up = await self._summarise(sender, params, messages, error)
                    shorter = summed_up or shorter
                messages = shorter

    async def _summarise(
        self,
        sender: Sender,
        params: dict[str, Any],
        messages: list[MessageDict],
        error: ContextTooLong,
    ) -> list[MessageDict] | None:
        """The conversation with a summary in place of its oldest turns; None: it cannot be had."""
        start = _count_head(messages)
        if not start:
            return None
        # The new summary takes the earlier one's place, so that they do not pile up.
        last_of_head, earlier = without_summary(messages[start - 1])
        head = [*messages[: start - 1], last_of_head]
        context_tokens = error.context_tokens or _size(messages) // _CHARS_PER_TOKEN
        tokens = int(min(_SUMMARY_TOKENS, context_tokens * _SUMMARY_SHARE))
        kept = _truncate([*head, *messages[start:]], error, params["max_tokens"], tokens)
        if kept is None:
            self.log.warning("no room for a summary: oldest turns dropped")
            return None
        dropped = messages[start : start + len(messages) - len(kept)]
        room_tokens = estimate_tokens(messages) * _BLIND_SHARE
        if error.context_tokens:
            room_tokens = (error.context_tokens - tokens) * _SAFE_SHARE
        prompt = summary_prompt(
            head, earlier, dropped, room_tokens=int(room_tokens), words=tokens // 2
        )
        request = {
            "model": params["model"],
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": prompt}],
        }
        summary = await self._ask_for_summary(sender, request)
        if summary is None:
            return None
        return [*head[:-1], with_summary(last_of_head, summary), *kept[start:]]

    async def _ask_for_summary(self, sender: Sender, request: dict[str, Any]) -> str | None:
        try:
            message = await sender.send(request, keep_too_long=lambda _: True)
        except (ContextTooLong, Refused) as error:
            self.log.warning("no summary: oldest turns dropped", error=str(error))
            return None
        summary = answer_text(message).strip()
        if message.stop_reason != "end_turn" or not summary:
            self.log.warning("no summary: oldest turns dropped", stop_reason=message.stop_reason)
            return None
        return summary


def _can_shorten(messages: list[MessageDict], max_tokens: int, error: ContextTooLong) -> bool:
    return _truncate(messages, error, max_tokens) is not None


def _truncate(
    messages: list[MessageDict],
    error: ContextTooLong,
    max_tokens: int,
    summary_tokens: int = 0,
) -> list[MessageDict] | None:
    """The conversation without its oldest turns; None when nothing can be dropped.

    Args:
        messages: the conversation.
        error: what the endpoint said of it.
        max_tokens: room for the answer.
        summary_tokens: room for a summary.
    """
    size = _size(messages)
    if error.context_tokens and max_tokens + summary_tokens >= error.context_tokens:
        return None
    if error.context_tokens and error.prompt_tokens:
        room_tokens = error.context_tokens - max_tokens - summary_tokens
        room = size * _SAFE_SHARE * room_tokens / error.prompt_tokens
    else:
        room = size * _BLIND_SHARE - summary_tokens * _CHARS_PER_TOKEN
    try:
        shorter = fit(messages, int(room), estimate=_message_size)
    except ContextTooLong:
        return None
    return shorter if len(shorter) < len(messages) else None


def _count_head(messages: Sequence[MessageDict]) -> int:
    """Messages before the first turn, which stay."""
    roles = [message["role"] for message in messages]
    return roles.index("assistant") if "assistant" in roles else len(roles)


def _size(messages: Sequence[MessageDict]) -> int:
    return sum(map(_message_size, messages))


def _message_size(message: MessageDict) -> int:
    return len(str(message["content"]))
