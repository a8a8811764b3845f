"""What others wait: the formula against a queue played out, and what it does to choices."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.burden import Burden
from agentcloud.cluster.contracts import Policy, Routing, Timings, TokenUsage
from tests.cluster.scheduling import Bed, hosted, ok, replica

RATE = 2.0
WORK_S = 0.2
LOCAL = Routing(endpoint="replica:m:0")


def waits_s(arrivals_s: list[float], works_s: list[float], ahead_s: float) -> float:
    """All waiting of calls served first come, first served, behind so much that is there at 0."""
    free_s, waited_s = ahead_s, 0.0
    for at_s, work_s in zip(arrivals_s, works_s, strict=True):
        begins_s = max(free_s, at_s)
        waited_s += begins_s - at_s
        free_s = begins_s + work_s
    return waited_s


def test_a_prompt_makes_others_wait_as_long_as_in_a_queue_played_out() -> None:
    rng = random.Random(5)
    mine_s, ahead_s, rounds = 3.0, 2.0, 2000
    waited_s = 0.0
    for _ in range(rounds):
        arrivals_s, at_s = [], 0.0
        while at_s < 60.0:
            at_s += rng.expovariate(RATE)
            arrivals_s.append(at_s)
        works_s = [rng.expovariate(1.0 / WORK_S) for _ in arrivals_s]
        waited_s += waits_s(arrivals_s, works_s, ahead_s + mine_s)
        waited_s -= waits_s(arrivals_s, works_s, ahead_s)
    burden = Burden()
    for call in range(400):
        burden.came(WORK_S, 1.0, call / RATE)
    predicted_s = burden.weight(1, 400 / RATE) * mine_s * (ahead_s + 0.5 * mine_s)
    print(f"others wait: {waited_s / rounds:.2f} s, predicted {predicted_s:.2f} s")
    assert predicted_s == pytest.approx(waited_s / rounds, rel=0.1)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 20), st.sampled_from([0.05, 1.0, 100.0]))),
    st.integers(1, 50),
)
def test_it_is_finite_shared_by_equals_and_forgotten(
    calls: list[tuple[float, float, float]], endpoints: int
) -> None:
    burden, now_s = Burden(), 0.0
    for gap_s, work_s, worth in calls:
        now_s += gap_s
        burden.came(work_s, worth, now_s)
    weight = burden.weight(endpoints, now_s)
    assert 0.0 <= weight < float("inf")
    assert burden.weight(endpoints + 1, now_s) <= weight
    assert burden.weight(endpoints, now_s + 200.0) <= weight * 1e-6
    assert burden.weight(endpoints, now_s - 1e6) == weight  # a clock that jumped back
    worths = [worth for _, _, worth in calls] or [1.0]
    assert min(worths) * (1 - 1e-9) <= burden.worth <= max(worths) * (1 + 1e-9)


def busy() -> Bed:
    """One replica that reads ten tokens in a millisecond; forty short calls a second come."""
    local = replace(replica(0, slots=64), context_tokens=100_000)
    bed = Bed(local, hosted(64))
    for call in range(400):
        tokens = 20 * (1 + call % 9)
        lease = bed.take(f"c{call}", input_tokens=tokens, stream=True, routing=LOCAL)
        bed.wait(0.025)
        timings = Timings(0.0, 0.002 + tokens * 1e-4, 0.01, 0.02)
        bed.tell(replace(ok(lease), usage=TokenUsage(tokens, 0, 0, 20), timings=timings))
    return bed


def test_a_long_prompt_leaves_a_busy_replica_to_many_short_ones() -> None:
    bed = busy()
    lease = bed.take("long", input_tokens=6_000, stream=True)
    local, remote = sorted(lease.considered, key=lambda each: each.endpoint != "replica:m:0")
    assert lease.endpoint.name == remote.endpoint
    assert local.others_s > 5 * local.total_s
    assert "and others wait" in lease.reason
    assert bed.take("short", input_tokens=100, stream=True).endpoint.name == local.endpoint
    # Where nobody comes any more it makes nobody wait.
    bed.wait(120.0)
    alone = bed.take("alone", input_tokens=6_000, stream=True)
    assert alone.endpoint.name == local.endpoint
    assert "others wait" not in alone.reason


def test_a_caller_who_saves_pays_nothing_for_others() -> None:
    bed = busy()
    routing = Routing(policy=Policy.COST)
    lease = bed.take("long", input_tokens=6_000, stream=True, routing=routing)
    assert lease.endpoint.name == "replica:m:0"
