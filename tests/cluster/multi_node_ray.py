"""Run by test_placement_ray.py in a process of its own: a real Ray of three nodes, no real GPU.

Prints one JSON object: for each scenario the map of bundles and ranks to nodes as Ray gave it, what
actors saw from inside the group, and with `--vllm` the order of vLLM's own Ray executor.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.placement import Placement, expected_ranks, place
from agentcloud.cluster.placement_ray import (
    actor_options,
    create_placement_group,
    rank_places,
    ray_nodes,
)


class Engine:
    """Stands where the replica's actor would: it starts nothing, it says where it is."""

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def order_of_vllm(self, group: PlacementGroup) -> list[list[Any]]:
        """Bundle and node of each rank, by vLLM's own function, which asks for a GPU platform."""
        from vllm.platforms import current_platform
        from vllm.v1.executor.ray_utils import get_bundles_sorted_by_node

        type(current_platform).ray_device_key = "GPU"
        return [[bundle, node] for bundle, node, _ in get_bundles_sorted_by_node(group)]


class Rank:
    """Takes the GPU of one bundle, as vLLM's worker does."""

    def seat(self) -> list[Any]:
        context = ray.get_runtime_context()
        return [context.get_node_id(), context.get_accelerator_ids()["GPU"]]


def observe(placement: Placement, *, act: bool = False) -> dict[str, Any]:
    """Where Ray put a placement's bundles; with `act` also what actors in it see."""
    group = create_placement_group(placement, name="replica", timeout_s=120)
    ranks = rank_places(placement, group)
    seen = {
        "strategy": placement.strategy,
        "bundles": placement_group_table(group)["bundles_to_node_id"],
        "ranks": [[rank.rank, rank.stage, rank.bundle, rank.node_id] for rank in ranks],
    }
    if act:
        engine = ray.remote(Engine).options(**actor_options(placement, group)).remote()
        # The ends of each tensor-parallel group: a process for every rank would take a minute.
        ends = [
            rank
            for rank in ranks
            if rank.rank % placement.tensor_parallel in (0, placement.tensor_parallel - 1)
        ]
        workers = [
            ray.remote(Rank)
            .options(
                num_cpus=0,
                num_gpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank.bundle),
            )
            .remote()
            for rank in ends
        ]
        seats = ray.get([worker.seat.remote() for worker in workers])
        seen["seats"] = [[rank.rank, *seat] for rank, seat in zip(ends, seats, strict=True)]
        seen["engine_node"] = ray.get(engine.node.remote())
    remove_placement_group(group)
    return seen


def compare_with_vllm(placement: Placement) -> list[Any]:
    """Our order of ranks beside vLLM's, with the engine on the first and on the last bundle."""
    group = create_placement_group(placement, timeout_s=120)
    table = placement_group_table(group)["bundles_to_node_id"]
    engines = [
        ray.remote(Engine)
        .options(num_cpus=0, scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle))
        .remote()
        for bundle in (0, placement.ranks - 1)
    ]
    theirs = ray.get([engine.order_of_vllm.remote(group) for engine in engines])
    homes = ray.get([engine.node.remote() for engine in engines])
    return [
        {
            "ours": [
                [rank.bundle, rank.node_id]
                for rank in expected_ranks(placement, table, driver_node=home)
            ],
            "vllm": order,
        }
        for home, order in zip(homes, theirs, strict=True)
    ]


def refusal(tensor_parallel: int, pipeline_parallel: int) -> str:
    try:
        place(tensor_parallel, pipeline_parallel, ray_nodes())
    except PlanError as error:
        return str(error)
    return ""


def wait_until_free(gpus: int) -> None:
    """Removed groups give their GPUs back a moment later."""
    deadline = time.monotonic() + 120
    while sum(node.free_gpus for node in ray_nodes()) != gpus:
        if time.monotonic() > deadline:
            raise RuntimeError("GPUs were not given back")
        time.sleep(0.05)


def all_scenarios() -> dict[str, Any]:
    seen: dict[str, Any] = {"scenarios": {}}
    for tensor_parallel, stages in [(1, 1), (4, 1), (8, 1), (8, 2), (4, 3)]:
        wait_until_free(16)
        placement = place(tensor_parallel, stages, ray_nodes())
        seen["scenarios"][f"{tensor_parallel}x{stages}"] = observe(
            placement, act=(tensor_parallel, stages) in [(4, 1), (8, 2)]
        )
    wait_until_free(16)
    seen["refused_tp16"] = refusal(16, 1)
    pinned = create_placement_group(place(4, 1, ray_nodes()))
    wait_until_free(12)
    seen["free_gpus_with_4_taken"] = sorted(node.free_gpus for node in ray_nodes())
    seen["refused_8x2"] = refusal(8, 2)
    seen["scenarios"]["4x3 fragmented"] = observe(place(4, 3, ray_nodes()))
    remove_placement_group(pinned)
    wait_until_free(16)
    planned_before = place(8, 2, ray_nodes())
    blocker = create_placement_group(place(1, 1, ray_nodes()))
    try:
        create_placement_group(planned_before, timeout_s=1)
    except PlanError as error:
        seen["late"] = str(error)
    remove_placement_group(blocker)
    wait_until_free(16)
    return seen


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    gpu_nodes = [cluster.add_node(num_cpus=2, num_gpus=8) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        seen = {
            "gpu_nodes": [node.node_id for node in gpu_nodes],
            "nodes": [[node.node_id, node.free_gpus, node.total_gpus] for node in ray_nodes()],
        }
        if "--vllm" in sys.argv:
            seen["vllm"] = compare_with_vllm(place(8, 2, ray_nodes()))
        else:
            seen |= all_scenarios()
        print(json.dumps(seen))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
