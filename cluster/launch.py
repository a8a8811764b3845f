"""Place one replica: plan its degree, reserve its GPUs, create its actor there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil
import structlog
from ray.util.placement_group import PlacementGroup

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.degrees import Hardware, Workload
from agentcloud.cluster.engine_settings import engine_settings, model_folder
from agentcloud.cluster.errors import ConfigError, PlanError, UnplannedModel
from agentcloud.cluster.placement import NodeGpus
from agentcloud.cluster.placement_ray import ray_nodes
from agentcloud.cluster.plan import make_plan
from agentcloud.cluster.plan_data import cpu_share, gpu_kind, model_shape
from agentcloud.cluster.replica import start_replica
from agentcloud.cluster.reserve import FIXED_WAIT_S, reserve

log = structlog.get_logger()

#: Creates a replica's actor: its name, its engine's settings, Ray's actor options.
StartReplica = Callable[..., Any]

_GIB = 1 << 30
#: `auto` takes the smallest degree that holds so many requests at full context, if any does.
_PLANNED_CONCURRENCY = 16


@dataclass(frozen=True, slots=True)
class Degrees:
    """How a replica is split: tensor parallel inside a node, pipeline stages over nodes."""

    tensor_parallel: int
    pipeline_parallel: int

    @property
    def ranks(self) -> int:
        """Processes of the replica, on GPUs one each."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True)
class Launched:
    """A replica's actor, which may be starting still, and what is reserved for it (None: nothing).

    Attributes:
        gpus: those it occupies.
    """

    actor: Any
    placement_group: PlacementGroup | None
    gpus: int


def degrees_of(name: str, model: LocalModel, nodes: list[NodeGpus]) -> Degrees:
    """Plan a model's degrees and refuse what cannot fit, before anything is loaded.

    Args:
        name: the model's name in fleet.yaml.
        model: its section.
        nodes: the cluster's nodes with their GPUs.

    Raises:
        PlanError: it does not fit, with the reason and what would.
        ConfigError: it asks for GPUs and the cluster has none.
    """
    asked = None if model.tensor_parallel == "auto" else model.tensor_parallel
    try:
        shape = model_shape(str(model_folder(model.path)))
    except UnplannedModel:
        if asked is None:
            raise
        log.warning("model_not_planned", model=name, tensor_parallel=asked)
        return Degrees(asked, model.pipeline_parallel)
    plan = partial(
        make_plan,
        shape,
        _hardware(name, model, nodes),
        dtype=model.dtype,
        tensor_parallel=asked if model.gpu else asked or 1,
        pipeline_parallel=model.pipeline_parallel,
    )
    # What vLLM itself demands: one request of the longest context.
    least = Workload(
        context_tokens=model.context_tokens or shape.context_tokens,
        concurrency=1,
        sequences=model.max_concurrency,
    )
    if asked is None and model.gpu is not None:
        comfort = replace(least, concurrency=min(model.max_concurrency, _PLANNED_CONCURRENCY))
        with suppress(PlanError):
            chosen = plan(comfort).chosen
            return Degrees(chosen.tensor_parallel, chosen.pipeline_parallel)
    chosen = plan(least).chosen
    return Degrees(chosen.tensor_parallel, chosen.pipeline_parallel)


def _hardware(name: str, model: LocalModel, nodes: list[NodeGpus]) -> Hardware:
    if model.gpu is None:
        tensor_parallel = 1 if model.tensor_parallel == "auto" else model.tensor_parallel
        ranks = tensor_parallel * model.pipeline_parallel
        return Hardware(
            cpu_share(psutil.virtual_memory().total, ranks=ranks),
            gpus_per_node=ranks,
            kv_bytes_per_gpu=int(model.kv_cache_gib * _GIB),
        )
    with_gpus = [node.total_gpus for node in nodes if node.total_gpus]
    if not model.replicas.is_fixed:
        # Nodes may come: as many as are asked for, like those there are, or are said to be.
        missing = model.pipeline_parallel - len(with_gpus)
        with_gpus += [max(with_gpus, default=model.gpus_per_node)] * missing
    if not with_gpus:
        raise ConfigError(
            f"asks for {model.gpu} and no node of this cluster has a GPU; leave `gpu` out to "
            "run on the CPU",
            where=f"fleet.yaml: models.{name}",
        )
    return Hardware(gpu_kind(model.gpu), gpus_per_node=max(with_gpus), nodes=len(with_gpus))


async def launch_replica(
    name: str,
    model: str,
    settings: LocalModel,
    *,
    patience_s: float = FIXED_WAIT_S,
    on_pending: Callable[[str], None] = lambda _why: None,
    start: StartReplica = start_replica,
) -> Launched:
    """Create a replica's actor where its placement says; it is not ready yet.

    Args:
        name: of the replica, its actor's too.
        model: the model's name in fleet.yaml.
        settings: its section.
        patience_s: how long to wait for room, where nodes may come.
        on_pending: told why it has to wait.
        start: creates the actor.

    Raises:
        PlanError: it cannot be placed; nothing stays reserved.
        ConfigError: it asks for GPUs and there are none.
    """
    degrees = degrees_of(model, settings, ray_nodes())
    engine = engine_settings(
        model,
        settings,
        tensor_parallel=degrees.tensor_parallel,
        cores=sorted(os.sched_getaffinity(0)),
    )
    room = await reserve(name, settings, degrees, patience_s=patience_s, on_pending=on_pending)
    gpus = degrees.ranks if settings.gpu else 0
    return Launched(start(name, engine, **room.options), room.group, gpus)
