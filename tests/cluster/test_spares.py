"""Leases in advance: for steady traffic on local endpoints with room, and gone when it ends."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from agentcloud.cluster.contracts import Lease, LeaseRequest, Routing
from agentcloud.cluster.scheduler_local import unused
from agentcloud.cluster.spares import KEEP_S, MOST, Spares
from tests.cluster.scheduling import HAIKU, Bed, hosted, ok, replica

STEADY = LeaseRequest("c", "m", 100, 100)


class Caller:
    """A process with spare leases over a core, without Ray."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.spares = Spares("p")
        self.asked: list[LeaseRequest] = []
        self.count = 0

    def call(self, request: LeaseRequest = STEADY, *, end: bool = True) -> tuple[Lease, bool]:
        """One call; whether it waited for the scheduler. Afterwards everything is exchanged."""
        self.count += 1
        now_s = self.bed.clock.now()
        request = replace(request, call_id=f"c{self.count}")
        lease = self.spares.take(request, now_s)
        waited = lease is None
        if lease is not None:
            self.bed.core.bind(lease.lease_id, request)
        else:
            self.bed.core.submit(request)
        self.asked.extend(self.spares.wanted(request, now_s))
        self.exchange()
        if lease is None:
            lease = self.bed.leases[request.call_id]
        if end:
            self.bed.core.settle(ok(lease))
        return lease, waited

    def exchange(self) -> None:
        for spare in self.asked:
            self.bed.core.submit(spare)
        self.bed.poll()
        for spare in self.asked:
            found = self.bed.leases.get(spare.call_id)
            assert self.spares.decided(spare.call_id, found, self.bed.clock.now())
        self.asked.clear()

    def many(self, count: int, request: LeaseRequest = STEADY, gap_s: float = 0.02) -> list[bool]:
        waited = []
        for _ in range(count):
            waited.append(self.call(request)[1])
            self.bed.clock.advance(gap_s)
        return waited


def test_steady_traffic_waits_for_no_round_trip_and_its_end_gives_everything_back() -> None:
    bed = Bed(replica(0, slots=16))
    caller = Caller(bed)
    waited = caller.many(60)
    assert not any(waited[12:]), "at steady state no call waits"
    assert all(waited[:8]), "nothing is held for a burst of a few"
    assert 1 <= len(caller.spares) <= MOST
    state = bed.core.endpoint("replica:m:0")
    assert state.inflight == len(caller.spares)
    bed.clock.advance(KEEP_S)
    for lease in caller.spares.stale(bed.clock.now()):
        bed.core.settle(unused(lease))
    assert (state.inflight, len(caller.spares), bed.core.inflight) == (0, 0, 0)
    totals = bed.core.totals["replica:m:0"]
    assert (totals.ok, totals.cancelled, totals.expired) == (60, 0, 0), "a spare is no call"


def test_a_taken_spare_is_the_calls_own_lease() -> None:
    bed = Bed(replica(0, slots=16, usd_per_hour=Decimal(1)))
    bed.core.open_budget(("job:a",), Decimal(1))
    caller = Caller(bed)
    request = replace(STEADY, routing=Routing(budget=("job:a",)))
    caller.many(20, request)
    lease, waited = caller.call(request, end=False)
    assert not waited
    assert lease.call_id == f"c{caller.count}"
    before = bed.core.budgets()[1].spent_usd
    bed.core.settle(ok(lease, "0.25"))
    assert bed.core.budgets()[1].spent_usd - before == Decimal("0.25"), "its job pays for it"
    smaller = replace(STEADY, input_tokens=90, routing=Routing(kind="other"))
    lease, waited = caller.call(smaller, end=False)
    assert not waited
    ended = bed.core.settle(ok(lease))
    assert ended is not None
    assert (ended.kind, ended.input_tokens) == ("other", 90), "it is judged and learned from as it"


def test_a_spare_is_only_for_requests_that_it_fits() -> None:
    bed = Bed(replica(0, slots=16))
    caller = Caller(bed)
    caller.many(20)
    assert len(caller.spares)
    for other in (
        replace(STEADY, input_tokens=120),  # larger than any before
        replace(STEADY, routing=Routing(deadline_s=5.0)),
        replace(STEADY, routing=Routing(idempotent=True)),
        replace(STEADY, routing=Routing(priority=1)),
        replace(STEADY, attempt=2),
        replace(STEADY, stream=True),
    ):
        assert caller.call(other)[1], other
    assert not caller.call(STEADY)[1]
    bed.clock.advance(KEEP_S + 0.1)
    assert caller.call(STEADY)[1], "too old"


def test_no_spare_where_others_wait_or_the_room_is_nearly_taken_or_calls_are_paid() -> None:
    bed = Bed(replica(0, slots=4), hosted(100))
    caller = Caller(bed)
    held = [caller.call(end=False)[0] for _ in range(3)]
    assert all(caller.many(20)), "three quarters are taken"
    for _ in range(2):
        bed.core.settle(ok(held.pop()))
    bed.clock.advance(2.0)
    caller.many(20)
    assert len(caller.spares)
    paid = replace(STEADY, model=HAIKU)
    assert all(caller.many(20, paid))
    assert bed.core.snapshot()["refused"] == 0, "nobody was refused a call"
