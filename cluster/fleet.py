"""The fleet actor: as many replicas as the load is worth, with the settings in force.

Each replica has a keeper (keeper.py). A loop of some seconds asks the scheduler what waits, decides
each model's target (scaling.py) and takes the next steps towards it (rollout.py); none of them
waits for a replica to start, to drain, or for room on the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import ray
import structlog

from agentcloud.cluster.clock import SystemClock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import FLEET_NAME, EndpointSpec
from agentcloud.cluster.demand import Expected
from agentcloud.cluster.endpoints import check_fleet, guessed_spec, hosted_specs
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.fleet_report import ReplicaGauge, fleet_status
from agentcloud.cluster.fleet_status import FleetStatus, ReplicaState
from agentcloud.cluster.keeper import Keeper, end, scheduler
from agentcloud.cluster.launch import StartReplica, degrees_of
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.model_state import ModelState
from agentcloud.cluster.placement_ray import ray_nodes
from agentcloud.cluster.prefix_reports import PrefixReports
from agentcloud.cluster.replica import start_replica
from agentcloud.cluster.rollout import steps
from agentcloud.cluster.scaling import Scaler

log = structlog.get_logger()


class Fleet:
    """The body of the fleet actor.

    Args:
        config: what to run.
        where: how errors name its file.
        start_one: creates a replica's actor.
    """

    def __init__(
        self, config: FleetConfig, where: str, start_one: StartReplica = start_replica
    ) -> None:
        configure_logs(actor=FLEET_NAME)
        self.config = config
        self._where = where
        self._start_one = start_one
        self._keepers: dict[str, Keeper] = {}
        self._models: dict[str, ModelState] = {}
        self._scaler = Scaler(SystemClock(), config)
        self._failure: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._drains: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._hosted: list[EndpointSpec] = []
        self._gauge = ReplicaGauge()
        self.prefixes = PrefixReports()

    def __repr__(self) -> str:
        return FLEET_NAME

    # -- what is asked of the actor

    async def start(self) -> None:
        """Begin to start everything; returns at once.

        Raises:
            ConfigError: a model cannot be placed, or a key is missing on this node.
        """
        self._check(self.config, self._where)
        self._hosted = hosted_specs(self.config)
        self._models = {name: ModelState(settings) for name, settings in self.config.models.items()}
        await self._tell()
        for name, model in self._models.items():
            for _ in range(model.least):
                self._add(name)
        self._spawn(self._report_loads())
        self._spawn(self._follow_load())

    def status(self) -> FleetStatus:
        """Every replica and model as it is now."""
        return fleet_status(self._models, list(self._keepers.values()), self._failure)

    def endpoints(self) -> list[EndpointSpec]:
        """Everything that serves now."""
        keepers = self._keepers.values()
        ready = [k.spec for k in keepers if k.spec and k.state is ReplicaState.READY]
        return [*ready, *self._hosted]

    async def scale(self, model: str, replicas: int) -> None:
        """Set a model's number of replicas by hand; returns when those too many are drained.

        Raises:
            ConfigError: no such model, or a negative number.
        """
        if model not in self._models:
            known = ", ".join(self._models) or "none"
            raise ConfigError(f"no local model {model!r} (known: {known})")
        if replicas < 0:
            raise ConfigError(f"replicas must be 0 or more (given: {replicas})")
        self._models[model].pin(replicas)
        await self._tell()
        self._step(model)
        drains = [task for name, task in self._drains.items() if self._keepers[name].model == model]
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
        changes: list[str] = []
        for name in [name for name in self._models if name not in config.models]:
            changes.append(f"{name}: leaves")
            self._models[name].pin(0)
            self._models[name].is_leaving = True
        for name, settings in config.models.items():
            known = self._models.get(name)
            if known is None or known.is_leaving:
                changes.append(f"{name}: new, {settings.replicas} replicas")
                self._models[name] = ModelState(settings)
            elif known.settings != settings:
                changes.append(f"{name}: {known.take(settings)}")
                for keeper in self._of(name):
                    if not known.is_outdated(keeper.settings):
                        await keeper.reprice(settings)
                        known.spec = keeper.spec
        before = {spec.name for spec in self._hosted}
        self._hosted = hosted_specs(config)
        gone = before - {spec.name for spec in self._hosted}
        self.config, self._where, self._failure = config, where, None
        self._scaler.configure(config)
        await scheduler().configure.remote(config)
        await self._tell()
        if gone:
            await scheduler().unregister.remote(sorted(gone))
        for name in list(self._models):
            self._step(name)
        for line in changes:
            log.info("fleet changed", change=line)
        return changes

    async def stop(self) -> None:
        """Stop every replica; nothing of them is left when this returns."""
        await end(*self._tasks, *self._drains.values())
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))

    # -- what keepers tell

    def serves(self, keeper: Keeper, took_s: float) -> None:
        """As `Home.serves`."""
        model = self._models.get(keeper.model)
        if model is not None and not model.is_outdated(keeper.settings):
            first = model.served(keeper.settings, keeper.spec, took_s)
            if first:
                self._spawn(self._tell())
        self._wake.set()

    def failed(self, keeper: Keeper, why: str) -> bool:
        """As `Home.failed`: settings that have served before are tried again."""
        model = self._models.get(keeper.model)
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
        log.error("replica did not start", endpoint=keeper.name, why=why)
        self._spawn(self._tell())
        return False

    def found_no_room(self, keeper: Keeper, why: str) -> bool:
        """As `Home.found_no_room`: what is needed at least is asked for again."""
        model = self._models.get(keeper.model)
        self._wake.set()
        if model is None:
            return False
        if keeper.settings.replicas.is_fixed:
            return self.failed(keeper, why)
        model.start_s = max(model.start_s or 0.0, self.config.scaling.pending_s)
        self._spawn(self._tell())  # those that wait learn how long it may take
        others = [k for k in self._of(keeper.model) if k is not keeper and k.is_live]
        if len(others) < max(model.least, 1):
            return True
        model.no_room(len(others), self.config.scaling.pending_s, why)
        return False

    # -- following the load

    async def _follow_load(self) -> None:
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
        mended = [model for model in self._models.values() if model.mends(now_s)]
        if mended:
            await self._tell()
        crews = {
            name: model.crew(self._of(name), self.config.scaling.start_s, now_s)
            for name, model in self._models.items()
        }
        for name, target in self._scaler.decide(demand, crews).items():
            model = self._models[name]
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

    def _step(self, name: str) -> None:
        """Take the next steps of one model towards its target."""
        model = self._models[name]
        for keeper in self._of(name):
            if keeper.state is ReplicaState.STOPPED and keeper.name not in self._drains:
                del self._keepers[keeper.name]
        members = [
            keeper.member(is_current=not model.is_outdated(keeper.settings))
            for keeper in self._of(name)
        ]
        target = min(max(model.target.replicas, model.least), model.most)
        todo = steps(target, members, self.config.scaling.surge_s)
        for drained in todo.drain:
            keeper = self._keepers[drained]
            log.info("replica drains", endpoint=drained, target=target)
            self._drains[drained] = asyncio.create_task(self._drain(keeper))
        if not model.problem:
            for _ in range(todo.add):
                self._add(name)
        if model.is_leaving and not members:
            del self._models[name]

    def _add(self, model: str) -> None:
        used = {keeper.index for keeper in self._of(model)}
        index = next(index for index in range(len(used) + 1) if index not in used)
        keeper = Keeper(self, model, index, self._models[model].settings, self._start_one)
        self._keepers[keeper.name] = keeper

    async def _drain(self, keeper: Keeper) -> None:
        try:
            await keeper.drain(self.config.scaling.drain_s)
        finally:
            self._drains.pop(keeper.name, None)
        del self._keepers[keeper.name]
        self._wake.set()

    def _of(self, model: str) -> list[Keeper]:
        return [keeper for keeper in self._keepers.values() if keeper.model == model]

    # -- telling the scheduler

    async def _tell(self) -> None:
        """Tell the scheduler all that serves and all that may come."""
        start_s = self.config.scaling.start_s
        expected = [
            Expected(
                model.spec or guessed_spec(name, model.settings),
                model.start_s or start_s,
                model.problem or None,
            )
            for name, model in self._models.items()
            if model.most
        ]
        await scheduler().expect.remote(expected, self.endpoints())

    async def _report_loads(self) -> None:
        epoch = await scheduler().ping.remote()
        while True:
            await asyncio.sleep(self.config.health.report_s)
            loads = {
                keeper.name: keeper.seen.report
                for keeper in self._keepers.values()
                if keeper.state is ReplicaState.READY
            }
            # A scheduler that Ray has just restarted is away for a moment, and then knows nobody.
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                if (now := await scheduler().ping.remote()) != epoch:
                    await self._tell()
                    self.prefixes.lost_all()
                    epoch = now
                if loads:
                    await scheduler().report_load.remote(loads, self.prefixes.pop())
                continue
            self.prefixes.lost_all()

    def _check(self, config: FleetConfig, where: str) -> None:
        check_fleet(config, where=where)
        for name, settings in config.models.items():
            # At a start the replicas show it themselves, where any starts.
            if self._models or not settings.replicas.min:
                degrees_of(name, settings, ray_nodes())

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


#: The Ray actor class; `Fleet` itself stays importable for its types.
FleetActor = ray.remote(max_concurrency=64, max_restarts=0)(Fleet)
