"""Every call's time, tokens and money on Ray's metric export, told at one place: settlement.

Ray's counters refuse Decimal, zero and negative increments; ids of tasks and calls are never tags,
for each new tag value is a new time series for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from ray.util.metrics import Counter, Gauge, Histogram

from agentcloud.cluster.contracts import (
    BudgetState,
    EndpointSpec,
    LoadReport,
    Outcome,
    Settlement,
)

_ENDPOINT = ("endpoint", "model", "kind")
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
_TOKEN_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]


class CallMetrics:
    """The metrics that the scheduler exports; each name starts with `agentcloud_`."""

    def __init__(self) -> None:
        def counter(name: str, what: str, *tags: str) -> Counter:
            return Counter(f"agentcloud_{name}", what, tag_keys=(*_ENDPOINT, *tags))

        def histogram(name: str, what: str, bounds: list[float]) -> Histogram:
            return Histogram(f"agentcloud_{name}", what, boundaries=bounds, tag_keys=_ENDPOINT)

        def gauge(name: str, what: str, *tags: str) -> Gauge:
            return Gauge(f"agentcloud_{name}", what, tag_keys=tags)

        self._calls = counter("calls_total", "Sends by how they ended", "outcome")
        self._errors = counter(
            "errors_total", "Failed sends by the API's error type", "kind_of_error"
        )
        self._retries = counter("retries_total", "Sends after the first of their call")
        self._tokens = counter("tokens_total", "Tokens of settled calls", "direction")
        self._cost = counter("cost_usd_total", "Known cost of settled calls, USD")
        self._unknown = counter("unknown_cost_calls_total", "Calls whose cost is not known")
        self._ttft = histogram("ttft_seconds", "Send to first token", _SECONDS)
        self._tpot = histogram("time_per_output_token_seconds", "After the first", _TOKEN_SECONDS)
        self._queue = histogram("engine_queue_seconds", "Waiting inside the engine", _SECONDS)
        self._lease_wait = histogram("lease_wait_seconds", "Waiting for a lease", _SECONDS)
        self._waiting = gauge("leases_waiting", "Calls that wait for a lease")
        self._running = gauge("endpoint_running", "Calls leased now", "endpoint")
        self._kv = gauge("kv_cache_used_ratio", "Share of a replica's KV cache in use", "endpoint")
        self._budget_used = gauge("budget_used_usd", "Spent and reserved", "scope")
        self._budget_limit = gauge("budget_limit_usd", "Cap", "scope")
        self._headroom = gauge(
            "limit_headroom_ratio",
            "Share of a rate limit that is free",
            "account",
            "family",
            "limit",
        )

    def leased(self, endpoint: EndpointSpec, waited_s: float, attempt: int) -> None:
        """A lease was granted.

        Args:
            endpoint: where.
            waited_s: seconds that its request waited.
            attempt: 1 for the first send of a call.
        """
        tags = _tags(endpoint)
        self._lease_wait.observe(waited_s, tags)
        if attempt > 1:
            self._retries.inc(1, tags)

    def settled(self, endpoint: EndpointSpec, settlement: Settlement) -> None:
        """A send ended."""
        tags = _tags(endpoint)
        self._calls.inc(1, tags | {"outcome": settlement.outcome.value})
        if settlement.error_kind and settlement.outcome is not Outcome.OK:
            self._errors.inc(1, tags | {"kind_of_error": settlement.error_kind})
        self._add_cost(settlement.cost_usd, tags)
        timings, usage = settlement.timings, settlement.usage
        if usage is not None:
            for direction, tokens in (
                ("input", usage.input_tokens),
                ("cache_write", usage.cache_write_tokens),
                ("cache_read", usage.cache_read_tokens),
                ("output", usage.output_tokens),
            ):
                if tokens > 0:
                    self._tokens.inc(tokens, tags | {"direction": direction})
            if timings.generation_s is not None and usage.output_tokens > 1:
                self._tpot.observe(timings.generation_s / (usage.output_tokens - 1), tags)
        if timings.ttft_s is not None:
            self._ttft.observe(timings.ttft_s, tags)
        if timings.engine_queue_s is not None:
            self._queue.observe(timings.engine_queue_s, tags)

    def loaded(self, loads: Iterable[tuple[str, LoadReport]]) -> None:
        """Replicas reported their load."""
        for name, load in loads:
            self._kv.set(load.kv_used_fraction, {"endpoint": name})

    def queues(self, waiting: int, running: Iterable[tuple[str, int]]) -> None:
        """How many calls wait for a lease, and how many each endpoint has."""
        self._waiting.set(waiting)
        for name, calls in running:
            self._running.set(calls, {"endpoint": name})

    def budgets(self, states: Iterable[BudgetState]) -> None:
        """Budgets of the fleet and of jobs; a task's is no tag."""
        for state in states:
            if "/" in state.scope or state.scope.startswith("task:"):
                continue
            used = state.spent_usd + state.reserved_usd + state.unknown_usd
            self._budget_used.set(float(used), {"scope": state.scope})
            if state.limit_usd is not None:
                self._budget_limit.set(float(state.limit_usd), {"scope": state.scope})

    def headroom(self, rows: Iterable[tuple[str, str, str, float]]) -> None:
        """Rate limits: account, family, which limit, free share from 0 to 1."""
        for account, family, limit, free in rows:
            self._headroom.set(free, {"account": account, "family": family, "limit": limit})

    def _add_cost(self, cost_usd: Decimal | None, tags: dict[str, str]) -> None:
        if cost_usd is None:
            self._unknown.inc(1, tags)
        elif cost_usd > 0:
            self._cost.inc(float(cost_usd), tags)


def _tags(endpoint: EndpointSpec) -> dict[str, str]:
    return {"endpoint": endpoint.name, "model": endpoint.model, "kind": endpoint.kind.value}
