"""Every call's time, tokens and money on Ray's metric export.

A Ray metric call takes 2.6 us, a call's dozen of them as long as half its scheduling: so the
scheduler only notes what was settled, and a thread of its own exports once a second, counters as
the difference of the totals that its snapshot shows too.

Ray's counters refuse Decimal, zero and negative increments; ids of tasks and calls are never tags,
for each new tag value is a new time series for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import structlog
from ray.util.metrics import Counter, Gauge, Histogram

from agentcloud.cluster.alarm import SeriesKey
from agentcloud.cluster.contracts import BudgetState, EndpointSpec, Settlement
from agentcloud.cluster.leases import Granted
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.standing import Totals

EXPORT_EVERY_S: Final = 1.0

_ENDPOINT = ("endpoint", "model", "kind")
_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]
_TOKEN_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]
_OUTCOMES = ("ok", "failed", "cancelled", "unknown", "expired")
_DIRECTIONS = ("input", "cache_write", "cache_read", "output")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Reading:
    """What is exported of the scheduler at one moment.

    Attributes:
        counts: endpoint, metric, value of its further tag -> total since the scheduler started.
        unknown_costs: endpoint -> calls whose cost is not known.
        running: endpoint -> calls leased now.
        kv_used: replica -> share of its KV cache in use, 0 to 1.
        headroom: account, family, limit -> share that is free, 0 to 1.
        settled: leases that ended since the reading before.
    """

    specs: dict[str, EndpointSpec]
    counts: dict[tuple[str, str, str], int | Decimal]
    unknown_costs: dict[str, int]
    running: dict[str, int]
    kv_used: dict[str, float]
    waiting: int
    budgets: list[BudgetState]
    headroom: dict[tuple[str, str, str], float]
    settled: list[tuple[Granted, Settlement]]


def read(core: SchedulerCore, settled: list[tuple[Granted, Settlement]], now_s: float) -> Reading:
    """Copy what is exported out of the core; the caller holds its lock."""
    states = core.registry.endpoints
    counts: dict[tuple[str, str, str], int | Decimal] = {}
    for name, totals in core.totals.items():
        counts |= {(name, metric, tag): value for (metric, tag), value in _counts(totals).items()}
    return Reading(
        specs={name: state.spec for name, state in states.items()},
        counts=counts,
        unknown_costs={name: totals.unknown_costs for name, totals in core.totals.items()},
        running={name: state.inflight for name, state in states.items()},
        kv_used={name: s.load.kv_used_fraction for name, s in states.items() if s.load is not None},
        waiting=core.waiting,
        # Of the fleet and of jobs: a task's budget is no tag.
        budgets=[each for each in core.budgets() if not each.scope.startswith("task:")],
        headroom={
            (*_account_and_family(name), limit): free
            for name, limiter in core.registry.limiters.items()
            for limit, free in limiter.headroom(now_s).items()
            if free is not None
        },
        settled=settled,
    )


class CallMetrics:
    """The metrics that the scheduler exports; Ray puts `ray_` before each name."""

    def __init__(self) -> None:
        def counter(name: str, what: str, *tags: str) -> Counter:
            return Counter(f"agentcloud_{name}", what, tag_keys=(*_ENDPOINT, *tags))

        def histogram(name: str, what: str, bounds: list[float]) -> Histogram:
            return Histogram(f"agentcloud_{name}", what, boundaries=bounds, tag_keys=_ENDPOINT)

        def gauge(name: str, what: str, *tags: str) -> Gauge:
            return Gauge(f"agentcloud_{name}", what, tag_keys=tags)

        self._counters = {
            "calls": (counter("calls_total", "Sends by how they ended", "outcome"), "outcome"),
            "errors": (counter("errors_total", "Failed sends by the API's error type", "error"),
                       "error"),
            "tokens": (counter("tokens_total", "Tokens of settled calls", "direction"),
                       "direction"),
            "cost": (counter("cost_usd_total", "Known cost of settled calls, USD"), ""),
        }  # fmt: skip
        self._retries = counter("retries_total", "Sends after the first of their call")
        self._ttft = histogram("ttft_seconds", "Send to first token", _SECONDS)
        self._tpot = histogram("time_per_output_token_seconds", "After the first", _TOKEN_SECONDS)
        self._queue = histogram("engine_queue_seconds", "Waiting inside the engine", _SECONDS)
        self._lease_wait = histogram("lease_wait_seconds", "Waiting for a lease", _SECONDS)
        self._unknown = gauge("unknown_cost_calls", "Calls whose cost is not known", *_ENDPOINT)
        self._waiting = gauge("leases_waiting", "Calls that wait for a lease")
        self._running = gauge("endpoint_running", "Calls leased now", *_ENDPOINT)
        self._kv = gauge("kv_cache_used_ratio", "Share of a replica's KV cache in use", *_ENDPOINT)
        self._budget_used = gauge("budget_used_usd", "Spent, reserved and unknown", "scope")
        self._budget_limit = gauge("budget_limit_usd", "Cap", "scope")
        self._headroom = gauge(
            *("limit_headroom_ratio", "Share of a rate limit that is free"),
            *("account", "family", "limit"),
        )
        self._settled: list[tuple[Granted, Settlement]] = []
        self._tags: dict[str, dict[str, str]] = {}
        self._counted: dict[tuple[str, str, str], int | Decimal] = {}
        self._scopes: frozenset[str] = frozenset()
        self._known: frozenset[str] = frozenset()

    def settled(self, lease: Granted, settlement: Settlement) -> None:
        """A lease ended; the caller holds the core's lock."""
        self._settled.append((lease, settlement))

    def start(
        self, core: SchedulerCore, lock: threading.Lock, now: Callable[[], float]
    ) -> threading.Thread:
        """Export once a second, for as long as the process lives.

        Args:
            core: what is read, under its lock.
            lock: held for microseconds an endpoint.
            now: the core's clock, seconds.
        """

        def run() -> None:
            pause = threading.Event()
            while not pause.wait(EXPORT_EVERY_S):
                with lock:
                    settled, self._settled = self._settled, []
                    reading = read(core, settled, now())
                try:
                    self.export(reading)
                except Exception:
                    log.exception("metrics were not exported")

        thread = threading.Thread(target=run, name="scheduler-metrics", daemon=True)
        thread.start()
        return thread

    def export(self, reading: Reading) -> None:
        """Tell Ray what changed since the reading before."""
        for name, spec in reading.specs.items():
            self._tags[name] = _tags(spec)
        for lease, settlement in reading.settled:
            self._observe(lease, settlement)
        for key, total in reading.counts.items():
            name, metric, tag_value = key
            if (more := total - self._counted.get(key, 0)) > 0:
                counter, tag = self._counters[metric]
                self._counted[key] = total
                counter.inc(float(more), self._tags[name] | ({tag: tag_value} if tag else {}))
        for name, calls in reading.unknown_costs.items():
            self._unknown.set(calls, self._tags[name])
        # An endpoint or a budget that is gone is shown once more, empty.
        for name in self._known.union(reading.running):
            self._running.set(reading.running.get(name, 0), self._tags[name])
        for name, used in reading.kv_used.items():
            self._kv.set(used, self._tags[name])
        self._known = frozenset(reading.running)
        self._waiting.set(reading.waiting)
        self._export_budgets(reading.budgets)
        for (account, family, limit), free in reading.headroom.items():
            self._headroom.set(free, {"account": account, "family": family, "limit": limit})

    def _observe(self, lease: Granted, settlement: Settlement) -> None:
        tags = self._tags.setdefault(lease.state.spec.name, _tags(lease.state.spec))
        timings, usage = settlement.timings, settlement.usage
        self._lease_wait.observe(lease.lease.queued_s, tags)
        if lease.attempt > 1:
            self._retries.inc(1, tags)
        if timings.ttft_s is not None:
            self._ttft.observe(timings.ttft_s, tags)
        if timings.engine_queue_s is not None:
            self._queue.observe(timings.engine_queue_s, tags)
        if timings.generation_s is not None and usage is not None and usage.output_tokens > 1:
            self._tpot.observe(timings.generation_s / (usage.output_tokens - 1), tags)

    def _export_budgets(self, budgets: list[BudgetState]) -> None:
        for each in budgets:
            used = each.spent_usd + each.reserved_usd + each.unknown_usd
            self._budget_used.set(float(used), {"scope": each.scope})
            if each.limit_usd is not None:
                self._budget_limit.set(float(each.limit_usd), {"scope": each.scope})
        scopes = frozenset(each.scope for each in budgets)
        for scope in self._scopes - scopes:
            self._budget_used.set(0, {"scope": scope})
            self._budget_limit.set(0, {"scope": scope})
        self._scopes = scopes


class AlarmMetrics:
    """Alarms: which are active, and how many were raised."""

    def __init__(self) -> None:
        tags = ("endpoint", "agent", "measure")
        self._active = Gauge("agentcloud_alarms_active", "1 while an alarm lasts", tag_keys=tags)
        self._raised = Counter("agentcloud_alarms_raised_total", "Alarms raised", tag_keys=tags)
        self._known: frozenset[SeriesKey] = frozenset()

    def raised(self, key: SeriesKey) -> None:
        """An alarm of a series was raised."""
        self._raised.inc(1, _alarm_tags(key))

    def active(self, keys: frozenset[SeriesKey]) -> None:
        """These last; told again and again, for Ray drops a gauge that falls silent."""
        for key in keys | self._known:
            self._active.set(int(key in keys), _alarm_tags(key))
        self._known = keys


def _alarm_tags(key: SeriesKey) -> dict[str, str]:
    return {"endpoint": key.endpoint, "agent": key.kind, "measure": str(key.measure)}


def _counts(totals: Totals) -> dict[tuple[str, str], int | Decimal]:
    counts: dict[tuple[str, str], int | Decimal] = {("cost", ""): totals.cost_usd}
    for outcome in _OUTCOMES:
        counts["calls", outcome] = getattr(totals, outcome)
    for direction in _DIRECTIONS:
        counts["tokens", direction] = getattr(totals, f"{direction}_tokens")
    for kind, errors in totals.errors.items():
        counts["errors", kind] = errors
    return counts


def _account_and_family(limiter: str) -> tuple[str, str]:
    account, _, family = limiter.partition("/")
    return account, family


def _tags(endpoint: EndpointSpec) -> dict[str, str]:
    return {"endpoint": endpoint.name, "model": endpoint.model, "kind": endpoint.kind.value}
