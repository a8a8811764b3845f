"""Adds up a job's inference calls, an account for each endpoint. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from agentcloud.tasks.spec import EndpointTotals

#: Times to first token kept per endpoint; beyond it, a uniform sample (reservoir) of all.
SAMPLES = 20_000


@dataclass(slots=True)
class _Account:
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal | None = None
    unknown_cost_calls: int = 0
    ttft_s: list[float] = field(default_factory=list)
    ttft_seen: int = 0
    cache_read_tokens: int = 0
    saved_usd: Decimal = Decimal(0)


class Tally:
    """Totals of all answered calls, those of failed attempts included."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._random = random.Random(0)  # noqa: S311 - a sample of timings, not a secret

    def add(self, calls: Iterable[dict[str, Any]]) -> None:
        """Add call summaries (`worker.call_summary`)."""
        for call in calls:
            account = self._accounts.setdefault(call["endpoint"], _Account())
            account.calls += 1
            account.input_tokens += (
                call["input_tokens"] + call["cache_write_tokens"] + call["cache_read_tokens"]
            )
            account.output_tokens += call["output_tokens"]
            account.cache_read_tokens += call["cache_read_tokens"]
            account.saved_usd += Decimal(call.get("saved_usd") or 0)
            if call["cost_usd"] is None:
                account.unknown_cost_calls += 1
            else:
                account.cost_usd = (account.cost_usd or Decimal(0)) + call["cost_usd"]
            self._sample(account, call["ttft_s"])

    def _sample(self, account: _Account, ttft_s: float | None) -> None:
        if ttft_s is None:
            return
        account.ttft_seen += 1
        if len(account.ttft_s) < SAMPLES:
            account.ttft_s.append(ttft_s)
        elif (place := self._random.randrange(account.ttft_seen)) < SAMPLES:
            account.ttft_s[place] = ttft_s

    @property
    def cost_usd(self) -> Decimal:
        """Of all calls whose cost is known."""
        known = [account.cost_usd for account in self._accounts.values()]
        return sum((cost for cost in known if cost is not None), Decimal(0))

    @property
    def unknown_cost_calls(self) -> int:
        """Calls whose cost is not known."""
        return sum(account.unknown_cost_calls for account in self._accounts.values())

    def endpoints(self, span_s: float) -> tuple[EndpointTotals, ...]:
        """One row per endpoint, by name.

        Args:
            span_s: how long the job has been working, seconds.
        """
        return tuple(
            self._row(name, self._accounts[name], span_s) for name in sorted(self._accounts)
        )

    def _row(self, name: str, account: _Account, span_s: float) -> EndpointTotals:
        ordered = sorted(account.ttft_s)
        return EndpointTotals(
            endpoint=name,
            calls=account.calls,
            input_tokens=account.input_tokens,
            output_tokens=account.output_tokens,
            ttft_p50_s=quantile(ordered, 0.50),
            ttft_p95_s=quantile(ordered, 0.95),
            tokens_per_s=account.output_tokens / span_s if span_s > 0 else None,
            cost_usd=account.cost_usd,
            unknown_cost_calls=account.unknown_cost_calls,
            cache_read_tokens=account.cache_read_tokens,
            saved_usd=account.saved_usd,
        )


def quantile(ordered: list[float], fraction: float) -> float | None:
    """The nearest-rank quantile of sorted values; None of nothing."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]
