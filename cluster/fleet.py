"""The fleet actor: as many replicas as the load is worth, with the settings in force.

Each replica has a keeper (fleet_replicas.py, keeper.py). A loop of some seconds asks the scheduler
what waits, decides each model's target (scaling.py) and takes the next steps towards it
(rollout.py); none of them waits for a replica to start, to drain, or for room on the cluster.

When its process dies, Ray restarts it, and it goes on from its memory (fleet_memory.py) with the
replicas that run (adopt.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import ray
import structlog

from agentcloud.cluster.clock import SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import FLEET_NAME
from agentcloud.cluster.endpoints import check_fleet, hosted_specs
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.fleet_memory import FleetMemory
from agentcloud.cluster.fleet_replicas import FleetReplicas
from agentcloud.cluster.fleet_report import ReplicaGauge, fleet_status
from agentcloud.cluster.fleet_status import FleetStatus
from agentcloud.cluster.keeper import end, scheduler
from agentcloud.cluster.launch import StartReplica, degrees_of
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.model_state import ModelState
from agentcloud.cluster.patience import asked
from agentcloud.cluster.placement_ray import ray_nodes
from agentcloud.cluster.replica import start_replica
from agentcloud.cluster.scaling import Scaler
from agentcloud.cluster.telling import report_loads, tell

log = structlog.get_logger()

#: Replicas that run have said so within this, after a restart; others are starting.
_JOIN_S: Final = 10.0


class Fleet(FleetReplicas):
    """The body of the fleet actor.

    Args:
        config: what to run; a restarted one has what was applied since.
        where: how errors name its file.
        start_one: creates a replica's actor.
    """

    def __init__(
        self, config: FleetConfig, where: str, start_one: StartReplica = start_replica
    ) -> None:
        configure_logs(actor=FLEET_NAME)
        super().__init__(config, where, start_one)
        self._scaler = Scaler(SystemClock(), config)
        self._gauge = ReplicaGauge()
        self._join_by_s = 0.0
        if (before := self._memory.recall(self._actor)) is not None:
            self._go_on(before)

    def __repr__(self) -> str:
        return FLEET_NAME

    # -- what is asked of the actor

    async def start(self) -> None:
        """Begin to start everything; returns at once, also where that has begun already.

        Raises:
            ConfigError: a model cannot be placed, or a key is missing on this node.
        """
        if self._tasks:
            return  # Ray has restarted this actor and asks again for what it asked before
        self._check(self.config, self._where)
        self._hosted = hosted_specs(self.config)
        self.models = {name: ModelState(settings) for name, settings in self.config.models.items()}
        epoch = await asked(lambda: scheduler().ping.remote())
        await tell(self)
        self._memory.clear()
        self._remember()
        for name, model in self.models.items():
            for _ in range(model.least):
                self._add(name)
        self._run(epoch)

    def status(self) -> FleetStatus:
        """Every replica and model as it is now."""
        return fleet_status(self.models, list(self.keepers.values()), self._failure)

    async def scale(self, model: str, replicas: int) -> None:
        """Set a model's number of replicas by hand; returns when those too many are drained.

        Raises:
            ConfigError: no such model, or a negative number.
        """
        if model not in self.models:
            known = ", ".join(self.models) or "none"
            raise ConfigError(f"no local model {model!r} (known: {known})")
        if replicas < 0:
            raise ConfigError(f"replicas must be 0 or more (given: {replicas})")
        await self._joined()
        self.models[model].pin(replicas)
        self._remember()
        await tell(self)
        self._step(model)
        drains = [task for name, task in self._drains.items() if self.keepers[name].model == model]
        await asyncio.gather(*drains)

    async def apply(self, config: FleetConfig, where: str) -> list[str]:
        """Take another fleet.yaml; returns at once, with a line for each thing that changes.

        Models whose engine has other settings now are replaced replica by replica, with calls
        flowing. If the new settings do not start, the model goes back to its former ones and
        `status` tells why.

        Raises:
            ConfigError: something of it is wrong; then nothing changes.
        """
        self._check(config, where)
        await self._joined()
        changes: list[str] = []
        for name in [name for name in self.models if name not in config.models]:
            changes.append(f"{name}: leaves")
            self.models[name].pin(0)
            self.models[name].is_leaving = True
        for name, settings in config.models.items():
            known = self.models.get(name)
            if known is None or known.is_leaving:
                changes.append(f"{name}: new, {settings.replicas} replicas")
                self.models[name] = ModelState(settings)
            elif known.settings != settings:
                changes.append(f"{name}: {known.take(settings)}")
                for keeper in self._of(name):
                    if not known.is_outdated(keeper.settings):
                        await keeper.reprice(settings)
                        self._memory.keep_replica(keeper.name, settings)
                        known.spec = keeper.spec
        before = {spec.name for spec in self._hosted}
        self._hosted = hosted_specs(config)
        gone = before - {spec.name for spec in self._hosted}
        self.config, self._where, self._failure = config, where, None
        self._scaler.configure(config)
        await asked(lambda: scheduler().configure.remote(config))
        await tell(self)
        if gone:
            await asked(lambda: scheduler().unregister.remote(sorted(gone)))
        self._remember()
        for name in list(self.models):
            self._step(name)
        for line in changes:
            log.info("fleet changed", change=line)
        return changes

    async def stop(self) -> None:
        """Stop every replica; nothing of them is left when this returns."""
        await end(*self._tasks, *self._drains.values())
        await asyncio.gather(*(keeper.stop() for keeper in self.keepers.values()))
        self._memory.clear()  # at last: one that dies before goes on, and is asked to stop again

    # -- following the load

    async def _follow_load(self) -> None:
        await self._joined()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.config.scaling.every_s)
            self._wake.clear()
            try:
                await self._look()
            except (ray.exceptions.RayError, ValueError) as error:
                log.debug("the scheduler is away", why=type(error).__name__)
            except Exception:
                log.exception("scaling failed by a bug, tried again")

    async def _look(self) -> None:
        demand = await scheduler().demand.remote()
        now_s = time.monotonic()
        mended = [model for model in self.models.values() if model.mends(now_s)]
        if mended:
            await tell(self)
        crews = {
            name: model.crew(self._of(name), self.config.scaling.start_s, now_s)
            for name, model in self.models.items()
        }
        for name, target in self._scaler.decide(demand, crews).items():
            model = self.models[name]
            if target.replicas != model.target.replicas:
                log.info(
                    "scaling",
                    model=name,
                    replicas=target.replicas,
                    before=model.target.replicas,
                    why=target.reason,
                )
                model.changed_s = now_s
            model.target = target
            self._step(name)
        self._gauge.set(self.status())

    # -- its life, over restarts of its process

    def _run(self, told: str = "") -> None:
        self._spawn(report_loads(self, told))
        self._spawn(self._follow_load())

    def _go_on(self, before: FleetMemory) -> None:
        """Take over from the process before this one."""
        self.config, self._where = before.config, before.where
        self._hosted = hosted_specs(self.config)
        self._scaler.configure(self.config)
        self.models = {name: ModelState.recalled(model) for name, model in before.models.items()}
        self._adopt()
        self._join_by_s = asyncio.get_running_loop().time() + _JOIN_S
        for name, model in self.models.items():
            model.target = self._scaler.resume(name, len(self._of(name)))
        self._run()

    async def _joined(self) -> None:
        """Wait for adopted replicas: until it is known whether they run, none is taken away."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._join_by_s):
                for keeper in list(self.keepers.values()):
                    await keeper.joined.wait()

    def _check(self, config: FleetConfig, where: str) -> None:
        check_fleet(config, where=where)
        for name, settings in config.models.items():
            # At a start the replicas show it themselves, where any starts.
            if self.models or not settings.replicas.min:
                degrees_of(name, settings, ray_nodes())


#: The Ray actor class; `Fleet` itself stays importable for its types. What it is asked while its
#: process is restarted waits, and what that process was asked is asked again.
FleetActor = ray.remote(max_concurrency=64, max_restarts=-1, max_task_retries=-1)(Fleet)
