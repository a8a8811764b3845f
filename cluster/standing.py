"""Pure: running totals of each endpoint, and the snapshot that people and dashboards read."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from agentcloud.cluster.contracts import BudgetState, Outcome, Settlement
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.registry import Registry

#: Calls whose times percentiles are taken from.
_RECENT: Final = 512
#: Time constant of the tokens/s shown.
_RATE_S: Final = 10.0


@dataclass(slots=True)
class Totals:
    """What an endpoint has done since the scheduler started."""

    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown: int = 0
    expired: int = 0
    input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unknown_costs: int = 0
    saved_usd: Decimal = Decimal(0)
    errors: dict[str, int] = field(default_factory=dict)
    ttfts_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    totals_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    ttft_errors: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    per_token_errors: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _rate: float = 0.0
    _rated_s: float = 0.0

    def add(self, settlement: Settlement, now_s: float, held_s: float) -> None:
        """Count one settlement; `held_s` is the time since its grant."""
        outcome = settlement.outcome
        if outcome is Outcome.OK:
            self.ok += 1
            self.totals_s.append(held_s)
        elif outcome is Outcome.FAILED:
            self.failed += 1
        elif outcome is Outcome.CANCELLED:
            self.cancelled += 1
        else:
            self.unknown += 1
        if settlement.error_kind is not None:
            kind = settlement.error_kind
            self.errors[kind] = self.errors.get(kind, 0) + 1
        if settlement.cost_usd is None:
            self.unknown_costs += 1
        else:
            self.cost_usd += settlement.cost_usd
        if settlement.saved_usd is not None:
            self.saved_usd += settlement.saved_usd
        usage = settlement.usage
        if usage is not None:
            self.input_tokens += usage.input_tokens
            self.cache_write_tokens += usage.cache_write_tokens
            self.cache_read_tokens += usage.cache_read_tokens
            self.output_tokens += usage.output_tokens
            self._rate = self.tokens_per_s(now_s) + usage.output_tokens / _RATE_S
            self._rated_s = now_s
        if settlement.timings.ttft_s is not None:
            self.ttfts_s.append(settlement.timings.ttft_s)

    def judge(
        self, ttft_s: float | None, per_token_s: float | None, settlement: Settlement
    ) -> None:
        """Hold what was predicted at the grant against what was measured.

        Args:
            ttft_s: predicted time to first token; None: nothing was known yet.
            per_token_s: predicted time per output token; None likewise.
            settlement: of an answered call.
        """
        timings, usage = settlement.timings, settlement.usage
        if ttft_s is not None and timings.ttft_s:
            self.ttft_errors.append(abs(ttft_s - timings.ttft_s) / timings.ttft_s)
        if per_token_s is not None and timings.generation_s and usage is not None:
            measured_s = timings.generation_s / max(1, usage.output_tokens - 1)
            self.per_token_errors.append(abs(per_token_s - measured_s) / measured_s)

    def add_cost(self, cost_usd: Decimal) -> None:
        """A cost that was unknown became known."""
        self.unknown_costs = max(0, self.unknown_costs - 1)
        self.cost_usd += cost_usd

    def tokens_per_s(self, now_s: float) -> float:
        """Output tokens a second, over about the last ten seconds."""
        return self._rate * math.exp(-max(0.0, now_s - self._rated_s) / _RATE_S)

    @property
    def prefix_hit_rate(self) -> float | None:
        """The part of all prompt tokens that was in the cache; None before any."""
        prompt = self.input_tokens + self.cache_write_tokens + self.cache_read_tokens
        return self.cache_read_tokens / prompt if prompt else None

    def as_dict(self, now_s: float) -> dict[str, Any]:
        """JSON-able; costs as strings, exact."""
        return {
            "calls": self.ok + self.failed + self.cancelled + self.unknown + self.expired,
            "ok": self.ok,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "unknown": self.unknown,
            "expired": self.expired,
            "input_tokens": self.input_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "cache_read_tokens": self.cache_read_tokens,
            "output_tokens": self.output_tokens,
            "prefix_hit_rate": self.prefix_hit_rate,
            "cost_usd": str(self.cost_usd),
            "saved_usd": str(self.saved_usd),
            "unknown_costs": self.unknown_costs,
            "errors": dict(self.errors),
            "ttft_p50_s": percentile(self.ttfts_s, 0.5),
            "ttft_p95_s": percentile(self.ttfts_s, 0.95),
            "total_p50_s": percentile(self.totals_s, 0.5),
            "total_p95_s": percentile(self.totals_s, 0.95),
            "tokens_per_s": self.tokens_per_s(now_s),
            # Of the prediction made at the grant, relative to what was measured.
            "ttft_error_p50": percentile(self.ttft_errors, 0.5),
            "ttft_error_p90": percentile(self.ttft_errors, 0.9),
            "per_token_error_p50": percentile(self.per_token_errors, 0.5),
            "per_token_error_p90": percentile(self.per_token_errors, 0.9),
        }


def percentile(values: deque[float], fraction: float) -> float | None:
    """The nearest-rank percentile; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(fraction * len(ordered)) - 1))]


def describe(state: EndpointState, totals: Totals, now_s: float) -> dict[str, Any]:
    """One endpoint, JSON-able."""
    spec = state.spec
    predictor = state.cls.predictor
    estimate = state.estimate(256, predictor.output_tokens(1024), now_s)
    load = state.load
    return {
        "kind": str(spec.kind),
        "model": spec.model,
        "tier": spec.tier,
        "account": spec.account,
        "standing": str(state.circuit.standing),
        "why": state.circuit.tell(now_s),
        "failures_in_a_row": state.circuit.failures,
        "inflight": state.inflight,
        "concurrency": state.concurrency.limit,
        "max_concurrency": state.concurrency.maximum,
        "load": None
        if load is None
        else {
            "running": load.running,
            "waiting": load.waiting,
            "kv_used_fraction": load.kv_used_fraction,
            "tokens_done": load.tokens_done,
            "prompt_tokens_queued": load.prompt_tokens_queued,
            "progress_age_s": load.progress_age_s,
            "age_s": max(0.0, now_s - load.at_s),
        },
        "predicted": {
            "ttft_s": estimate.ttft_s if estimate.ttft_known else None,
            "per_token_s": predictor.per_token.at(state.running(now_s) + 1) * state.slowness
            if estimate.known
            else None,
            "output_tokens": predictor.output_tokens(1 << 30),
            "slowness": state.slowness,
        },
        "totals": totals.as_dict(now_s),
    }


def limits_snapshot(registry: Registry, now_s: float) -> dict[str, Any]:
    """Headroom and cooldown of every account and family, JSON-able."""
    return {
        name: {
            "headroom": limiter.headroom(now_s),
            "cooling_s": max(0.0, limiter.cooled_until_s - now_s),
        }
        for name, limiter in registry.limiters.items()
    }


def overview(
    registry: Registry,
    totals: Mapping[str, Totals],
    budgets: Sequence[BudgetState],
    now_s: float,
) -> dict[str, Any]:
    """Endpoints (those gone too), limits and budgets, JSON-able; money as strings, exact."""
    nothing = Totals()
    return {
        "endpoints": {
            name: describe(state, totals.get(name, nothing), now_s)
            for name, state in sorted(registry.endpoints.items())
        },
        "gone": {
            name: each.as_dict(now_s)
            for name, each in sorted(totals.items())
            if name not in registry.endpoints
        },
        "limits": limits_snapshot(registry, now_s),
        "budgets": [
            {
                "scope": state.scope,
                "limit_usd": None if state.limit_usd is None else f"{state.limit_usd:f}",
                "spent_usd": f"{state.spent_usd:f}",
                "reserved_usd": f"{state.reserved_usd:f}",
                "unknown_usd": f"{state.unknown_usd:f}",
            }
            for state in budgets
        ],
    }
