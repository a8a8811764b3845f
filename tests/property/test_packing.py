"""Packing: every call once, no pack too large, none kept too long."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.packing import Packer

LINGER_S, LONGEST_S = 2.0, 10.0
MAX_REQUESTS, MAX_BYTES = 5, 100


@dataclass(frozen=True)
class Add:
    lane: str
    size_bytes: int


@dataclass(frozen=True)
class Remove:
    which: int


@dataclass(frozen=True)
class Pass:
    seconds: float


STEPS = st.lists(
    st.one_of(
        st.builds(Add, st.sampled_from("ab"), st.integers(1, 130)),
        st.builds(Remove, st.integers(0, 200)),
        st.builds(Pass, st.floats(0, 4)),
    ),
    max_size=80,
)


@given(STEPS)
def test_every_call_once_within_size_and_time(steps: list[Add | Remove | Pass]) -> None:
    packer = Packer(
        max_requests=MAX_REQUESTS, max_bytes=MAX_BYTES, linger_s=LINGER_S, longest_s=LONGEST_S
    )
    now_s = 0.0
    added: dict[str, tuple[Add, float]] = {}
    removed: set[str] = set()
    given_out: list[str] = []

    def look() -> None:
        due_s = packer.next_due_s()
        packs = packer.take_due(now_s)
        assert bool(packs) == (due_s is not None and due_s <= now_s), "the time told is the time"
        for pack in packs:
            sizes = [added[key][0].size_bytes for key in pack.keys]
            assert 1 <= len(sizes) <= MAX_REQUESTS
            assert sum(sizes) <= MAX_BYTES or len(sizes) == 1
            assert {added[key][0].lane for key in pack.keys} == {pack.lane}
            given_out.extend(pack.keys)
        for key, (_, at_s) in added.items():
            if key not in given_out and key not in removed:
                assert now_s < at_s + LONGEST_S, "kept too long"

    for step in steps:
        if isinstance(step, Add):
            key = f"k{len(added)}"
            added[key] = step, now_s
            packer.add(step.lane, key, step.size_bytes, now_s)
        elif isinstance(step, Remove):
            key = f"k{step.which}"
            waits = key in added and key not in removed and key not in given_out
            assert packer.remove(key) == waits
            if waits:
                removed.add(key)
        else:
            now_s += step.seconds
            look()
    now_s += LONGEST_S
    look()
    assert len(packer) == 0
    assert packer.next_due_s() is None
    assert sorted(given_out) == sorted(added.keys() - removed)
    assert len(set(given_out)) == len(given_out)


def test_calls_that_keep_coming_are_sent_after_the_longest_time() -> None:
    packer = Packer(max_requests=1000, max_bytes=10**6, linger_s=2.0, longest_s=10.0)
    sent = []
    for second in range(30):
        packer.add("a", str(second), 10, float(second))
        sent += [len(pack.keys) for pack in packer.take_due(float(second))]
    assert sent == [11, 11]
