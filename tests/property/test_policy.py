"""Choosing: held against exhaustive search, and every reason against what it claims."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.contracts import Policy
from agentcloud.cluster.policy import TIME_WEIGHT, Candidate, choose, reason, runner_up

USD_PER_HOUR = 2.0
POLICIES = st.sampled_from(list(Policy))
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.sampled_from(["replica:small:0", "main/haiku", "other/haiku"]),
        cost_usd=st.floats(0, 1),
        wait_s=st.floats(0, 600),
        service_s=st.floats(0, 600),
        standing=st.just(""),
        felt_s=st.none() | st.floats(0, 600),
        others_s=st.just(0.0) | st.floats(0, 600),
        worth=st.floats(0.05, 100),
    ),
    min_size=1,
    max_size=8,
)


def scale(policy: Policy) -> float:
    return USD_PER_HOUR * TIME_WEIGHT[policy] / 3600.0


def usd_of(candidate: Candidate, policy: Policy) -> float:
    """Money, own time, and that of others, who are not worth more to one who saves."""
    others = USD_PER_HOUR / 3600.0 * (TIME_WEIGHT[policy] if policy is Policy.COST else 1.0)
    return (
        candidate.cost_usd
        + scale(policy) * candidate.waited_s
        + others * candidate.worth * candidate.others_s
    )


@given(CANDIDATES, POLICIES)
def test_without_a_deadline_money_plus_time_is_least(
    candidates: list[Candidate], policy: Policy
) -> None:
    chosen = choose(candidates, policy, None, USD_PER_HOUR)
    scores = [usd_of(each, policy) for each in candidates]
    assert scores[chosen] <= min(scores) * (1 + 1e-9)


@given(CANDIDATES, POLICIES, st.floats(0, 1200))
def test_a_deadline_is_met_if_anything_can_meet_it(
    candidates: list[Candidate], policy: Policy, left_s: float
) -> None:
    chosen = candidates[choose(candidates, policy, left_s, USD_PER_HOUR)]
    in_time = [each for each in candidates if each.total_s <= left_s]
    if not in_time:
        assert chosen.total_s == min(each.total_s for each in candidates)
        return
    assert chosen in in_time
    if policy is not Policy.LATENCY:
        # The cheapest, but for ties: an hour in time counts a thousandth of one waited.
        cheapest = min(in_time, key=lambda each: each.cost_usd)
        time_usd = usd_of(cheapest, policy) - cheapest.cost_usd
        assert chosen.cost_usd <= cheapest.cost_usd + 1e-3 * time_usd + 1e-12


@given(CANDIDATES, POLICIES, st.none() | st.floats(0, 1200))
def test_what_is_worse_in_everything_never_changes_the_choice(
    candidates: list[Candidate], policy: Policy, left_s: float | None
) -> None:
    chosen = choose(candidates, policy, left_s, USD_PER_HOUR)
    best = candidates[chosen]
    worse = Candidate(
        "worse",
        best.cost_usd + 0.01,
        best.wait_s + 1,
        best.service_s,
        "",
        best.felt_s,
        best.others_s,
        best.worth,
    )
    assert choose([*candidates, worse], policy, left_s, USD_PER_HOUR) == chosen


@given(CANDIDATES, POLICIES)
def test_the_runner_up_is_the_best_of_the_others(
    candidates: list[Candidate], policy: Policy
) -> None:
    chosen = choose(candidates, policy, None, USD_PER_HOUR)
    others = candidates[:chosen] + candidates[chosen + 1 :]
    other = runner_up(candidates, chosen, policy, USD_PER_HOUR)
    if not others:
        assert other is None
        return
    assert other is not None
    assert other in others
    assert usd_of(other, policy) <= min(usd_of(each, policy) for each in others) * (1 + 1e-9)


@given(CANDIDATES, POLICIES, st.none() | st.floats(1, 1200))
def test_a_reason_claims_only_what_is_so(
    candidates: list[Candidate], policy: Policy, left_s: float | None
) -> None:
    chosen = choose(candidates, policy, left_s, USD_PER_HOUR)
    best = candidates[chosen]
    other = runner_up(candidates, chosen, policy, USD_PER_HOUR)
    text = reason(candidates, chosen, len(candidates), policy, left_s, "", other)
    claim = text.split(":")[0]
    if "cheapest" in claim and left_s is None:
        assert best.cost_usd == min(each.cost_usd for each in candidates)
    if "fastest" in claim and "deadline" in claim:
        assert best.total_s == min(each.total_s for each in candidates)
    elif "fastest" in claim:
        assert best.waited_s == min(each.waited_s for each in candidates)
    assert ("others wait" in text.split(";")[0]) == (best.others_s >= 0.1)
    if left_s is not None:
        assert ("will be missed" in claim) == (best.total_s > left_s and len(candidates) > 1)
    assert ("only one able" in claim) == (len(candidates) == 1)
    assert (other is None) == (";" not in text)
    assert re.search(r"predicted [\d.e+-]+ s( to the first token)?, \$\d", text)


def test_the_reason_of_a_stream_is_its_first_token() -> None:
    soon = Candidate("soon", 0.0, 0.0, 9.0, "", felt_s=0.2)
    later = Candidate("later", 0.0, 0.0, 3.0, "", felt_s=0.5)
    text = reason([soon, later], 0, 2, Policy.LATENCY, None, "", later)
    best = "cheapest and fastest of 2 able: predicted 0.2 s to the first token, $0"
    assert text == f"{best}; later free: 0.5 s, $0"
