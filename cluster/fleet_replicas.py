"""The fleet's replicas: a keeper each, steps towards the targets, and what keepers tell."""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import structlog

from agentcloud.cluster.adopt import adopt_replicas
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.contracts import EndpointSpec
from agentcloud.cluster.endpoints import replica_of
from agentcloud.cluster.fleet_memory import FleetMemory, Memory
from agentcloud.cluster.fleet_status import ReplicaState
from agentcloud.cluster.keeper import Keeper
from agentcloud.cluster.launch import Launched, StartReplica
from agentcloud.cluster.model_state import ModelState
from agentcloud.cluster.prefix_reports import PrefixReports
from agentcloud.cluster.rollout import steps
from agentcloud.cluster.telling import tell

log = structlog.get_logger()


class FleetReplicas:
    """What the fleet has and remembers; it never waits for a replica.

    Args:
        config: what to run.
        where: how errors name its file.
        start_one: creates a replica's actor.
    """

    def __init__(self, config: FleetConfig, where: str, start_one: StartReplica) -> None:
        self.config = config
        self._where = where
        self._start_one = start_one
        self.keepers: dict[str, Keeper] = {}
        self.models: dict[str, ModelState] = {}
        self.prefixes = PrefixReports()
        self._actor = ray.get_runtime_context().get_actor_id()
        self._memory = Memory()
        self._failure: str | None = None
        self._hosted: list[EndpointSpec] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def endpoints(self) -> list[EndpointSpec]:
        """Everything that serves now."""
        keepers = self.keepers.values()
        ready = [k.spec for k in keepers if k.spec and k.state is ReplicaState.READY]
        return [*ready, *self._hosted]

    # -- what keepers tell

    def serves(self, keeper: Keeper, took_s: float | None) -> None:
        """As `Home.serves`."""
        model = self.models.get(keeper.model)
        if model is not None and not model.is_outdated(keeper.settings):
            first = model.served(keeper.settings, keeper.spec, took_s)
            if first:
                self._remember()
                self._spawn(tell(self))
        self._wake.set()

    def failed(self, keeper: Keeper, why: str) -> bool:
        """As `Home.failed`: settings that have served before are tried again."""
        model = self.models.get(keeper.model)
        self._wake.set()
        if model is None or model.is_outdated(keeper.settings):
            return False
        if model.has_served(keeper.settings):
            return True
        self._failure = f"{keeper.name} did not start: {why}"
        if model.go_back():
            self._failure += f"; {keeper.model} keeps its former settings"
        else:
            model.breaks(why)
        self._remember()
        log.error("replica did not start", endpoint=keeper.name, why=why)
        self._spawn(tell(self))
        return False

    def found_no_room(self, keeper: Keeper, why: str) -> bool:
        """As `Home.found_no_room`: what is needed at least is asked for again."""
        model = self.models.get(keeper.model)
        self._wake.set()
        if model is None:
            return False
        if keeper.settings.replicas.is_fixed:
            return self.failed(keeper, why)
        model.start_s = max(model.start_s or 0.0, self.config.scaling.pending_s)
        self._spawn(tell(self))  # those that wait learn how long it may take
        others = [k for k in self._of(keeper.model) if k is not keeper and k.is_live]
        if len(others) < max(model.least, 1):
            return True
        model.no_room(len(others), self.config.scaling.pending_s, why)
        return False

    # -- steps

    def _step(self, name: str) -> None:
        """Take the next steps of one model towards its target."""
        model = self.models[name]
        for keeper in self._of(name):
            if keeper.state is ReplicaState.STOPPED and keeper.name not in self._drains:
                self._forget(keeper)
        members = [
            keeper.member(is_current=not model.is_outdated(keeper.settings))
            for keeper in self._of(name)
        ]
        target = min(max(model.target.replicas, model.least), model.most)
        todo = steps(target, members, self.config.scaling.surge_s)
        for drained in todo.drain:
            keeper = self.keepers[drained]
            log.info("replica drains", endpoint=drained, target=target)
            self._drains[drained] = asyncio.create_task(self._drain(keeper))
        if not model.problem:
            for _ in range(todo.add):
                self._add(name)
        if model.is_leaving and not members:
            del self.models[name]
            self._remember()

    def _add(self, model: str) -> None:
        used = {keeper.index for keeper in self._of(model)}
        index = next(index for index in range(len(used) + 1) if index not in used)
        keeper = self._keep(model, index, self.models[model].settings)
        self._memory.keep_replica(keeper.name, keeper.settings)

    def _keep(
        self, model: str, index: int, settings: LocalModel, adopted: Launched | None = None
    ) -> Keeper:
        keeper = Keeper(self, model, index, settings, self._start_one, adopted)
        self.keepers[keeper.name] = keeper
        return keeper

    def _forget(self, keeper: Keeper) -> None:
        del self.keepers[keeper.name]
        self._memory.forget_replica(keeper.name)

    async def _drain(self, keeper: Keeper) -> None:
        try:
            await keeper.drain(self.config.scaling.drain_s)
        finally:
            self._drains.pop(keeper.name, None)
        self._forget(keeper)
        self._wake.set()

    def _of(self, model: str) -> list[Keeper]:
        return [keeper for keeper in self.keepers.values() if keeper.model == model]

    # -- memory

    def _remember(self) -> None:
        models = {name: model.remembered() for name, model in self.models.items()}
        self._memory.keep(
            FleetMemory(actor=self._actor, config=self.config, where=self._where, models=models)
        )

    def _adopt(self) -> None:
        """Take the remembered replicas over: those that run are not started again."""
        replicas = {
            name: settings
            for name, settings in self._memory.replicas().items()
            if replica_of(name)[0] in self.models
        }
        adopted = adopt_replicas(replicas)
        for name, settings in replicas.items():
            model, index = replica_of(name)
            self._keep(model, index, settings, adopted.get(name))
        log.warning("fleet restarted", adopted=len(adopted), gone=len(replicas) - len(adopted))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
