"""Who is next: shares by weight, priorities as a head start, no starving, early deadlines first."""

from __future__ import annotations

import random
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import (
    Lease,
    LeaseRequest,
    Outcome,
    Routing,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted, Refused
from agentcloud.cluster.errors import CallTimeout, QueueFull
from agentcloud.cluster.scheduler import SchedulerCore
from tests.cluster.scheduling import fleet, replica

SERVICE_S = 1.0


class Pool:
    """One replica with two slots, calls of a second each, and an endless queue in front."""

    def __init__(self, **config: object) -> None:
        self.clock = FakeClock(0.0)
        self.core = SchedulerCore(fleet(**config), load_catalog(), self.clock, random.Random(1))
        self.core.register([replica(0, slots=2)])
        self.open: list[Lease] = []
        self.served: list[str] = []
        self.refused: list[Refused] = []

    def ask(
        self, call: str, *path: str, priority: int = 0, deadline_s: float | None = None
    ) -> None:
        routing = Routing(priority=priority, budget=path, deadline_s=deadline_s)
        self.core.submit(LeaseRequest(call, "m", 100, 100, routing=routing))

    def step(self) -> None:
        """Decide, let a second pass, end what runs."""
        for decision in self.core.poll():
            if isinstance(decision, Granted):
                self.open.append(decision.lease)
                self.served.append(decision.lease.call_id)
            else:
                self.refused.append(decision)
        self.clock.advance(SERVICE_S)
        for lease in self.open:
            self.core.settle(
                Settlement(
                    lease.lease_id,
                    Outcome.OK,
                    TokenUsage(100, 0, 0, 10),
                    Decimal(0),
                    Timings(0.0, 0.1, SERVICE_S - 0.1, SERVICE_S),
                )
            )
        self.open.clear()


def owners(pool: Pool) -> Counter[str]:
    return Counter(call.split("/")[0] for call in pool.served)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1.0, 2.0, 4.0]), st.integers(1, 3), st.booleans())
def test_tenants_share_by_weight_however_much_each_asks(
    weight: float, more: int, first: bool
) -> None:
    pool = Pool(weights={"tenant:a": weight})
    asks = [("a", 200), ("b", 200 * more)]
    for tenant, count in asks if first else reversed(asks):
        for number in range(count):
            # A tenant's many jobs give it no more.
            pool.ask(f"{tenant}/{number}", f"tenant:{tenant}", f"job:{tenant}{number % more}")
    for _ in range(60):
        pool.step()
    shares = owners(pool)
    assert shares["a"] / shares["b"] == pytest.approx(weight, rel=0.15)


def test_jobs_of_a_tenant_share_and_a_late_one_does_not_wait_for_the_backlog() -> None:
    pool = Pool()
    for number in range(300):
        pool.ask(f"old/{number}", "job:old")
    for _ in range(30):
        pool.step()
    for number in range(20):
        pool.ask(f"new/{number}", "job:new")
    before = len(pool.served)
    for _ in range(20):
        pool.step()
    late = Counter(call.split("/")[0] for call in pool.served[before:])
    assert late["new"] == pytest.approx(20, abs=2)
    assert late["old"] == pytest.approx(20, abs=2)


def test_a_priority_goes_ahead_and_nothing_starves() -> None:
    pool = Pool()
    for number in range(10):
        pool.ask(f"low/{number}", priority=1)
    steps = 0
    while owners(pool)["low"] < 10:
        for number in range(4):
            pool.ask(f"high/{steps}-{number}")
        pool.step()
        steps += 1
        assert steps < 2000, "the low priority starves"
        if steps == 30:
            assert owners(pool)["low"] <= 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1_000, 100_000), min_size=3, max_size=30, unique=True))
def test_the_earliest_deadline_is_first(deadlines: list[int]) -> None:
    pool = Pool()
    pool.ask("busy1")
    pool.ask("busy2")
    # Both slots are taken before the others come.
    pool.open = [each.lease for each in pool.core.poll() if isinstance(each, Granted)]
    for deadline in deadlines:
        pool.ask(str(deadline), deadline_s=float(deadline))
    while len(pool.served) < len(deadlines):
        pool.step()
    assert [int(call) for call in pool.served] == sorted(deadlines)


def test_a_deadline_that_nothing_can_meet_is_refused_at_once_and_says_why() -> None:
    pool = Pool()
    for number in range(40):
        pool.ask(f"learn/{number}")
        pool.step()
    pool.ask("late", deadline_s=0.2)
    pool.step()
    [refused] = pool.refused
    assert isinstance(refused.error, CallTimeout)
    assert "replica:m:0" in str(refused.error)
    assert "late" not in pool.served
    pool.ask("in time", deadline_s=30.0)
    pool.step()
    assert "in time" in pool.served


def test_a_wrong_prediction_does_not_refuse_for_ever() -> None:
    pool = Pool()
    for number in range(40):
        pool.ask(f"learn/{number}")
        pool.step()
    for number in range(60):
        pool.ask(f"late/{number}", deadline_s=0.2)
        pool.step()
    assert 1 <= owners(pool)["late"] <= 6


def test_a_full_queue_refuses_and_keeps_what_waits() -> None:
    pool = Pool(max_waiting=5)
    for number in range(9):
        pool.ask(str(number))
    pool.step()
    assert all(isinstance(each.error, QueueFull) for each in pool.refused)
    assert pool.core.waiting + len(pool.served) + len(pool.refused) == 9
    assert len(pool.refused) == 4
    while pool.core.waiting:
        pool.step()
    assert len(pool.served) == 5
