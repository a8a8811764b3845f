"""Run by test_placement_ray.py in a process of its own: a real Ray of three nodes, no real GPU.

Prints one JSON object: for each scenario the map of bundles and ranks to nodes as Ray gave it, what
actors saw from inside the group, and with `--vllm` the order of vLLM's own Ray executor.
"""

from __future__ import annotations

import json
import sys
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


def observe(placement: Placement, *, seat: bool = False, ask_vllm: bool = False) -> dict[str, Any]:
    group = create_placement_group(placement, name="replica", timeout_s=60)
    table = placement_group_table(group)["bundles_to_node_id"]
    engine = ray.remote(Engine).options(**actor_options(placement, group)).remote()
    ranks = rank_places(placement, group)
    seats = []
    if seat:
        workers = [
            ray.remote(Rank)
            .options(
                num_cpus=0,
                num_gpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank.bundle),
            )
            .remote()
            for rank in ranks
        ]
        seats = ray.get([worker.seat.remote() for worker in workers])
    seen = {
        "strategy": placement.strategy,
        "bundles": {str(bundle): node for bundle, node in table.items()},
        "ranks": [[rank.rank, rank.stage, rank.bundle, rank.node_id] for rank in ranks],
        "seats": seats,
        "engine_node": ray.get(engine.node.remote()),
        "vllm": compare_with_vllm(placement, group) if ask_vllm else None,
    }
    remove_placement_group(group)
    return seen


def compare_with_vllm(placement: Placement, group: PlacementGroup) -> list[Any]:
    """Our order of ranks beside vLLM's, with the engine on the first and on the last bundle."""
    table = placement_group_table(group)["bundles_to_node_id"]
    pairs = []
    for bundle in (0, placement.ranks - 1):
        engine = (
            ray.remote(Engine)
            .options(
                num_cpus=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
            )
            .remote()
        )
        ours = expected_ranks(placement, table, driver_node=ray.get(engine.node.remote()))
        pairs.append(
            {
                "ours": [[rank.bundle, rank.node_id] for rank in ours],
                "vllm": ray.get(engine.order_of_vllm.remote(group)),
            }
        )
    return pairs


def refusal(tensor_parallel: int, pipeline_parallel: int) -> str:
    try:
        place(tensor_parallel, pipeline_parallel, ray_nodes())
    except PlanError as error:
        return str(error)
    return ""


def wait_until_free(gpus: int) -> None:
    """Removed groups give their GPUs back a moment later."""
    for _ in range(1000):
        if sum(node.free_gpus for node in ray_nodes()) == gpus:
            return
        ray.get(ray.remote(num_cpus=0)(lambda: None).remote())
    raise RuntimeError("GPUs were not given back")


def main() -> None:
    ask_vllm = "--vllm" in sys.argv
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    gpu_nodes = [cluster.add_node(num_cpus=2, num_gpus=8) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        seen: dict[str, Any] = {
            "gpu_nodes": [node.node_id for node in gpu_nodes],
            "nodes": [[n.node_id, n.free_gpus, n.total_gpus] for n in ray_nodes()],
            "scenarios": {},
        }
        degrees = [(8, 2)] if ask_vllm else [(1, 1), (4, 1), (8, 1), (8, 2), (4, 3)]
        for tensor_parallel, stages in degrees:
            wait_until_free(16)
            placement = place(tensor_parallel, stages, ray_nodes())
            seen["scenarios"][f"{tensor_parallel}x{stages}"] = observe(
                placement, seat=(tensor_parallel, stages) in [(4, 1), (8, 2)], ask_vllm=ask_vllm
            )
        if not ask_vllm:
            wait_until_free(16)
            seen["refused_tp16"] = refusal(16, 1)
            pinned = create_placement_group(place(4, 1, ray_nodes()))
            seen["nodes_with_4_taken"] = sorted(n.free_gpus for n in ray_nodes())
            seen["refused_8x2"] = refusal(8, 2)
            seen["scenarios"]["4x3 fragmented"] = observe(place(4, 3, ray_nodes()))
            remove_placement_group(pinned)
            wait_until_free(16)
            stale = place(8, 2, ray_nodes())
            blocker = create_placement_group(place(1, 1, ray_nodes()))
            try:
                create_placement_group(stale, timeout_s=1)
            except PlanError as error:
                seen["late"] = str(error)
            remove_placement_group(blocker)
            wait_until_free(16)
        print(json.dumps(seen))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
