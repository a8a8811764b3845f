"""Pure: an answer as the response cache keeps it, and as it is given again.

Kept as JSON, which may come from a Redis that others write to. An answer is kept for later calls
where it is whole: a refusal, one cut off (`max_tokens`, a full context, `pause_turn`), or one that
a fallback gave in place of the model that was asked for, is only shared with the equal calls that
waited for it. Errors are never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from anthropic.types import Message
from pydantic_core import from_json, to_json

from agentcloud.cluster.attempts import token_usage
from agentcloud.cluster.contracts import CACHE_NAME, EndpointKind, Receipt, Timings, TokenUsage
from agentcloud.cluster.fold import message_of
from agentcloud.cluster.message import RoutedMessage, with_receipt

_WHOLE: Final = frozenset({"end_turn", "stop_sequence", "tool_use"})


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer and its origin.

    Attributes:
        call_id: the call that was sent for it.
        endpoint: who served that.
        cost_usd: what that cost; None: not known.
    """

    message: Message
    call_id: str
    endpoint: str
    model: str
    kind: EndpointKind
    cost_usd: Decimal | None
    mean_logprob: float | None
    fallback_from: str | None

    def again(self, call_id: str, age_s: float | None, total_s: float) -> RoutedMessage:
        """The answer for another call, which costs nothing.

        Args:
            call_id: the other call's.
            age_s: how old the answer is; None: the call waited for it.
            total_s: from the other caller's request to now.
        """
        what = (
            "shared with an equal call that was under way"
            if age_s is None
            else f"answered {age_s:.0f} s ago"
        )
        usage = token_usage(self.message.usage)
        receipt = Receipt(
            call_id=call_id,
            endpoint=CACHE_NAME,
            model=self.model,
            kind=self.kind,
            reason=f"response cache: {what}, {self.call_id} at {self.endpoint}",
            cost_usd=Decimal(0),
            attempts=0,
            usage=TokenUsage(
                cache_read_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens
            ),
            # Nothing was leased or generated for it.
            timings=Timings(total_s=total_s),
            cached=True,
            fallback_from=self.fallback_from,
            mean_logprob=self.mean_logprob,
            saved_usd=self.cost_usd,
        )
        return with_receipt(self.message, receipt)


def is_whole(message: RoutedMessage) -> bool:
    """Whether an answer is for later calls too."""
    return message.stop_reason in _WHOLE and message.agentcloud.fallback_from is None


def cost_of(receipt: Receipt) -> Decimal | None:
    """What another send of an answered call would have cost, as far as this one tells."""
    return None if receipt.cost_usd is None else receipt.cost_usd - receipt.spent_elsewhere_usd


def packed_answer(message: RoutedMessage) -> bytes:
    """An answer with its origin."""
    receipt = message.agentcloud
    cost_usd = cost_of(receipt)
    return to_json(
        {
            "message": message.to_dict(),
            "call": receipt.call_id,
            "endpoint": receipt.endpoint,
            "model": receipt.model,
            "kind": receipt.kind,
            "cost_usd": None if cost_usd is None else format(cost_usd, "f"),
            "mean_logprob": receipt.mean_logprob,
            "fallback_from": receipt.fallback_from,
        }
    )


def unpacked_answer(body: bytes) -> Kept:
    """What `packed_answer` packed.

    Raises:
        ValueError, KeyError, TypeError: it is nothing of the kind.
    """
    data: dict[str, Any] = from_json(body)
    cost_usd = data["cost_usd"]
    return Kept(
        message_of(data["message"]),
        data["call"],
        data["endpoint"],
        data["model"],
        EndpointKind(data["kind"]),
        None if cost_usd is None else Decimal(cost_usd),
        data["mean_logprob"],
        data["fallback_from"],
    )
