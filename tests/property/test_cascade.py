"""Deciding on a tier's samples, against its definition."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.agents.cascade import Cascade, Sample, agreement, decide, logprob

TWO = ("small", "large")
keys = st.one_of(st.none(), st.sampled_from("abc"))
logprobs = st.one_of(st.none(), st.floats(-5, 0))
sample_lists = st.lists(
    st.builds(Sample, keys, st.just("wrong"), logprobs, st.just("replica:0")),
    min_size=1,
    max_size=6,
)
thresholds = st.floats(-5, 0)
shares = st.floats(0, 1)


@given(sample_lists, shares, thresholds)
def test_what_is_taken_passes_every_check_and_what_is_not_fails_one(
    samples: list[Sample], share: float, least: float
) -> None:
    decision = decide(samples, Cascade(TWO, [agreement(3, share), logprob(least)]))
    counts = Counter(sample.key for sample in samples if sample.key is not None)
    if decision.chosen is None:
        assert not counts
        assert decision.refused
        return
    chosen = samples[decision.chosen]
    assert chosen.key is not None
    assert counts[chosen.key] == max(counts.values())
    assert decision.share == counts[chosen.key] / len(samples)
    passes = (
        round(decision.share, 2) >= share
        and chosen.mean_logprob is not None
        and chosen.mean_logprob >= least
    )
    assert (decision.refused is None) == passes


@given(sample_lists, thresholds, thresholds)
def test_a_higher_threshold_never_takes_what_a_lower_one_refuses(
    samples: list[Sample], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    taken_high = decide(samples, Cascade(TWO, logprob(high))).refused is None
    taken_low = decide(samples, Cascade(TWO, logprob(low))).refused is None
    assert taken_low or not taken_high


@given(sample_lists)
def test_without_checks_the_first_answer_is_taken(samples: list[Sample]) -> None:
    decision = decide(samples[:1], Cascade(TWO))
    assert (decision.refused is None) == (samples[0].key is not None)
    assert decision.share is None
