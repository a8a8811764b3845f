"""Pure: why a call went where it went, kept for those who ask: considered, chosen, what happened.

The last calls are kept as they were weighed; words are found only for those that someone asks for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from agentcloud.cluster.contracts import Considered, Lease, LeaseRequest, Settlement
from agentcloud.cluster.registry import Registry

#: Calls kept.
KEPT: Final = 10_000


class Send:
    """One send of a call: what was decided, and how it ended."""

    __slots__ = ("expired", "lease", "refused", "request", "settlement", "target")

    def __init__(
        self, request: LeaseRequest, target: str, lease: Lease | None, refused: str = ""
    ) -> None:
        self.request = request
        self.target = target
        self.lease = lease
        self.refused = refused
        self.settlement: Settlement | None = None
        self.expired = False


class ExplainBook:
    """The sends of the last calls, by the call's id."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._calls: OrderedDict[str, list[Send]] = OrderedDict()

    def granted(self, request: LeaseRequest, target: str, lease: Lease) -> None:
        """A lease was given."""
        self._add(Send(request, target, lease))

    def refused(self, request: LeaseRequest, target: str, why: str) -> None:
        """No lease was given."""
        self._add(Send(request, target, None, why))

    def settled(self, call_id: str, lease_id: str, settlement: Settlement | None) -> None:
        """A lease ended; None: nobody settled it in time."""
        for send in reversed(self._calls.get(call_of(call_id), ())):
            if send.lease is not None and send.lease.lease_id == lease_id:
                send.settlement = settlement
                send.expired = settlement is None
                return

    def explain(self, call: str, registry: Registry) -> dict[str, Any] | None:
        """Everything known of a call, JSON-able; None: it is not, or no longer, known.

        What was ruled out is told as the pool is now: the endpoints that were considered are as
        they were then.
        """
        sends = self._calls.get(call_of(call))
        if sends is None:
            return None
        first = sends[0].request
        return {
            "call": call_of(call),
            "asked_for": sends[0].target,
            "input_tokens": first.input_tokens,
            "max_output_tokens": first.max_output_tokens,
            "needs": sorted(first.needs),
            "budget": list(first.routing.budget),
            "priority": first.routing.priority,
            "deadline_s": first.routing.deadline_s,
            "stream": first.stream,
            "sends": [_send(send) for send in sends],
            "ruled_out": _ruled_out(sends[-1], registry),
        }

    def _add(self, send: Send) -> None:
        calls = self._calls
        call = call_of(send.request.call_id)
        known = calls.get(call)
        if known is None:
            calls[call] = [send]
            if len(calls) > self._kept:
                calls.popitem(last=False)
        else:
            known.append(send)

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<ExplainBook {len(self._calls)} calls>"


def call_of(call_id: str) -> str:
    """The call that a send belongs to: later sends append their number to its id."""
    return call_id.partition(".")[0] if "." in call_id else call_id


def considered_as_dict(each: Considered) -> dict[str, Any]:
    """One endpoint that was considered, JSON-able."""
    return {
        "endpoint": each.endpoint,
        "predicted_ttft_s": each.ttft_s,
        "predicted_wait_s": each.wait_s,
        "predicted_total_s": each.total_s,
        "predicted_cost_usd": each.cost_usd,
        "cached_tokens": each.cached_tokens,
        "predicted_others_wait_s": each.others_s,
        "not_now": each.not_now,
    }


def _send(send: Send) -> dict[str, Any]:
    told: dict[str, Any] = {"attempt": send.request.attempt, "avoided": sorted(send.request.avoid)}
    lease, truth = send.lease, send.settlement
    if lease is None:
        return told | {"chosen": None, "why": send.refused, "considered": []}
    told |= {
        "chosen": lease.endpoint.name,
        "why": lease.reason,
        "waited_s": lease.queued_s,
        "reserved_usd": str(lease.reserved_usd),
        "considered": [considered_as_dict(each) for each in lease.considered],
    }
    if truth is None:
        return told | {"happened": "nobody settled it in time" if send.expired else "under way"}
    usage = truth.usage
    return told | {
        "happened": str(truth.outcome) + (f": {truth.error_kind}" if truth.error_kind else ""),
        "ttft_s": truth.timings.ttft_s,
        "total_s": truth.timings.total_s,
        "cost_usd": None if truth.cost_usd is None else str(truth.cost_usd),
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "cache_read_tokens": None if usage is None else usage.cache_read_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
    }


def _ruled_out(send: Send, registry: Registry) -> dict[str, str]:
    chosen = send.lease.considered if send.lease is not None else ()
    seen = {each.endpoint for each in chosen}
    models = {state.cls.spec.model for name, state in registry.endpoints.items() if name in seen}
    ruled_out = registry.ruled_out(send.request, send.target)
    return {
        name: why
        for name, why in ruled_out.items()
        if name not in seen and (why or registry.endpoints[name].cls.spec.model not in models)
    }
