"""Pure: a replica's tensor x pipeline degree and the cluster's free GPUs -> where its ranks go.

Three cases: one node holds the whole replica (STRICT_PACK: Ray picks the node); several nodes hold
whole pipeline stages (PACK, each stage pinned to its node, since Ray's packing does not know where
a tensor-parallel group ends); neither, which is refused with what would fit. A tensor-parallel
group never crosses nodes.

vLLM wants one GPU a bundle, and the actor that starts the engine inside the placement group: its
CPUs are part of bundle 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agentcloud.cluster.errors import PlanError

Strategy = Literal["STRICT_PACK", "PACK"]


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """A node as Ray describes it; `free_*` is what nobody has reserved."""

    node_id: str
    free_gpus: int
    total_gpus: int
    free_cpus: float = math.inf


@dataclass(frozen=True, slots=True)
class Placement:
    """What to ask Ray for.

    Attributes:
        bundles: resources of each bundle; one GPU each, the actor's CPUs in bundle 0.
        bundle_nodes: the node that each bundle is pinned to; empty: Ray picks one for all.
    """

    tensor_parallel: int
    pipeline_parallel: int
    bundles: tuple[Mapping[str, float], ...]
    strategy: Strategy
    bundle_nodes: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """GPUs of the replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def actor_gpus(self) -> int:
        """GPUs that the actor itself asks for: with several ranks vLLM's workers take them all."""
        return 1 if self.ranks == 1 else 0


@dataclass(frozen=True, slots=True)
class RankPlace:
    """One rank of the engine and where it runs."""

    rank: int
    stage: int
    bundle: int
    node_id: str


def place(
    tensor_parallel: int,
    pipeline_parallel: int,
    nodes: Sequence[NodeGpus],
    *,
    actor_cpus: float = 1.0,
) -> Placement:
    """Place a replica on what is free, or refuse before anything starts.

    Args:
        tensor_parallel: ranks that must share a node.
        pipeline_parallel: stages, each of which may have its own node.
        nodes: the cluster.
        actor_cpus: CPUs of the actor that starts the engine.

    Raises:
        PlanError: it cannot be placed; says why and what is nearest.
    """
    tp, stages = tensor_parallel, pipeline_parallel
    ranks = tp * stages
    bundles = _bundles(ranks, actor_cpus)
    if any(node.free_gpus >= ranks and node.free_cpus >= actor_cpus for node in nodes):
        return Placement(tp, stages, bundles, "STRICT_PACK")
    homes = _stage_homes(tp, stages, nodes, actor_cpus)
    if homes is None:
        raise _refusal(tp, stages, nodes, actor_cpus)
    pins = tuple(home for home in homes for _ in range(tp))
    return Placement(tp, stages, bundles, "PACK", pins)


def place_later(
    tensor_parallel: int,
    pipeline_parallel: int,
    *,
    gpus_per_node: int,
    actor_cpus: float = 1.0,
) -> Placement:
    """What to ask for where there is no room now and nodes may come: Ray's autoscaler reads it.

    Two cases: one node of `gpus_per_node` holds the replica: its own bundles. It takes several:
    one bundle for each stage, which keeps a tensor-parallel group on a node wherever that will be;
    once they are there, `place` knows the nodes.
    """
    tp, stages = tensor_parallel, pipeline_parallel
    if tp * stages <= gpus_per_node:
        return Placement(tp, stages, _bundles(tp * stages, actor_cpus), "STRICT_PACK")
    first = {"GPU": float(tp), "CPU": actor_cpus} if actor_cpus else {"GPU": float(tp)}
    whole = tuple(first if stage == 0 else {"GPU": float(tp)} for stage in range(stages))
    return Placement(tp, stages, whole, "PACK")


def _bundles(ranks: int, actor_cpus: float) -> tuple[Mapping[str, float], ...]:
    return tuple(
        {"GPU": 1.0, "CPU": actor_cpus} if rank == 0 and actor_cpus else {"GPU": 1.0}
        for rank in range(ranks)
    )


def expected_ranks(
    placement: Placement, bundle_nodes: Mapping[int, str], *, driver_node: str | None = None
) -> tuple[RankPlace, ...]:
    """The node of every rank, in the order in which vLLM's Ray executor deals ranks.

    It sorts the bundles by node, the driver's node first and then by node id, and keeps their order
    within a node (`get_bundles_sorted_by_node`); consecutive ranks form a tensor-parallel group.

    Args:
        placement: what was asked for.
        bundle_nodes: the node that Ray gave to each bundle.
        driver_node: node of the actor that starts the engine; None: that of bundle 0.

    Raises:
        PlanError: a bundle has no node, or a tensor-parallel group would cross nodes.
    """
    missing = sorted(set(range(placement.ranks)) - set(bundle_nodes))
    if missing:
        raise PlanError(f"bundles {missing} have no node; is the placement group ready?")
    driver = driver_node or bundle_nodes[0]
    order = sorted(
        range(placement.ranks),
        key=lambda bundle: (bundle_nodes[bundle] != driver, bundle_nodes[bundle], bundle),
    )
    ranks = tuple(
        RankPlace(rank, rank // placement.tensor_parallel, bundle, bundle_nodes[bundle])
        for rank, bundle in enumerate(order)
    )
    for stage in range(placement.pipeline_parallel):
        homes = {place.node_id for place in ranks if place.stage == stage}
        if len(homes) > 1:
            raise PlanError(
                f"tensor-parallel group {stage} would cross nodes {', '.join(sorted(homes))}; "
                "remove the placement group and place it again"
            )
    return ranks


def _stage_homes(
    tp: int, stages: int, nodes: Sequence[NodeGpus], actor_cpus: float
) -> list[str] | None:
    """A node for each stage, on as few nodes as can be; None: there is not enough room.

    The roomiest nodes come first, and the first also has the actor's CPUs.
    """
    roomiest = sorted(nodes, key=lambda node: (-(node.free_gpus // tp), node.node_id))
    first = next(
        (node for node in roomiest if node.free_gpus >= tp and node.free_cpus >= actor_cpus), None
    )
    if first is None:
        return None
    homes: list[str] = []
    for node in [first, *(node for node in roomiest if node is not first)]:
        homes += [node.node_id] * (node.free_gpus // tp)
    return homes[:stages] if len(homes) >= stages else None


def _refusal(tp: int, stages: int, nodes: Sequence[NodeGpus], actor_cpus: float) -> PlanError:
    largest = max(nodes, default=None, key=lambda node: (node.free_gpus, node.total_gpus))
    if largest is None or not any(node.total_gpus for node in nodes):
        return PlanError(
            f"needs {tp * stages} GPUs and no node of the cluster has any; "
            "leave `gpu` out to run on the CPU, or add GPU nodes",
        )
    room = f"{largest.free_gpus} free of {largest.total_gpus}"
    if largest.free_gpus < tp:
        why = f"needs {tp} GPUs on one node; the largest has {room}"
    elif all(node.free_cpus < actor_cpus for node in nodes if node.free_gpus >= tp):
        why = f"needs {actor_cpus:g} free CPUs beside {tp} GPUs; no node has both"
    else:
        whole = sum(node.free_gpus // tp for node in nodes)
        why = (
            f"needs {stages} groups of {tp} GPUs, each on one node; there is room for {whole} "
            f"({sum(node.free_gpus for node in nodes)} GPUs free in all)"
        )
    return PlanError(why, nearest=_nearest(tp, stages, nodes, actor_cpus))


def _nearest(tp: int, stages: int, nodes: Sequence[NodeGpus], actor_cpus: float) -> str | None:
    """As many GPUs in smaller groups, else the most of these groups that there is room for.

    Divisors of the degree are tried only: they divide the model's heads as the degree itself does.
    """
    for smaller in range(tp - 1, 0, -1):
        if tp % smaller == 0:
            deeper = stages * tp // smaller
            if _stage_homes(smaller, deeper, nodes, actor_cpus) is not None:
                return f"tensor_parallel: {smaller} pipeline_parallel: {deeper}"
    idle = [node for node in nodes if node.total_gpus >= tp and node.free_gpus < tp]
    if idle:
        return f"the same once node {idle[0].node_id} is free ({idle[0].total_gpus} GPUs)"
    return None
