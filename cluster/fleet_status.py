"""What a fleet looks like from outside: its replicas, and each model's target with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from agentcloud.cluster.contracts import LoadReport


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    #: It waits for room on the cluster, which may be a node that Ray's autoscaler adds.
    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as `fleet_status` shows it.

    Attributes:
        is_current: whether it runs with the settings in force; an old one is being replaced.
    """

    name: str
    model: str
    state: ReplicaState
    restarts: int
    load: LoadReport
    note: str = ""
    is_current: bool = True


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How many replicas a model has and should have.

    Attributes:
        least: as many at least.
        most: as many at most.
        target: as many it should have now.
        reason: why, as of its last change.
        changed_s: seconds since the target last changed.
        wait_s: how long the last of those that wait now is predicted to wait.
        problem: what keeps replicas from being started; empty if nothing does.
    """

    model: str
    least: int
    most: int
    target: int
    reason: str
    changed_s: float
    wait_s: float = 0.0
    running: int = 0
    starting: int = 0
    pending: int = 0
    draining: int = 0
    old: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """All replicas and models; `failure` is the line of a first start that failed."""

    replicas: tuple[ReplicaStatus, ...]
    failure: str | None = None
    models: tuple[ModelStatus, ...] = ()

    def all_ready(self) -> bool:
        """Whether every replica serves."""
        return all(replica.state is ReplicaState.READY for replica in self.replicas)

    def serves(self) -> bool:
        """Whether every model has as many replicas running as it needs at least."""
        return all(each.running >= each.least for each in self.models)

    def is_settled(self) -> bool:
        """Whether every model serves, with the settings in force and nothing else."""
        return self.serves() and not any(each.old or each.draining for each in self.models)

    def one_line(self) -> str:
        """`2 of 3 replicas ready; replica:small:2 starting`."""
        ready = sum(replica.state is ReplicaState.READY for replica in self.replicas)
        rest = [
            f"{r.name} {r.state}" + (f" ({r.note})" if r.state is ReplicaState.PENDING else "")
            for r in self.replicas
            if r.state is not ReplicaState.READY
        ]
        return "; ".join([f"{ready} of {len(self.replicas)} replicas ready", *rest[:4]])


def count_states(replicas: Iterable[ReplicaStatus]) -> dict[str, int]:
    """Replicas of one model by what they do: fields of `ModelStatus`."""
    counts = dict.fromkeys(("running", "starting", "pending", "draining", "old"), 0)
    named = {
        ReplicaState.READY: "running",
        ReplicaState.STARTING: "starting",
        ReplicaState.LOST: "starting",
        ReplicaState.PENDING: "pending",
        ReplicaState.DRAINING: "draining",
    }
    for replica in replicas:
        if (name := named.get(replica.state)) is not None:
            counts[name] += 1
            counts["old"] += name != "draining" and not replica.is_current
    return counts
