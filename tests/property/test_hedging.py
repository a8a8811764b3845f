"""How many calls are sent twice, and from when on a call is slow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.config_rules import Hedge
from agentcloud.cluster.contracts import Routing
from agentcloud.cluster.errors import NoEndpoint
from agentcloud.cluster.hedging import Hedges
from agentcloud.cluster.pool import EndpointClass
from tests.cluster.scheduling import Bed, fleet, hosted, ok, replica

MARKED = Routing(idempotent=True)


@given(st.floats(0.0, 1.0), st.lists(st.booleans(), max_size=300))
def test_second_sends_never_pass_their_share(share: float, sends: list[bool]) -> None:
    hedges = Hedges(Hedge(max_share=share))
    firsts = seconds = 0
    for is_first in sends:
        if is_first:
            hedges.first()
            firsts += 1
        elif hedges.has():
            hedges.take()
            seconds += 1
        assert seconds <= share * firsts + 1 + 1e-6
    if share == 0.0:
        assert seconds == 0


@given(st.lists(st.floats(0.01, 100.0), min_size=20, max_size=60))
def test_slow_is_slower_than_nearly_all(took_s: list[float]) -> None:
    hedges, cls = Hedges(Hedge()), EndpointClass(replica(0), None)
    for number, seconds in enumerate(took_s):
        assert (hedges.after_s(cls) is None) == (number < 20)
        hedges.learn(cls, seconds)
    slow_s = Hedges(Hedge()).after_s(cls)
    assert slow_s is None, "another scheduler knows nothing"
    fresh = Hedges(Hedge())
    for seconds in took_s:
        fresh.learn(cls, seconds)
    after_s = fresh.after_s(cls)
    assert after_s in took_s
    assert sum(seconds <= after_s for seconds in took_s) >= 0.95 * len(took_s)
    assert sum(seconds < after_s for seconds in took_s) < 0.95 * len(took_s)


def test_the_scheduler_tells_only_marked_calls_when_they_are_slow() -> None:
    bed = Bed(replica(0), replica(1))
    for index in range(20):
        lease = bed.take(f"a{index}", routing=MARKED)
        assert lease.hedge_after_s is None, "no data yet"
        bed.clock.advance(2.0)
        bed.tell(ok(lease))
    assert bed.take("b", routing=Routing()).hedge_after_s is None
    assert bed.take("c", routing=MARKED).hedge_after_s == 2.0


def test_a_second_send_is_granted_at_once_elsewhere_or_refused() -> None:
    bed = Bed(replica(0, slots=2), replica(1, slots=1), config=fleet(hedge={"max_share": 0.0625}))
    firsts = frozenset({"replica:m:0"})
    bed.take("busy", routing=Routing(endpoint="replica:m:1"))
    hedge: dict[str, Any] = {"attempt": 2, "hedge": True, "routing": MARKED, "avoid": firsts}
    assert bed.ask("a.2h", **hedge) is None
    assert "no other endpoint is free" in str(bed.errors["a.2h"]), "nobody waits in line with it"
    assert bed.core.waiting == 0
    bed.tell(ok(bed.leases["busy"]))
    lease = bed.take("b.2h", **hedge)
    assert lease.endpoint.name == "replica:m:1"
    bed.tell(ok(lease))
    bed.ask("c.2h", **hedge)
    assert "share of calls that may be hedged is used up" in str(bed.errors["c.2h"])
    for index in range(16):
        bed.tell(ok(bed.take(f"d{index}", routing=MARKED)))
    assert bed.ask("d.2h", **hedge) is not None
    alone = Bed(replica(0))
    alone.ask("a.2h", **hedge)
    assert "no other endpoint" in str(alone.errors["a.2h"])


def test_a_second_send_never_waits_for_money() -> None:
    first, other = hosted(), replace(hosted(), name="anthropic/other")
    bed = Bed(first, other)
    worst = bed.take("probe").reserved_usd
    bed.core.open_budget(("job:a",), worst)
    routing = Routing(idempotent=True, budget=("job:a",))
    slow = bed.take("a", routing=routing)
    avoid = frozenset({slow.endpoint.name})
    bed.ask("a.2h", attempt=2, hedge=True, routing=routing, avoid=avoid)
    assert isinstance(bed.errors["a.2h"], NoEndpoint)
    assert bed.core.snapshot()["waiting_for_budget"] == 0
    bed.tell(ok(slow))
    assert bed.core.inflight == 1, "the probe's alone"
