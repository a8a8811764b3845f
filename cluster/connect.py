"""Connect this process to the running cluster."""

from __future__ import annotations

from collections.abc import Callable

import ray

from agentcloud.cluster.batch_client import BatchClient, BatchEndpoint
from agentcloud.cluster.batcher_port import BatcherPort
from agentcloud.cluster.cache_client import CacheClient
from agentcloud.cluster.cache_port import CacheActorPort
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    EndpointKind,
    EndpointSpec,
)
from agentcloud.cluster.errors import ConfigError, ConnectionFailed
from agentcloud.cluster.hosted import HostedEndpoint
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.patience import asked
from agentcloud.cluster.ports import Endpoint
from agentcloud.cluster.ray_session import connect_ray
from agentcloud.cluster.scheduler_client import SchedulerClient


def endpoint_opener(config: FleetConfig) -> Callable[[EndpointSpec], Endpoint]:
    """What opens the endpoints of a fleet in this process; nothing is connected by opening."""
    batches = BatchClient(BatcherPort())

    def opened(spec: EndpointSpec) -> Endpoint:
        if spec.kind is EndpointKind.LOCAL:
            return LocalEndpoint(spec)
        if spec.account is None or spec.account not in config.accounts:
            raise ConfigError(
                f"{spec.name} names account {spec.account!r}, which is not there; add it",
                where="fleet.yaml: accounts",
            )
        direct = HostedEndpoint(spec, config.accounts[spec.account])
        return BatchEndpoint(spec, batches, direct) if spec.batch else direct

    return opened


async def connect(address: str | None = None) -> Inference:
    """Find the cluster's scheduler and make an `Inference` over it.

    Args:
        address: of its Ray, e.g. `10.0.0.5:6379`; None: `RAY_ADDRESS`, else the Ray that runs on
            this machine. Not used where this process is connected already.

    Raises:
        ConfigError: no Ray is there, or no agentcloud runs on it.
        ConnectionFailed: its scheduler does not answer.
    """
    # Blocks the loop, once: Ray wants to be joined in the thread that handles signals.
    actor = _scheduler(address)
    try:
        config: FleetConfig = await asked(actor.config.remote)
    except ray.exceptions.RayActorError as error:
        raise ConnectionFailed(
            f"the scheduler does not answer ({type(error).__name__}); look at it with "
            f"`agentcloud doctor`"
        ) from error
    scheduler = SchedulerClient(actor)
    return Inference(
        scheduler,
        endpoint_opener(config),
        config,
        on_close=scheduler.close,
        cache=None if config.cache is None else CacheClient(CacheActorPort()),
    )


def _scheduler(address: str | None) -> ray.actor.ActorHandle:
    where = connect_ray(address).address
    try:
        return ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
    except ValueError:
        raise ConfigError(
            f"no agentcloud runs on the Ray cluster at {where!r}; start it with `agentcloud up`"
        ) from None
