"""Which parameters of the Messages API an ask hands through."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from anthropic.types.message_create_params import MessageCreateParamsBase

from agentcloud.cluster.errors import AgentError

#: Parameters of the Messages API that an ask hands through, and its own.
_API_PARAMS = frozenset(MessageCreateParamsBase.__annotations__) - {"messages", "stream"} | {
    "top_k",  # local models and older hosted ones take these two; anthropic's types list them
    "top_p",  # no longer
}
_OWN_PARAMS = (
    "output",
    "tier",
    "images",
    "deadline_s",
    "repairs",
    "max_turns",
    "max_usd",
    "long_context",
    "cache",
)


def check_params(names: Iterable[str]) -> None:
    """See that all are known.

    Raises:
        AgentError: one is not; it says which was meant.
    """
    if unknown := sorted(set(names) - _API_PARAMS):
        close = difflib.get_close_matches(unknown[0], [*_API_PARAMS, *_OWN_PARAMS], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise AgentError(f"ask: no parameter {unknown[0]!r}{hint}")
