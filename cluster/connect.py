"""Connect this process to the running cluster."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import ray

from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import (
    RAY_NAMESPACE,
    SCHEDULER_NAME,
    Endpoint,
    EndpointKind,
    EndpointSpec,
)
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.hosted import HostedEndpoint
from agentcloud.cluster.inference import Inference
from agentcloud.cluster.local import LocalEndpoint
from agentcloud.cluster.scheduler_client import SchedulerClient


def endpoint_opener(config: FleetConfig) -> Callable[[EndpointSpec], Endpoint]:
    """What opens the endpoints of a fleet in this process; nothing is connected by opening."""

    def opened(spec: EndpointSpec) -> Endpoint:
        if spec.kind is EndpointKind.LOCAL:
            return LocalEndpoint(spec)
        if spec.account is None or spec.account not in config.accounts:
            raise ConfigError(
                f"{spec.name} names account {spec.account!r}, which is not there; add it",
                where="fleet.yaml: accounts",
            )
        return HostedEndpoint(spec, config.accounts[spec.account])

    return opened


async def connect(address: str | None = None) -> Inference:
    """Find the cluster's scheduler and make an `Inference` over it.

    Args:
        address: of its Ray, e.g. `10.0.0.5:6379`; None: `RAY_ADDRESS`, else the Ray that runs on
            this machine. Not used where this process is connected already.

    Raises:
        ConfigError: no Ray is there, or no agentcloud runs on it.
    """
    # Both calls block on the network.
    actor = await asyncio.to_thread(_scheduler, address)
    config: FleetConfig = await actor.config.remote()
    return Inference(SchedulerClient(actor), endpoint_opener(config), config)


def _scheduler(address: str | None) -> ray.actor.ActorHandle:
    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    if not ray.is_initialized():
        # A client of an existing cluster must say that it uses tokens; only a fresh local Ray
        # switches them on by itself.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        try:
            ray.init(
                address=where, namespace=RAY_NAMESPACE, log_to_driver=False, logging_level="error"
            )
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster at {where!r} ({_first_line(error)}); start one with "
                f"`agentcloud up`, or give its address"
            ) from None
        except Exception as error:
            raise ConfigError(
                f"cannot join the Ray cluster at {where!r} ({_first_line(error)}); is its token "
                f"in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token?"
            ) from error
    try:
        return ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
    except ValueError:
        raise ConfigError(
            f"no agentcloud runs on the Ray cluster at {where!r}; start it with `agentcloud up`"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
