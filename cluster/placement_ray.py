"""Placement groups at Ray: the thin shell around placement.py."""

from __future__ import annotations

from typing import Any

import ray
from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.placement import NodeGpus, Placement, RankPlace, expected_ranks

#: Ray gives every node this label.
_NODE_LABEL = "ray.io/node-id"


def ray_nodes() -> list[NodeGpus]:
    """The living nodes of the cluster this process is connected to."""
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    return [
        NodeGpus(
            node_id=node["NodeID"],
            free_gpus=int(free.get(node["NodeID"], {}).get("GPU", 0)),
            total_gpus=int(node["Resources"].get("GPU", 0)),
            free_cpus=float(free.get(node["NodeID"], {}).get("CPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def create_placement_group(
    placement: Placement, *, name: str = "", lifetime: str | None = None, timeout_s: float = 60.0
) -> PlacementGroup:
    """Reserve a placement's bundles and wait for them.

    The ranks' nodes are checked before it returns: no tensor-parallel group crosses nodes. On any
    failure nothing stays reserved.

    Args:
        placement: from `place`.
        name: shown in Ray's dashboard.
        lifetime: `detached` to outlive its creator.
        timeout_s: seconds to wait for the resources.

    Raises:
        PlanError: they did not become free in time, or Ray gave nodes that vLLM cannot use.
    """
    group = ask_placement_group(placement, name=name, lifetime=lifetime)
    try:
        if not group.wait(timeout_s):
            raise PlanError(
                f"{placement.ranks} GPUs were not reserved within {timeout_s:g} s: somebody else "
                "took them, or a node left; see `ray status`",
            )
        rank_places(placement, group)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def ask_placement_group(
    placement: Placement, *, name: str = "", lifetime: str | None = None
) -> PlacementGroup:
    """Ask for a placement's bundles without waiting: pending ones make the autoscaler add nodes."""
    pins: dict[str, Any] = {}
    if placement.bundle_nodes:
        pins["bundle_label_selector"] = [{_NODE_LABEL: node} for node in placement.bundle_nodes]
    return placement_group(
        [dict(bundle) for bundle in placement.bundles],
        strategy=placement.strategy,
        name=name,
        lifetime=lifetime,
        **pins,
    )


def named_groups(prefix: str) -> dict[str, PlacementGroup]:
    """Placement groups by name: all, reserved or pending, whose names begin so."""
    return {
        table["name"]: PlacementGroup(PlacementGroupID(bytes.fromhex(group)))
        for group, table in placement_group_table().items()
        if table["name"].startswith(prefix) and table["state"] != "REMOVED"
    }


def is_reserved(group: PlacementGroup) -> bool:
    """Whether all bundles of a group have their room."""
    return bool(placement_group_table(group)["state"] == "CREATED")


def rank_places(placement: Placement, group: PlacementGroup) -> tuple[RankPlace, ...]:
    """Where vLLM will put each rank of a ready placement group."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    return expected_ranks(placement, {int(bundle): node for bundle, node in nodes.items()})


def actor_options(
    placement: Placement, group: PlacementGroup, *, actor_cpus: float = 1.0
) -> dict[str, Any]:
    """Options of the actor that starts the engine: inside bundle 0, its workers in the rest.

    Args:
        placement: what the group was made for.
        group: from `create_placement_group`.
        actor_cpus: as given to `place`.
    """
    return {
        "num_cpus": actor_cpus,
        "num_gpus": placement.actor_gpus,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            placement_group=group,
            placement_group_bundle_index=0,
            placement_group_capture_child_tasks=True,
        ),
    }
