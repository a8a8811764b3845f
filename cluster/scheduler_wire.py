"""What travels between a process and the scheduler's actor, in one round trip."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import TypeVar

from agentcloud.cluster.contracts import LeaseRequest, Settlement
from agentcloud.cluster.decisions import Decision
from agentcloud.cluster.former import Held
from agentcloud.cluster.spares import Bound

_Message = TypeVar("_Message")


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a process tells in one round trip; settlements are taken in before requests.

    Attributes:
        number: counts this process's exchanges.
        bound: calls that took a lease granted in advance.
        held: after a restart of the scheduler: the leases that the process still has.
    """

    holder: str
    number: int = 0
    requests: list[LeaseRequest] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    cancels: list[str] = field(default_factory=list)
    warmed: list[str] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reply:
    """What could be decided at once.

    Attributes:
        epoch: id of the scheduler's instance; another one after a restart.
        written: settlements of the process's exchanges up to this number are on disk.
    """

    decisions: list[Decision]
    epoch: str = ""
    written: int = 0


def packed(message: Exchange | Reply) -> bytes:
    """As bytes: Ray's own pickler looks for code to ship and takes over twice the time."""
    return pickle.dumps(message, protocol=5)


def unpacked(message: bytes, kind: type[_Message]) -> _Message:
    """What `packed` packed; both ends are processes of one cluster, which trust each other."""
    told = pickle.loads(message)  # noqa: S301 - Ray unpickles all that its actors send, this too
    assert isinstance(told, kind)
    return told
