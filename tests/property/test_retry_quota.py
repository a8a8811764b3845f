"""No storms: what an endpoint is given beyond first sends, under any history and any outage."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from agentcloud.cluster.contracts import Lease
from agentcloud.cluster.errors import RetriesSpent
from agentcloud.cluster.retry_quota import RetryQuotas
from tests.cluster.scheduling import Bed, failed, fleet, hosted, ok, replica


@given(
    st.floats(0.0, 2.0),
    st.integers(0, 50),
    st.lists(st.tuples(st.booleans(), st.sampled_from("ab")), max_size=400),
)
def test_later_sends_never_pass_their_share(
    ratio: float, allowance: int, sends: list[tuple[bool, str]]
) -> None:
    quotas = RetryQuotas(ratio, allowance)
    firsts, laters = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for is_first, name in sends:
        if is_first:
            quotas.first(name)
            firsts[name] += 1
        elif quotas.has(name):
            quotas.later(name)
            laters[name] += 1
        assert laters[name] <= ratio * firsts[name] + allowance + 1e-6
        assert quotas.left(name) >= 0


def test_the_share_is_given_in_full() -> None:
    quotas = RetryQuotas(0.1, 2)
    given_later = 0
    for _ in range(100):
        quotas.first("a")
        if quotas.has("a"):
            quotas.later("a")
            given_later += 1
    assert given_later == 12


@settings(max_examples=60, deadline=None)
@given(
    calls=st.integers(1, 80),
    ratio=st.sampled_from([0.0, 0.1, 0.2]),
    allowance=st.integers(0, 8),
    replicas=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_a_permanent_outage_is_no_storm(
    calls: int, ratio: float, allowance: int, replicas: int, seed: int
) -> None:
    """Every send fails; each call would be sent four times; nothing waits for ever."""
    rng = random.Random(seed)
    names = [f"replica:m:{index}" for index in range(replicas)]
    bed = Bed(
        *(replica(index, slots=4) for index in range(replicas)),
        config=fleet(retry={"ratio": ratio, "allowance": allowance}),
    )
    given: dict[str, int] = dict.fromkeys(names, 0)
    firsts: dict[str, int] = dict.fromkeys(names, 0)
    failed_at: dict[int, set[str]] = {}
    open_leases: list[tuple[int, int, Lease]] = []
    to_ask = [(number, 1) for number in range(calls)]
    pending: dict[str, tuple[int, int]] = {}
    for _ in range(20_000):
        if to_ask and rng.random() < 0.5:
            number, attempt = to_ask.pop(rng.randrange(len(to_ask)))
            call_id = f"c{number}.{attempt}"
            pending[call_id] = (number, attempt)
            avoid = frozenset(failed_at.get(number, ()))
            bed.ask(call_id, attempt=attempt, avoid=avoid)
        elif open_leases:
            number, attempt, lease = open_leases.pop(rng.randrange(len(open_leases)))
            failed_at.setdefault(number, set()).add(lease.endpoint.name)
            bed.tell(failed(lease, "overloaded_error"))
            if attempt < 4:
                to_ask.append((number, attempt + 1))
        else:
            bed.wait(30.0)
        for call_id in list(pending):
            if call_id in bed.leases:
                number, attempt = pending.pop(call_id)
                lease = bed.leases[call_id]
                open_leases.append((number, attempt, lease))
                given[lease.endpoint.name] += 1
                firsts[lease.endpoint.name] += attempt == 1
            elif call_id in bed.errors:
                del pending[call_id]
                assert isinstance(bed.errors[call_id], RetriesSpent)
        if not (to_ask or open_leases or pending):
            break
    assert not pending, "every call has its answer or its error"
    for name in names:
        assert given[name] <= (1 + ratio) * firsts[name] + allowance + 1e-6
    assert sum(given.values()) <= (1 + ratio) * calls + allowance * replicas + 1e-6


def test_a_spent_endpoint_is_passed_over_for_one_that_is_not() -> None:
    bed = Bed(replica(0, slots=9), replica(1, slots=9), config=fleet(retry={"allowance": 1}))
    avoid = frozenset({"replica:m:0"})
    assert bed.take("a.2", attempt=2, avoid=avoid).endpoint.name == "replica:m:1"
    # The other's quota is spent: the call goes back to the one that failed it.
    assert bed.take("b.2", attempt=2, avoid=avoid).endpoint.name == "replica:m:0"
    bed.ask("c.2", attempt=2, avoid=avoid)
    error = bed.errors["c.2"]
    assert isinstance(error, RetriesSpent)
    assert "its share of later sends (20% of first ones and 1 more; `retry.ratio`" in str(error)
    assert bed.core.snapshot()["later_sends_left"] == {"replica:m:0": 0, "replica:m:1": 0}
    # First sends go on, and earn later ones.
    for index in range(12):
        bed.tell(ok(bed.take(f"d{index}")))
    assert bed.ask("e.2", attempt=2) is not None


def test_what_the_scheduler_paces_itself_is_not_charged() -> None:
    bed = Bed(hosted(slots=50), config=fleet(retry={"allowance": 0, "ratio": 0}))
    lease = bed.take("a")
    bed.tell(failed(lease, "rate_limit_error", retry_after_s=20.0))
    assert bed.ask("a.2", attempt=2, paced=True) is None
    assert bed.wait(20.1) == ["a.2"], "as the server asked, and no sooner"
    assert "a.2" in bed.leases
