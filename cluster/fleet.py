"""The fleet actor: place, start, watch, restart, drain and scale replicas.

Each replica has one keeper task: launch, register at the scheduler, watch until it is lost, clear
away what is left of it, launch again on a fresh placement group.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray
import structlog

from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    FLEET_NAME,
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    EndpointSpec,
    LoadReport,
)
from agentcloud.cluster.endpoints import check_fleet, hosted_specs, replica_name, replica_spec
from agentcloud.cluster.errors import AgentCloudError, ConfigError
from agentcloud.cluster.launch import launch_replica
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.watch import Observation, death_reason, restart_delay_s

log = structlog.get_logger()

#: A load call that takes longer is given up on (and kills nothing).
LOAD_TIMEOUT_S = 10.0
#: A replica that ran this long starts its count of restarts anew.
STEADY_S = 60.0


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as `fleet_status` shows it."""

    name: str
    model: str
    state: ReplicaState
    restarts: int
    load: LoadReport
    note: str = ""


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """All replicas; `failure` is the line of a first start that failed."""

    replicas: tuple[ReplicaStatus, ...]
    failure: str | None = None

    def all_ready(self) -> bool:
        """Whether every replica serves."""
        return all(replica.state is ReplicaState.READY for replica in self.replicas)

    def one_line(self) -> str:
        """`2 of 3 replicas ready; replica:small:2 starting`."""
        ready = sum(replica.state is ReplicaState.READY for replica in self.replicas)
        rest = [f"{r.name} {r.state}" for r in self.replicas if r.state is not ReplicaState.READY]
        return "; ".join([f"{ready} of {len(self.replicas)} replicas ready", *rest[:4]])


@dataclass(slots=True)
class _Slot:
    """The place of one replica; the keeper task alone changes it."""

    model: str
    index: int
    state: ReplicaState = ReplicaState.STARTING
    actor: Any = None
    placement_group: Any = None
    spec: EndpointSpec | None = None
    restarts: int = 0
    quick_deaths: int = 0
    note: str = ""
    seen: Observation = field(default_factory=lambda: Observation(LoadReport(), 0.0))
    keeper: asyncio.Task[None] | None = None
    leaving: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return replica_name(self.model, self.index)

    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            self.name, self.model, self.state, self.restarts, self.seen.report, self.note
        )


class Fleet:
    """The body of the fleet actor.

    Args:
        config: what to run.
        where: how errors name its file.
    """

    def __init__(self, config: FleetConfig, where: str) -> None:
        configure_logs(actor=FLEET_NAME)
        self._config = config
        self._where = where
        self._slots: dict[str, _Slot] = {}
        self._failure: str | None = None
        self._stopping = False
        self._reporter: asyncio.Task[None] | None = None
        self._hosted: list[EndpointSpec] = []

    def __repr__(self) -> str:
        return FLEET_NAME

    async def start(self) -> None:
        """Begin to start everything; returns at once.

        Raises:
            ConfigError: a model cannot be placed, or a key is missing on this node.
        """
        check_fleet(self._config, where=self._where)
        self._hosted = hosted_specs(self._config)
        if self._hosted:
            await self._scheduler().register.remote(self._hosted)
        for model, settings in self._config.models.items():
            for index in range(settings.replicas.max):
                self._add(model, index)
        self._reporter = asyncio.create_task(self._report_loads())

    def status(self) -> FleetStatus:
        """Every replica as it is now."""
        return FleetStatus(tuple(s.status() for s in self._slots.values()), self._failure)

    def endpoints(self) -> list[EndpointSpec]:
        """Everything that serves now."""
        ready = [s.spec for s in self._slots.values() if s.spec and s.state is ReplicaState.READY]
        return [*ready, *self._hosted]

    async def scale(self, model: str, replicas: int) -> None:
        """Start further replicas, or drain and stop the last ones.

        Raises:
            ConfigError: no such model, or a negative number.
        """
        if model not in self._config.models:
            known = ", ".join(self._config.models) or "none"
            raise ConfigError(f"no local model {model!r} (known: {known})")
        if replicas < 0:
            raise ConfigError(f"replicas must be 0 or more (given: {replicas})")
        mine = [slot for slot in self._slots.values() if slot.model == model]
        used = {slot.index for slot in mine}
        free = (index for index in range(replicas + len(mine)) if index not in used)
        for _ in range(replicas - len(mine)):
            self._add(model, next(free))
        surplus = sorted(mine, key=lambda slot: slot.index)[replicas:]
        await asyncio.gather(*(self._drain(slot) for slot in surplus))

    async def stop(self) -> None:
        """Stop every replica; nothing of them is left when this returns."""
        self._stopping = True
        if self._reporter is not None:
            self._reporter.cancel()
        slots = list(self._slots.values())
        for slot in slots:
            if slot.keeper is not None:
                slot.keeper.cancel()
        await asyncio.gather(*(s.keeper for s in slots if s.keeper), return_exceptions=True)
        await asyncio.gather(*(self._clear(slot, gently=True) for slot in slots))

    def _add(self, model: str, index: int) -> None:
        slot = _Slot(model, index)
        self._slots[slot.name] = slot
        slot.keeper = asyncio.create_task(self._keep(slot))

    async def _keep(self, slot: _Slot) -> None:
        while not self._stopping:
            slot.state = ReplicaState.STARTING
            try:
                await self._launch(slot)
            except (AgentCloudError, ray.exceptions.RayError) as error:
                why = _one_line(error)
                if slot.spec is None:  # it never served: its settings are wrong, not its luck
                    self._failure = f"{slot.name} did not start: {why}"
                    await self._clear(slot)
                    slot.state, slot.note = ReplicaState.STOPPED, why
                    return
                slot.quick_deaths += 1
            else:
                ready_s = time.monotonic()
                why = await self._watch(slot)
                steady = time.monotonic() - ready_s > STEADY_S
                slot.quick_deaths = 0 if steady else slot.quick_deaths + 1
            if slot.leaving.is_set():
                return
            log.warning("replica lost", endpoint=slot.name, why=why, restarts=slot.restarts)
            slot.state, slot.note = ReplicaState.LOST, why
            await self._scheduler().mark_down.remote(slot.name, why)
            await self._clear(slot)
            slot.restarts += 1
            await asyncio.sleep(restart_delay_s(slot.quick_deaths - 1))

    async def _launch(self, slot: _Slot) -> None:
        settings = self._config.models[slot.model]
        launched = await launch_replica(slot.name, slot.model, settings)
        slot.actor, slot.placement_group = launched.actor, launched.placement_group
        info = await slot.actor.ready.remote()
        slot.spec = replica_spec(
            slot.model,
            slot.index,
            settings,
            context_tokens=info.context_tokens,
            gpus=launched.degrees.ranks if settings.gpu else 0,
        )
        slot.seen = Observation(LoadReport(), time.monotonic())
        await self._scheduler().register.remote([slot.spec])
        slot.state, slot.note = ReplicaState.READY, ""
        log.info("replica ready", endpoint=slot.name)

    async def _watch(self, slot: _Slot) -> str:
        """Read the replica's load until it is lost; returns why."""
        health = self._config.health
        while True:
            await asyncio.sleep(health.report_s)
            try:
                report = await asyncio.wait_for(slot.actor.load.remote(), LOAD_TIMEOUT_S)
            except TimeoutError:
                pass  # a slow health call alone kills nothing
            except ray.exceptions.RayError as error:
                return f"its process died ({_one_line(error)})"
            except AgentCloudError as error:
                return _one_line(error)
            else:
                slot.seen = Observation(report, time.monotonic())
            if why := death_reason(slot.seen, time.monotonic(), health):
                return why

    async def _report_loads(self) -> None:
        epoch = await self._scheduler().ping.remote()
        while True:
            await asyncio.sleep(self._config.health.report_s)
            loads = {
                slot.name: slot.seen.report
                for slot in self._slots.values()
                if slot.state is ReplicaState.READY
            }
            # A scheduler that Ray has just restarted is away for a moment, and then knows nobody.
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                if (now := await self._scheduler().ping.remote()) != epoch:
                    await self._scheduler().register.remote(self.endpoints())
                    epoch = now
                if loads:
                    await self._scheduler().report_load.remote(loads)

    async def _drain(self, slot: _Slot) -> None:
        """No new calls, wait for those running, then stop."""
        slot.leaving.set()
        slot.state = ReplicaState.DRAINING
        await self._scheduler().unregister.remote([slot.name])
        # By its leases, not by its load: a call just leased has not reached the replica yet.
        while await self._scheduler().open_leases.remote(slot.name):  # noqa: ASYNC110 - an actor
            await asyncio.sleep(self._config.health.report_s)
        if slot.keeper is not None:
            slot.keeper.cancel()
            await asyncio.gather(slot.keeper, return_exceptions=True)
        await self._clear(slot, gently=True)
        del self._slots[slot.name]

    async def _clear(self, slot: _Slot, *, gently: bool = False) -> None:
        """Remove the replica's actor and its placement group."""
        actor, group = slot.actor, slot.placement_group
        slot.actor = slot.placement_group = None
        if actor is not None:
            if gently:
                with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                    await asyncio.wait_for(actor.shutdown.remote(), 5)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        if group is not None:
            ray.util.remove_placement_group(group)

    def _scheduler(self) -> Any:
        return ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)


def _one_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # a RayTaskError carries what the actor raised
    text = str(cause if isinstance(cause, AgentCloudError) else error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


#: The Ray actor class; `Fleet` itself stays importable for its types.
FleetActor = ray.remote(max_concurrency=64, max_restarts=0)(Fleet)

__all__ = ["Fleet", "FleetActor", "FleetStatus", "ReplicaState", "ReplicaStatus"]
