"""Decisions a second of the pure core, with 100,000 requests waiting.

A decision is one settled lease, the choice of who is next and where, and the new lease with its
reservations; the freed place in the queue is filled by a new request, so 100,000 keep waiting.
Endpoints: replicas of three local models in two tiers, and four hosted models at two accounts with
limits; only the number of replicas grows, and the classes of equals stay seven. Requests: three
targets, four prompt sizes, three priorities, budgets of three levels with caps.

Time is the process's CPU time, so that neighbours on a shared machine count less: on an idle
machine it equals the wall's. The best of the rounds counts; every round is in the file.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.config import FleetConfig, parse_fleet
from agentcloud.cluster.contracts import (
    EndpointKind,
    EndpointSpec,
    Lease,
    LeaseRequest,
    Outcome,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.explain import KEPT
from agentcloud.cluster.scheduler import SchedulerCore
from agentcloud.cluster.scheduler_actor import GC_OBJECTS
from bench import report

WAITING: Final = 100_000
DECISIONS: Final = 40_000
ROUNDS: Final = 3
ENDPOINTS: Final = (10, 100, 1000)
BOUNDS: Final = {
    "acquire_settle_us_100": ("<=", 25.0),
    "decisions_per_s_100": (">=", 20_000.0),
    "cost_1000_vs_100": ("<=", 2.0),
}

_LOCAL = (("llama-8b", "small", 0.6), ("qwen-7b", "small", 0.3), ("llama-70b", "large", 0.1))
_HOSTED = (
    ("claude-haiku-5-5", "small", "main"),
    ("claude-haiku-5-5", "small", "spare"),
    ("claude-sonnet-5-5", "large", "main"),
    ("claude-opus-5-5", "large", "main"),
)
_JOBS = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """One size of pool."""

    endpoints: int
    decisions_per_s: float
    us_per_decision: float
    submit_us: float
    acquire_settle_us: float
    hosted_share: float
    waiting: int


def fleet() -> FleetConfig:
    """The fleet.yaml of the measurement."""
    limits = {
        "*": {
            "requests_per_minute": 4000,
            "input_tokens_per_minute": 2_000_000,
            "output_tokens_per_minute": 400_000,
        }
    }
    return parse_fleet(
        {
            "models": {name: {"path": name, "tier": tier} for name, tier, _ in _LOCAL},
            "accounts": {"main": {"limits": limits}, "spare": {"limits": limits}},
            "hosted": {model: {"account": "main"} for model, _, _ in _HOSTED},
            "fleet_budget_usd": 1_000_000,
        }
    )


def specs(endpoints: int) -> list[EndpointSpec]:
    """A pool of so many endpoints."""
    catalog = load_catalog()
    found = []
    for model, tier, account in _HOSTED:
        entry = catalog.entries[model]
        found.append(
            EndpointSpec(
                f"{account}/{model}",
                EndpointKind.HOSTED,
                model,
                tier,
                entry.context_tokens,
                entry.max_output_tokens,
                64,
                account,
                entry.family,
                entry.features,
            )
        )
    replicas = endpoints - len(found)
    for model, tier, share in _LOCAL:
        count = max(1, round(replicas * share))
        found.extend(
            EndpointSpec(
                f"replica:{model}:{index}",
                EndpointKind.LOCAL,
                model,
                tier,
                32_768,
                8_192,
                32,
                usd_per_hour=Decimal("2.5"),
            )
            for index in range(count)
        )
    return found[:endpoints]


class Load:
    """Requests, and settlements that look like what was predicted of them."""

    def __init__(self, core: SchedulerCore, clock: FakeClock, rng: random.Random) -> None:
        self.core = core
        self.clock = clock
        self.rng = rng
        self.count = 0
        self.open: deque[Lease] = deque()
        self.hosted = 0
        self.granted = 0

    def request(self) -> LeaseRequest:
        """The next request."""
        rng = self.rng
        self.count += 1
        target = rng.choice(("small", "small", "small", "large", "llama-8b"))
        job = self.count % _JOBS
        return LeaseRequest(
            f"c{self.count}",
            target,
            rng.choice((300, 700, 1500, 6000)),
            rng.choice((256, 1024)),
            routing=Routing(
                priority=rng.choice((0, 0, 0, 1, -1)),
                budget=(f"job:j{job}", f"task:j{job}/{self.count % 100}"),
            ),
        )

    def settlement(self, lease: Lease) -> Settlement:
        """The truth about a lease."""
        hosted = lease.endpoint.kind is EndpointKind.HOSTED
        output = self.rng.randrange(40, 240)
        return Settlement(
            lease.lease_id,
            Outcome.OK,
            TokenUsage(700, 0, 0, output),
            Decimal("0.00021") if hosted else Decimal(0),
            Timings(0.0, 0.1, output * 0.02, 0.1 + output * 0.02),
        )

    def poll(self) -> int:
        """Take decisions in."""
        decisions = self.core.poll()
        for decision in decisions:
            if not isinstance(decision, Granted):
                raise decision.error
            self.open.append(decision.lease)
            self.hosted += decision.lease.endpoint.kind is EndpointKind.HOSTED
        self.granted += len(decisions)
        return len(decisions)


def build(endpoints: int, seed: int) -> Load:
    """A core with that pool and nothing waiting."""
    clock, rng = FakeClock(1000.0), random.Random(seed)
    core = SchedulerCore(fleet(), load_catalog(), clock, rng)
    core.register(specs(endpoints))
    for job in range(_JOBS):
        core.open_budget((f"job:j{job}",), Decimal(50_000))
        core.open_budget((f"job:j{job}", f"task:j{job}/1"), Decimal(5_000))
    return Load(core, clock, rng)


def measure(endpoints: int, seed: int) -> Measured:
    """Fill the queue, then settle, decide and refill."""
    load = build(endpoints, seed)
    _idle_us(load, 2 * KEPT)  # Until as many calls are kept, to be explained, as ever are.
    idle_us = _idle_us(load)
    slots = sum(spec.max_concurrency for spec in specs(endpoints))
    begin = time.process_time()
    for _ in range(WAITING + slots):
        load.core.submit(load.request())
        load.poll()
    submit_us = (time.process_time() - begin) / (WAITING + slots) * 1e6
    # A settlement each so many seconds keeps slots busy for a few seconds each, as real ones are.
    step_s = 3.0 / max(1, len(load.open))
    load.granted = load.hosted = 0
    gc.collect()
    gc.freeze()
    spent_s = 0.0
    while load.granted < DECISIONS:
        settlements = [load.settlement(load.open.popleft()) for _ in range(min(64, len(load.open)))]
        requests = [load.request() for _ in settlements]
        begin = time.process_time()
        for settlement, request in zip(settlements, requests, strict=True):
            load.clock.advance(step_s)
            load.core.settle(settlement)
            load.core.submit(request)
            load.poll()
        spent_s += time.process_time() - begin
    gc.unfreeze()
    per_s = load.granted / spent_s
    return Measured(
        endpoints,
        per_s,
        1e6 / per_s,
        submit_us,
        idle_us,
        load.hosted / load.granted,
        load.core.waiting,
    )


def _idle_us(load: Load, calls: int = 6400, together: int = 32) -> float:
    """Acquire and settle of one call on an idle pool, microseconds of the core's time.

    Requests and settlements are made beforehand: their making is not the core's.
    """
    spent_s = 0.0
    for _ in range(calls // together):
        requests = [load.request() for _ in range(together)]
        begin = time.process_time()
        for request in requests:
            load.core.submit(request)
            load.poll()
        spent_s += time.process_time() - begin
        load.clock.advance(0.05 * together)
        settlements = [load.settlement(load.open.popleft()) for _ in range(together)]
        begin = time.process_time()
        for settlement in settlements:
            load.core.settle(settlement)
        spent_s += time.process_time() - begin
    return spent_s / calls * 1e6


def main() -> int:
    """Measure all sizes in turn, several rounds; the best round of each counts."""
    gc.set_threshold(GC_OBJECTS)  # As in the actor.
    rounds: dict[int, list[Measured]] = {endpoints: [] for endpoints in ENDPOINTS}
    for index in range(ROUNDS):
        for endpoints in ENDPOINTS:
            rounds[endpoints].append(measure(endpoints, seed=index))
    best = {size: max(each, key=lambda one: one.decisions_per_s) for size, each in rounds.items()}
    report.table(
        f"scheduler core, {WAITING:,} waiting, best of {ROUNDS} rounds",
        (
            "endpoints",
            "decisions/s",
            "us/decision",
            "us/submit",
            "us/acquire+settle idle",
            "hosted",
        ),
        [
            (
                str(size),
                one.decisions_per_s,
                one.us_per_decision,
                one.submit_us,
                one.acquire_settle_us,
                f"{one.hosted_share:.1%}",
            )
            for size, one in best.items()
        ],
    )
    ratios: dict[str, Any] = {
        "acquire_settle_us_100": min(each.acquire_settle_us for each in rounds[100]),
        "decisions_per_s_100": best[100].decisions_per_s,
        "cost_1000_vs_100": best[1000].us_per_decision / best[100].us_per_decision,
    }
    kept = report.ratios_table(ratios, BOUNDS)
    figures = {
        str(size): {
            "best": {field: getattr(best[size], field) for field in Measured.__slots__},
            "decisions_per_s_rounds": [one.decisions_per_s for one in each],
        }
        for size, each in rounds.items()
    }
    print(report.write("scheduler", figures, ratios, BOUNDS))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
