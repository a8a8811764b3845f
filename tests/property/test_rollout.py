"""Replacing a model's settings: in the end all is new, and on the way enough replicas serve."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.fleet_status import ReplicaState
from agentcloud.cluster.rollout import Member, Steps, steps

SURGE_S = 30.0
STATES = [ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.READY, ReplicaState.LOST]


def serving(members: list[Member]) -> int:
    return sum(member.state is ReplicaState.READY for member in members)


@given(
    st.integers(0, 5),
    st.lists(st.tuples(st.sampled_from(STATES), st.booleans()), max_size=7),
    st.integers(0, 8),
)
def test_it_converges_and_keeps_serving(
    target: int, start: list[tuple[ReplicaState, bool]], room: int
) -> None:
    """`room` replicas fit on the cluster; the rest of them wait."""
    members = [
        Member(f"r{index}", index, state, current) for index, (state, current) in enumerate(start)
    ]
    room = max(room, len(members), target)
    index = len(members)
    low = serving(members)
    for turn in range(200):
        todo = steps(target, members, SURGE_S)
        before = serving(members)
        drained = [member for member in members if member.name in todo.drain]
        assert len(drained) == len(set(todo.drain))
        went = sum(member.state is ReplicaState.READY for member in drained)
        if before - went < target and went:
            pending = [m for m in members if m.is_current and m.pending_s >= SURGE_S]
            assert went == 1, "one at a time"
            assert pending, "an old one makes room only for one that waits for it"
            assert before - went >= min(target, low) - 1
        members = [
            replace(member, state=ReplicaState.DRAINING) if member in drained else member
            for member in members
        ]
        for _ in range(todo.add):
            members.append(Member(f"r{index}", index, ReplicaState.PENDING))
            index += 1
        assert len([m for m in members if m.state is not ReplicaState.DRAINING]) <= max(
            target + 1, len(start) + 1
        )
        # Draining ends at every second turn; those that fit start, then serve.
        if turn % 2:
            members = [m for m in members if m.state is not ReplicaState.DRAINING]
        placed = sum(member.state is not ReplicaState.PENDING for member in members)
        moved = []
        for member in members:
            if member.state is ReplicaState.PENDING and placed < room:
                placed += 1
                member = replace(member, state=ReplicaState.STARTING)
            elif member.state is ReplicaState.PENDING:
                member = replace(member, pending_s=member.pending_s + 10.0)
            elif member.state in (ReplicaState.STARTING, ReplicaState.LOST):
                member = replace(member, state=ReplicaState.READY)
            moved.append(member)
        members = moved
    assert steps(target, members, SURGE_S) == Steps()
    assert len(members) == target
    assert all(member.is_current for member in members)
    assert serving(members) == target


def test_a_replacement_starts_beside_the_old_ones_and_one_goes_when_it_serves() -> None:
    old = [Member(f"old{i}", i, ReplicaState.READY, is_current=False) for i in range(2)]
    assert steps(2, old, SURGE_S) == Steps(add=1)
    new = Member("new", 2, ReplicaState.STARTING)
    assert steps(2, [*old, new], SURGE_S) == Steps()
    new = replace(new, state=ReplicaState.READY)
    assert steps(2, [*old, new], SURGE_S) == Steps(add=1, drain=("old1",))


def test_without_room_an_old_one_makes_it_after_a_while() -> None:
    old = Member("old", 0, ReplicaState.READY, is_current=False)
    new = Member("new", 1, ReplicaState.PENDING, pending_s=SURGE_S - 1)
    assert steps(1, [old, new], SURGE_S) == Steps()
    new = replace(new, pending_s=SURGE_S)
    assert steps(1, [old, new], SURGE_S) == Steps(drain=("old",))
    gone = replace(old, state=ReplicaState.DRAINING)
    assert steps(1, [gone, new], SURGE_S) == Steps(), "once"


def test_those_that_do_not_serve_yet_go_first() -> None:
    members = [
        Member("a", 0, ReplicaState.READY),
        Member("b", 1, ReplicaState.STARTING),
        Member("c", 2, ReplicaState.PENDING),
        Member("d", 3, ReplicaState.READY),
    ]
    assert steps(1, members, SURGE_S).drain == ("c", "b", "d")
