"""Pure: a model's target and its replicas -> which to add and which to drain now.

Two cases. All run with the settings in force: replicas are added or taken away until they are as
many as the target. Some run with older settings: one with the new settings is started beside them,
and an old one goes when the new one serves. Where there is no room beside them, an old one goes
first, after the new one has waited `surge_s` for room: one at a time, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agentcloud.cluster.fleet_status import ReplicaState

_GONE: Final = frozenset({ReplicaState.DRAINING, ReplicaState.STOPPED})
_COMING: Final = frozenset({ReplicaState.PENDING, ReplicaState.STARTING, ReplicaState.LOST})
#: Which goes first.
_ORDER: Final = (
    ReplicaState.PENDING,
    ReplicaState.LOST,
    ReplicaState.STARTING,
    ReplicaState.READY,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A replica as `steps` sees it.

    Attributes:
        is_current: whether it has the settings in force.
        pending_s: how long it has been waiting for room.
    """

    name: str
    index: int
    state: ReplicaState
    is_current: bool = True
    pending_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do now: start so many, drain these."""

    add: int = 0
    drain: tuple[str, ...] = ()


def steps(target: int, members: Sequence[Member], surge_s: float) -> Steps:
    """The next steps towards `target` replicas with the settings in force.

    Args:
        target: how many replicas there should be.
        members: all of the model's.
        surge_s: how long a replacement waits for room before an old replica makes it.
    """
    live = [member for member in members if member.state not in _GONE]
    current = [member for member in live if member.is_current]
    old = [member for member in live if not member.is_current]
    serving = [member for member in old if member.state is ReplicaState.READY]
    # An old one that does not serve is of no use any more.
    drain = [member.name for member in old if member.state is not ReplicaState.READY]
    if not serving:
        surplus = _first_to_go(current)[: max(0, len(current) - target)]
        return Steps(max(0, target - len(current)), (*drain, *(each.name for each in surplus)))
    coming = [member for member in current if member.state in _COMING]
    ready = len(current) - len(coming)
    spare = min(len(serving), max(0, ready + len(serving) - target))
    drain += [member.name for member in _first_to_go(serving)[:spare]]
    gone = any(member.state in _GONE for member in members)
    if not spare and not gone and _is_stuck(coming, surge_s):
        drain.append(_first_to_go(serving)[0].name)
    missing = target - len(current) - len(serving)
    surge = 1 if not coming and len(current) < target else 0
    return Steps(max(missing, surge, 0), tuple(drain))


def _is_stuck(coming: Sequence[Member], surge_s: float) -> bool:
    return bool(coming) and all(
        member.state is ReplicaState.PENDING and member.pending_s >= surge_s for member in coming
    )


def _first_to_go(members: Sequence[Member]) -> list[Member]:
    return sorted(members, key=lambda member: (_ORDER.index(member.state), -member.index))
