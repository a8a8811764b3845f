"""What the fleet tells of itself: its status, and the number of replicas as a metric."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from ray.util.metrics import Gauge

from agentcloud.cluster.fleet_status import FleetStatus, ModelStatus, ReplicaStatus, count_states
from agentcloud.cluster.keeper import Keeper
from agentcloud.cluster.model_state import ModelState

_STATES: Final = ("target", "running", "starting", "pending", "draining")


def fleet_status(
    models: Mapping[str, ModelState], keepers: Sequence[Keeper], failure: str | None
) -> FleetStatus:
    """Every replica and model as it is now."""
    replicas: list[ReplicaStatus] = []
    for keeper in keepers:
        model = models.get(keeper.model)
        is_current = model is not None and not model.is_outdated(keeper.settings)
        replicas.append(keeper.status(is_current=is_current))
    return FleetStatus(
        tuple(replicas),
        failure,
        tuple(
            ModelStatus(
                name,
                model.least,
                model.most,
                model.target.replicas,
                model.target.reason,
                time.monotonic() - model.changed_s,
                model.target.wait_s,
                **count_states(each for each in replicas if each.model == name),
                problem=model.problem,
            )
            for name, model in models.items()
        ),
    )


class ReplicaGauge:
    """`agentcloud_replicas{model,state}`; Ray puts `ray_` before it."""

    def __init__(self) -> None:
        tags = ("model", "state")
        self._gauge = Gauge("agentcloud_replicas", "Replicas by what they do", tag_keys=tags)
        self._known: set[str] = set()

    def set(self, status: FleetStatus) -> None:
        """Export what there is; a model that left is shown as none."""
        for each in status.models:
            for state in _STATES:
                self._gauge.set(getattr(each, state), {"model": each.model, "state": state})
        models = {each.model for each in status.models}
        for gone in self._known - models:
            for state in _STATES:
                self._gauge.set(0, {"model": gone, "state": state})
        self._known = models
