"""One replica's keeper: launch, register, watch until lost, clear away, launch again; drain."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any, Protocol

import ray
import structlog

from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME, EndpointSpec, LoadReport
from agentcloud.cluster.endpoints import replica_name, replica_spec
from agentcloud.cluster.errors import AgentCloudError, NoRoom
from agentcloud.cluster.fleet_status import ReplicaState, ReplicaStatus
from agentcloud.cluster.launch import Launched, StartReplica, launch_replica
from agentcloud.cluster.patience import asked
from agentcloud.cluster.prefix_reports import PrefixReports
from agentcloud.cluster.rollout import Member
from agentcloud.cluster.watch import Observation, death_reason, restart_delay_s

log = structlog.get_logger()

#: A load call that takes longer is given up on (and kills nothing).
LOAD_TIMEOUT_S = 10.0
#: A replica that ran this long starts its count of restarts anew.
STEADY_S = 60.0


class Home(Protocol):
    """What a keeper tells the fleet."""

    @property
    def config(self) -> FleetConfig:
        """The fleet.yaml in force."""
        ...

    @property
    def prefixes(self) -> PrefixReports:
        """What replicas say of their caches."""
        ...

    def serves(self, keeper: Keeper, took_s: float | None) -> None:
        """A replica is ready, so long after its launch began (None: it was adopted)."""
        ...

    def failed(self, keeper: Keeper, why: str) -> bool:
        """A replica did not start; returns whether to go on trying."""
        ...

    def found_no_room(self, keeper: Keeper, why: str) -> bool:
        """There was no room for a replica; returns whether to go on trying."""
        ...


class Keeper:
    """Keeps one replica running with the settings it was made with.

    The keeper's task alone changes its state, until it is drained or stopped.

    Args:
        home: the fleet.
        model: its name.
        index: which of the model's replicas.
        settings: what it runs with.
        start: creates its actor.
        adopted: it, where an earlier fleet's process has launched it with these settings.
    """

    def __init__(
        self,
        home: Home,
        model: str,
        index: int,
        settings: LocalModel,
        start: StartReplica,
        adopted: Launched | None = None,
    ) -> None:
        self.model, self.index, self.settings = model, index, settings
        self.state = ReplicaState.STARTING
        self.spec: EndpointSpec | None = None
        self.seen = Observation(LoadReport(), 0.0)
        self.launched_s = time.monotonic()
        self._home, self._start = home, start
        #: Set once it is known whether an adopted replica runs.
        self.joined = asyncio.Event()
        self._adopted = adopted
        self._take(adopted or Launched(None, None, 0))
        self._restarts = 0
        self._quick_deaths = 0
        self._note = ""
        self._pending_since_s: float | None = None
        self._task = asyncio.create_task(self._keep())

    @property
    def name(self) -> str:
        """The replica's, which is its actor's and its endpoint's."""
        return replica_name(self.model, self.index)

    @property
    def is_live(self) -> bool:
        """Whether it serves or is meant to."""
        return self.state not in (ReplicaState.DRAINING, ReplicaState.STOPPED)

    def status(self, *, is_current: bool) -> ReplicaStatus:
        """As people see it."""
        return ReplicaStatus(
            self.name,
            self.model,
            self.state,
            self._restarts,
            self.seen.report,
            self._note,
            is_current,
        )

    def member(self, *, is_current: bool) -> Member:
        """As the rollout sees it."""
        since_s = self._pending_since_s
        pending_s = 0.0 if since_s is None else time.monotonic() - since_s
        return Member(self.name, self.index, self.state, is_current, pending_s)

    async def reprice(self, settings: LocalModel) -> None:
        """Take settings that differ in nothing the engine was started with."""
        self.settings = settings
        if self.spec is not None and self.state is ReplicaState.READY:
            spec = replica_spec(
                self.model,
                self.index,
                settings,
                context_tokens=self.spec.context_tokens,
                gpus=self._gpus,
                kv_tokens=self.spec.kv_tokens,
            )
            self.spec = spec
            self._home.prefixes.lost(self.name)  # to the scheduler it is another one now
            await asked(lambda: scheduler().register.remote([spec]))

    async def drain(self, limit_s: float) -> None:
        """No new calls, wait for those running, then stop; what runs on after `limit_s` moves."""
        serving = self.state is ReplicaState.READY
        self.state, self._pending_since_s = ReplicaState.DRAINING, None
        if not serving:
            await end(self._task)
        with contextlib.suppress(ray.exceptions.RayError):  # restarted, it does not know us
            await scheduler().unregister.remote([self.name])
        # By its leases, not by its load: a call just leased has not reached the replica yet.
        until_s = time.monotonic() + limit_s
        while await _open_leases(self.name):
            if time.monotonic() > until_s:
                log.warning("drain took too long, calls are sent elsewhere", endpoint=self.name)
                break
            await asyncio.sleep(self._home.config.health.report_s)
        await self.stop()

    async def stop(self) -> None:
        """End the replica; nothing of it is left when this returns."""
        await end(self._task)
        await self._clear(gently=True)
        self.state = ReplicaState.STOPPED

    async def _keep(self) -> None:
        while True:
            self.state, self._note = ReplicaState.STARTING, ""
            self.launched_s = time.monotonic()
            try:
                await self._launch()
            except NoRoom as error:
                why, go_on = _one_line(error), self._home.found_no_room(self, _one_line(error))
            except (AgentCloudError, ray.exceptions.RayError) as error:
                why = _one_line(error)
                go_on = self.spec is not None or self._home.failed(self, why)
                self._quick_deaths += 1
            else:
                self.joined.set()
                ready_s, go_on = time.monotonic(), True
                why = await self._watch()
                steady = time.monotonic() - ready_s > STEADY_S
                self._quick_deaths = 0 if steady else self._quick_deaths + 1
            if self.state is ReplicaState.DRAINING:
                return
            log.warning("replica lost", endpoint=self.name, why=why, restarts=self._restarts)
            self._pending_since_s = None
            if not go_on:
                await self._clear()
                self.state, self._note = ReplicaState.STOPPED, why
                return
            self.state, self._note = ReplicaState.LOST, why
            await self._mark_down(why)
            await self._clear()
            self._restarts += 1
            await asyncio.sleep(restart_delay_s(max(0, self._quick_deaths - 1)))

    async def _launch(self) -> None:
        adopted, self._adopted = self._adopted, None
        if adopted is None:
            self.joined.set()
            # Where a fleet that goes on did not find it, the scheduler still gives it calls.
            await self._mark_down("it starts")
            self._take(
                await launch_replica(
                    self.name,
                    self.model,
                    self.settings,
                    patience_s=self._home.config.scaling.pending_s,
                    on_pending=self._on_pending,
                    start=self._start,
                )
            )
        self.state, self._note, self._pending_since_s = ReplicaState.STARTING, "", None
        info = await self._actor.ready.remote()
        spec = self.spec = replica_spec(
            self.model,
            self.index,
            self.settings,
            context_tokens=info.context_tokens,
            gpus=self._gpus,
            kv_tokens=info.kv_tokens,
        )
        self._home.prefixes.lost(self.name)
        self.seen = Observation(LoadReport(), time.monotonic())
        await asked(lambda: scheduler().register.remote([spec]))
        self.state, self._note = ReplicaState.READY, ""
        log.info("replica ready", endpoint=self.name, adopted=adopted is not None)
        self._home.serves(self, None if adopted else time.monotonic() - self.launched_s)

    def _take(self, launched: Launched) -> None:
        self._actor, self._group = launched.actor, launched.placement_group
        self._gpus = launched.gpus

    async def _mark_down(self, why: str) -> None:
        with contextlib.suppress(ray.exceptions.RayActorError):  # its successor knows nobody
            await asked(lambda: scheduler().mark_down.remote(self.name, why))

    def _on_pending(self, why: str) -> None:
        if self._pending_since_s is None:
            self._pending_since_s = time.monotonic()
            log.info("replica waits for room", endpoint=self.name, why=why)
        self.state, self._note = ReplicaState.PENDING, why

    async def _watch(self) -> str:
        """Read the replica's load until it is lost; returns why."""
        while True:
            health = self._home.config.health
            await asyncio.sleep(health.report_s)
            try:
                anew = self._home.prefixes.wants_all(self.name)
                report, change = await asyncio.wait_for(
                    self._actor.report.remote(anew=anew), LOAD_TIMEOUT_S
                )
            except TimeoutError:
                # A slow health call alone kills nothing.
                self._home.prefixes.lost(self.name)
            except ray.exceptions.RayError as error:
                return f"its process died ({_one_line(error)})"
            except AgentCloudError as error:
                return _one_line(error)
            else:
                self.seen = Observation(report, time.monotonic())
                self._home.prefixes.take(self.name, change)
            if why := death_reason(self.seen, time.monotonic(), health):
                return why

    async def _clear(self, *, gently: bool = False) -> None:
        """Remove the replica's actor and its placement group."""
        actor, group = self._actor, self._group
        self._actor = self._group = None
        if actor is not None:
            if gently:
                with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                    await asyncio.wait_for(actor.shutdown.remote(), 5)
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        if group is not None:
            ray.util.remove_placement_group(group)

    def __repr__(self) -> str:
        return f"<Keeper {self.name} {self.state}>"


async def end(*tasks: asyncio.Task[None], again_s: float = 0.2) -> None:
    """Cancel tasks until they have ended, whatever they raise.

    Once is not enough: on Python 3.11 `wait_for` drops a cancellation that comes just as it gets
    its answer, and the task would run on for ever.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=again_s)
    await asyncio.gather(*tasks, return_exceptions=True)


def scheduler() -> Any:
    """The scheduler's actor."""
    return ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)


async def _open_leases(name: str) -> int:
    try:
        return int(await scheduler().open_leases.remote(name))
    except ray.exceptions.RayError:
        return 1  # away for a moment: nobody knows


def _one_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None)  # a RayTaskError carries what the actor raised
    text = str(cause if isinstance(cause, AgentCloudError) else error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
