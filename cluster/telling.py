"""What the fleet tells the scheduler: what serves, what may come, loads.

All of it, fleet.yaml too, is told again to a scheduler that Ray has restarted: it knows only the
file that it was created with, and no endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import ray

from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import EndpointSpec
from agentcloud.cluster.demand import Expected
from agentcloud.cluster.endpoints import guessed_spec
from agentcloud.cluster.fleet_status import ReplicaState
from agentcloud.cluster.keeper import Keeper, scheduler
from agentcloud.cluster.model_state import ModelState
from agentcloud.cluster.patience import asked
from agentcloud.cluster.prefix_reports import PrefixReports


class Told(Protocol):
    """What is told of: the fleet."""

    @property
    def config(self) -> FleetConfig:
        """The fleet.yaml in force."""
        ...

    @property
    def models(self) -> Mapping[str, ModelState]:
        """Its local models by name."""
        ...

    @property
    def keepers(self) -> Mapping[str, Keeper]:
        """The keepers of its replicas by name."""
        ...

    @property
    def prefixes(self) -> PrefixReports:
        """What replicas say of their caches."""
        ...

    def endpoints(self) -> list[EndpointSpec]:
        """Everything that serves now."""
        ...


async def tell(fleet: Told) -> None:
    """Tell the scheduler all that serves and all that may come."""
    start_s = fleet.config.scaling.start_s
    expected = [
        Expected(
            model.spec or guessed_spec(name, model.settings),
            model.start_s or start_s,
            model.problem or None,
        )
        for name, model in fleet.models.items()
        if model.most
    ]
    serving = fleet.endpoints()
    await asked(lambda: scheduler().expect.remote(expected, serving))


async def report_loads(fleet: Told, told: str) -> None:
    """Tell the scheduler the replicas' loads for ever, and everything whenever it is a new one.

    Args:
        fleet: what is told of.
        told: the scheduler's epoch to which everything was told; empty: to none.
    """
    while True:
        # A scheduler that Ray has just restarted is away for a moment, and then knows nobody.
        try:
            if (epoch := await scheduler().ping.remote()) != told:
                await _tell_anew(fleet)
                told = epoch
            loads = {
                keeper.name: keeper.seen.report
                for keeper in fleet.keepers.values()
                if keeper.state is ReplicaState.READY
            }
            if loads:
                await scheduler().report_load.remote(loads, fleet.prefixes.pop())
        except (ray.exceptions.RayError, ValueError):
            fleet.prefixes.lost_all()
        await asyncio.sleep(fleet.config.health.report_s)


async def _tell_anew(fleet: Told) -> None:
    if await scheduler().config.remote() != fleet.config:
        await scheduler().configure.remote(fleet.config)
    await tell(fleet)
    fleet.prefixes.lost_all()
