"""Bring a Ray, the scheduler and the fleet up, and down again without leaving a process.

Only `up` creates the long-lived actors: detached, in our Ray namespace, with no user's runtime
environment.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from agentcloud.cluster.adopt import end_replicas
from agentcloud.cluster.cache_actor import bring_cache, stop_cache
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    BATCHER_NAME,
    FLEET_NAME,
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    EndpointSpec,
)
from agentcloud.cluster.endpoints import check_fleet
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.fleet import FleetActor
from agentcloud.cluster.fleet_memory import Memory
from agentcloud.cluster.fleet_status import FleetStatus
from agentcloud.cluster.patience import PATIENCE_S
from agentcloud.cluster.ray_session import RayInfo, connect_ray, start_local_ray
from agentcloud.cluster.scheduler_actor import start_scheduler

__all__ = [
    "RayInfo",
    "UpInfo",
    "connect_ray",
    "down",
    "fleet_status",
    "is_up",
    "start_local_ray",
    "up",
]

#: Methods of long-lived actors that answer at once get this long, seconds: time to be restarted.
CONTROL_TIMEOUT_S = PATIENCE_S
#: An engine takes 40 s on two idle cores; a 70B model minutes to load.
START_TIMEOUT_S = 1800.0
#: After `down`, seconds in which every process must be gone.
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class UpInfo:
    """What `up` brought up."""

    endpoints: tuple[EndpointSpec, ...]
    seconds: float


def up(
    config: FleetConfig,
    *,
    where: str = "fleet.yaml",
    on_progress: Callable[[str], None] = lambda _line: None,
    timeout_s: float = START_TIMEOUT_S,
) -> UpInfo:
    """Create scheduler and fleet on the connected Ray and wait until every replica answers.

    A fleet that is up already takes the changes of its file: replicas whose settings changed are
    replaced one by one, with calls flowing, and this returns when the last old one is gone.

    Args:
        config: the fleet to bring up.
        where: how errors name its file.
        on_progress: gets a line whenever something changed.
        timeout_s: the longest to wait.

    Raises:
        ConfigError: a key is missing, a model cannot be placed or loaded; then nothing of it is
            left running, and what ran before runs on.
    """
    started_s = time.monotonic()
    running = _actor(FLEET_NAME)
    if (running is None) != (_actor(SCHEDULER_NAME) is None):
        raise ConfigError("half of a fleet is up on this cluster; `agentcloud down` stops it")
    check_fleet(config, where=where)
    if running is not None:
        for line in _get(running.apply.remote(config, where), 60):
            on_progress(line)
        bring_cache(config)
        _wait(running, FleetStatus.is_settled, on_progress, timeout_s)
        endpoints = ray.get(running.endpoints.remote(), timeout=CONTROL_TIMEOUT_S)
        return UpInfo(endpoints=tuple(endpoints), seconds=time.monotonic() - started_s)
    scheduler = start_scheduler(config)
    batcher = None
    if any(hosted.batch for hosted in config.hosted.values()):
        # Here, since its Anthropic client takes a second to import, in every command.
        from agentcloud.cluster.batcher_actor import start_batcher

        batcher = start_batcher(config)
    fleet = FleetActor.options(
        name=FLEET_NAME, namespace=RAY_NAMESPACE, lifetime="detached", num_cpus=0
    ).remote(config, where)
    try:
        _ping(scheduler)
        bring_cache(config)
        if batcher is not None:
            try:
                ray.get(batcher.snapshot.remote(), timeout=60)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, ConfigError):
                    raise error.cause from None
                raise
        _get(fleet.start.remote(), 60)
        _wait(fleet, FleetStatus.serves, on_progress, timeout_s)
        endpoints = ray.get(fleet.endpoints.remote(), timeout=CONTROL_TIMEOUT_S)
    except BaseException:
        down()
        raise
    return UpInfo(endpoints=tuple(endpoints), seconds=time.monotonic() - started_s)


def down() -> bool:
    """Stop replicas, fleet and scheduler; nothing of them is left. Safe to call twice.

    Returns:
        Whether anything was up.
    """
    fleet, scheduler = _actor(FLEET_NAME), _actor(SCHEDULER_NAME)
    if fleet is not None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(fleet.stop.remote(), timeout=STOP_TIMEOUT_S)
    batcher = _actor(BATCHER_NAME)
    if batcher is not None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(batcher.stop.remote(), timeout=STOP_TIMEOUT_S)
    stop_cache()
    for actor in (fleet, scheduler, batcher):
        if actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
    # A fleet that could not be asked has not stopped its replicas: they are detached.
    end_replicas()
    Memory().clear()
    return fleet is not None or scheduler is not None


def fleet_status() -> FleetStatus:
    """Every replica with its state, on the connected Ray.

    Raises:
        ConfigError: no fleet is up.
    """
    fleet = _actor(FLEET_NAME)
    if fleet is None:
        raise ConfigError("no fleet is up on this cluster; `agentcloud up` starts one")
    status: FleetStatus = ray.get(fleet.status.remote(), timeout=CONTROL_TIMEOUT_S)
    return status


def is_up() -> bool:
    """Whether a scheduler runs on the connected Ray."""
    return _actor(SCHEDULER_NAME) is not None


def _get(asked: Any, timeout_s: float) -> Any:
    """An actor's answer, or its `ConfigError` itself."""
    try:
        return ray.get(asked, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise error.cause from None
        raise


def _wait(
    fleet: Any,
    is_done: Callable[[FleetStatus], bool],
    on_progress: Callable[[str], None],
    timeout_s: float,
) -> None:
    deadline_s = time.monotonic() + timeout_s
    last = ""
    while True:
        status: FleetStatus = ray.get(fleet.status.remote(), timeout=CONTROL_TIMEOUT_S)
        if status.failure is not None:
            raise ConfigError(status.failure)
        line = status.one_line()
        if line != last:
            on_progress(line)
            last = line
        if is_done(status):
            return
        if time.monotonic() > deadline_s:
            raise ConfigError(f"not ready after {timeout_s:.0f} s: {line}")
        time.sleep(0.2)


def _ping(scheduler: Any) -> None:
    try:
        ray.get(scheduler.ping.remote(), timeout=60)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # Without the remote traceback: its store cannot be used.


def _actor(name: str) -> Any | None:
    try:
        return ray.get_actor(name, namespace=RAY_NAMESPACE)
    except ValueError:
        return None
