"""Room for one replica: asked for, waited for without blocking anybody, given back on failure.

A placement group that pends is what makes Ray's autoscaler add nodes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agentcloud.cluster.config_models import LocalModel
from agentcloud.cluster.errors import NoRoom, PlanError
from agentcloud.cluster.placement import Placement, place, place_later
from agentcloud.cluster.placement_ray import (
    actor_options,
    ask_placement_group,
    is_reserved,
    rank_places,
    ray_nodes,
)

if TYPE_CHECKING:
    from agentcloud.cluster.launch import Degrees

_POLL_S: Final = 0.2
#: A group that is not there after this is told of as pending.
_QUICK_S: Final = 1.0
#: Resources of a removed group are free again a moment later.
_FREED_S: Final = 0.5
#: A number of replicas that is fixed does not wait for nodes to come, only for room to be given.
FIXED_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Room:
    """Where a replica's actor goes; `group` is None where nothing had to be reserved."""

    group: PlacementGroup | None
    options: dict[str, Any]


async def reserve(
    name: str,
    settings: LocalModel,
    degrees: Degrees,
    *,
    patience_s: float,
    on_pending: Callable[[str], None],
) -> Room:
    """Reserve what a replica takes. On any failure, or when cancelled, nothing stays reserved.

    Args:
        name: the replica's; shown in Ray's dashboard.
        settings: its model's section.
        degrees: how it is split.
        patience_s: how long to wait for room.
        on_pending: told why it has to wait.

    Raises:
        PlanError: there is no room and the number of replicas is fixed, so no node is waited for.
        NoRoom: none came in time.
    """
    if settings.replicas.is_fixed:
        patience_s = FIXED_WAIT_S
    until_s = time.monotonic() + patience_s
    if settings.gpu is not None:
        return await _reserve_gpus(name, settings, degrees, until_s, on_pending)
    bundle = dict(settings.resources) | ({"CPU": settings.cpus} if settings.cpus else {})
    if not bundle:
        return Room(None, {"num_cpus": 0})
    group = await _granted(Placement(1, 1, (bundle,), "STRICT_PACK"), name, until_s, on_pending)
    return Room(
        group,
        {
            "num_cpus": settings.cpus,
            "resources": dict(settings.resources),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group,
                placement_group_bundle_index=0,
                placement_group_capture_child_tasks=True,
            ),
        },
    )


async def _reserve_gpus(
    name: str,
    settings: LocalModel,
    degrees: Degrees,
    until_s: float,
    on_pending: Callable[[str], None],
) -> Room:
    tp, stages = degrees.tensor_parallel, degrees.pipeline_parallel
    while True:
        nodes = ray_nodes()
        try:
            placement = place(tp, stages, nodes, actor_cpus=settings.cpus)
        except PlanError as error:
            if settings.replicas.is_fixed:
                raise
            on_pending(str(error).split("; nearest")[0])
            totals = [node.total_gpus for node in nodes if node.total_gpus]
            placement = place_later(
                tp,
                stages,
                gpus_per_node=max(totals, default=settings.gpus_per_node),
                actor_cpus=settings.cpus,
            )
        first, *rest = placement.bundles
        placement = replace(placement, bundles=({**first, **settings.resources}, *rest))
        group = await _granted(placement, name, until_s, on_pending)
        if len(placement.bundles) == placement.ranks:
            options = actor_options(placement, group, actor_cpus=settings.cpus)
            return Room(group, options | {"resources": dict(settings.resources)})
        # Whole stages: their nodes are there now, and each rank gets a bundle of its own.
        remove_placement_group(group)
        await asyncio.sleep(_FREED_S)


async def _granted(
    placement: Placement, name: str, until_s: float, on_pending: Callable[[str], None]
) -> PlacementGroup:
    group = ask_placement_group(placement, name=name, lifetime="detached")
    asked_s = time.monotonic()
    wanted = _words(placement)
    told = False
    try:
        while not is_reserved(group):
            now_s = time.monotonic()
            if now_s > until_s:
                raise NoRoom(
                    f"no room for {wanted} within {now_s - asked_s:.0f} s; see `ray status`, "
                    "max_workers in ray_config.yaml, or lower `replicas`"
                )
            if not told and now_s - asked_s > _QUICK_S:
                told = True
                on_pending(f"waits for room: {wanted}")
            await asyncio.sleep(_POLL_S)
        if len(placement.bundles) == placement.ranks and "GPU" in placement.bundles[0]:
            rank_places(placement, group)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _words(placement: Placement) -> str:
    totals: dict[str, float] = {}
    for bundle in placement.bundles:
        for resource, amount in bundle.items():
            totals[resource] = totals.get(resource, 0.0) + amount
    return ", ".join(f"{amount:g} {resource}" for resource, amount in totals.items())
