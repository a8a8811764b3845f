"""Schedulers that die at any moment: no cap is passed, no money is forgotten, none is paid twice.

The core runs with its journal; what it drains is on the disk of the test, and whatever it granted
only reaches its holder after that. A restart is a new core that is given that disk.
"""

from __future__ import annotations

import random
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import Lease, LeaseRequest, Outcome, Routing, Settlement
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.former import Held
from agentcloud.cluster.journal import (
    Batch,
    BudgetRow,
    Journal,
    LeaseState,
    PaidLease,
    Saved,
    SavedLease,
)
from agentcloud.cluster.scheduler import SchedulerCore
from tests.cluster.scheduling import HAIKU, fleet, hosted, replica

CAP = Decimal("0.01")
JOB = ("job:a",)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["paid"] * 4
            + ["local"] * 2
            + ["settle"] * 4
            + ["unknown", "late", "die", "die lost", "wait", "reopen"]
        ),
        st.integers(0, 100),
    ),
    max_size=60,
)


class Disk:
    """What the batches said, as the store keeps it."""

    def __init__(self) -> None:
        self.budgets: dict[tuple[str, ...], BudgetRow] = {}
        self.leases: dict[str, tuple[PaidLease, LeaseState, float]] = {}

    def write(self, batch: Batch | None, now_s: float) -> None:
        if batch is None:
            return
        for row in batch.granted:
            self.leases[row.lease_id] = row, LeaseState.GRANTED, now_s + row.lifetime_s
        for end in batch.ended:
            lease, state, expires_s = self.leases[end.lease_id]
            if state in (LeaseState.GRANTED, LeaseState.UNKNOWN):
                self.leases[end.lease_id] = lease, end.state, expires_s
        for path in batch.closed:
            self.budgets.pop(path, None)
        self.budgets |= {row.path: row for row in batch.budgets}

    def saved(self, now_s: float) -> Saved:
        return Saved(
            list(self.budgets.values()),
            [
                SavedLease(row, expires_s - now_s, state is LeaseState.GRANTED)
                for row, state, expires_s in self.leases.values()
                if state in (LeaseState.GRANTED, LeaseState.UNKNOWN)
            ],
        )


class World:
    """A core, its disk, and one process that asks, restarts told."""

    def __init__(self) -> None:
        self.clock = FakeClock(100.0)
        self.disk = Disk()
        self.starts = 0
        self.asked: dict[str, LeaseRequest] = {}
        self.waiting: dict[str, LeaseRequest] = {}
        self.held: dict[str, tuple[LeaseRequest, Lease, float]] = {}
        self.spent = self.unknown = Decimal(0)
        self.lost: list[Lease] = []
        self.begin()
        self.core.open_budget(JOB, CAP)

    def begin(self) -> None:
        self.starts += 1
        self.core = SchedulerCore(
            fleet(fleet_budget_usd=str(CAP)),
            load_catalog(),
            self.clock,
            random.Random(self.starts),
            journal=Journal(),
        )
        if self.starts > 1:
            self.core.restore(self.disk.saved(self.clock.now()))

    def turn(self, *, lose: bool = False) -> None:
        """Poll, write, and only then tell; `lose`: it dies between the two."""
        decisions = self.core.poll()
        self.disk.write(self.core.recorded(), self.clock.now())
        for decision in decisions if not lose else ():
            request = self.waiting.pop(decision.call_id)
            if isinstance(decision, Granted):
                self.held[decision.lease.lease_id] = request, decision.lease, self.clock.now()

    def ask(self, model: str) -> None:
        call_id = f"c{len(self.asked)}"
        request = LeaseRequest(call_id, model, 100, 100, routing=Routing(budget=JOB), holder="p")
        self.asked[call_id] = self.waiting[call_id] = request
        self.core.submit(request)

    def settle(self, pick: int, *, unknown: bool) -> None:
        if not self.held:
            return
        lease_id = sorted(self.held)[pick % len(self.held)]
        _, lease, _ = self.held.pop(lease_id)
        if unknown and lease.reserved_usd:
            self.lost.append(lease)
            self.unknown += lease.reserved_usd
            self.core.settle(Settlement(lease_id, Outcome.UNKNOWN))
            return
        cost = lease.reserved_usd * (pick % 100) / 100
        self.spent += cost
        self.core.settle(Settlement(lease_id, Outcome.OK, cost_usd=cost))

    def late(self, pick: int) -> None:
        if self.lost:
            lease = self.lost.pop(pick % len(self.lost))
            self.unknown -= lease.reserved_usd
            self.spent += lease.reserved_usd / 2
            settlement = Settlement(lease.lease_id, Outcome.OK, cost_usd=lease.reserved_usd / 2)
            self.core.settle(settlement)

    def restart(self, *, told_first: bool) -> None:
        self.begin()
        specs = [replica(0), hosted(5)]
        if not told_first:
            self.core.register(specs)
        now_s = self.clock.now()
        self.core.adopt([Held(req, lease, now_s - at_s) for req, lease, at_s in self.held.values()])
        if told_first:
            self.core.register(specs)
        for request in self.waiting.values():
            self.core.submit(request)

    def check(self) -> None:
        root = self.core.budgets()[0]
        assert root.spent_usd + root.reserved_usd + root.unknown_usd <= CAP
        assert root.spent_usd == self.spent
        assert root.unknown_usd == self.unknown
        held = sum((lease.reserved_usd for _, lease, _ in self.held.values()), Decimal(0))
        assert root.reserved_usd == held
        for state in self.core.budgets()[1:]:
            assert (state.spent_usd, state.unknown_usd) == (self.spent, self.unknown)
            assert state.reserved_usd == held
        for name in ("replica:m:0", f"anthropic/{HAIKU}"):
            open_here = sum(lease.endpoint.name == name for _, lease, _ in self.held.values())
            assert self.core.endpoint(name).inflight == open_here


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_no_death_of_the_scheduler_loses_money_or_passes_a_cap(
    steps: list[tuple[str, int]],
) -> None:
    world = World()
    world.core.register([replica(0), hosted(5)])
    for what, pick in steps:
        lose = what == "die lost"
        if what == "paid":
            world.ask(HAIKU)
        elif what == "local":
            world.ask("m")
        elif what in ("settle", "unknown"):
            world.settle(pick, unknown=what == "unknown")
        elif what == "late":
            world.late(pick)
        elif what == "wait":
            world.clock.advance(pick / 50)
        elif what == "reopen":
            world.core.open_budget(JOB, CAP)
        if what in ("die", "die lost"):
            if lose:
                world.ask(HAIKU)
            world.turn(lose=lose)
            world.restart(told_first=bool(pick % 2))
        world.turn()
        world.check()


def test_a_lease_that_nobody_tells_of_expires_and_its_money_is_unknown() -> None:
    world = World()
    world.core.register([replica(0), hosted(5)])
    world.ask(HAIKU)
    world.turn()
    ((_, lease, _),) = world.held.values()
    world.begin()
    assert world.core.inflight == 1
    assert world.core.budgets()[0].reserved_usd == lease.reserved_usd
    wake_s = world.core.next_wake_s()
    assert wake_s is not None
    world.clock.advance(wake_s - world.clock.now())
    world.core.expire()
    world.disk.write(world.core.recorded(), world.clock.now())
    root = world.core.budgets()[0]
    assert (root.reserved_usd, root.unknown_usd) == (Decimal(0), lease.reserved_usd)
    # Its holder was only slow, and a third scheduler runs: the truth still replaces the unknown.
    world.begin()
    world.core.settle(Settlement(lease.lease_id, Outcome.OK, cost_usd=lease.reserved_usd / 4))
    root = world.core.budgets()[0]
    assert (root.spent_usd, root.unknown_usd) == (lease.reserved_usd / 4, Decimal(0))


def test_a_process_that_does_not_come_back_leaves_its_money_unknown() -> None:
    world = World()
    world.core.register([replica(0), hosted(5)])
    world.ask(HAIKU)
    world.turn()
    ((_, lease, _),) = world.held.values()
    world.begin()
    world.core.drop_holder("p")
    assert world.core.budgets()[0].unknown_usd == lease.reserved_usd
    assert world.core.inflight == 0
