"""Placement without Ray: cases, refusals and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcloud.cluster.errors import PlanError
from agentcloud.cluster.placement import NodeGpus, expected_ranks, place, place_later


def nodes(*free: int, total: int = 8, cpus: float = 8) -> list[NodeGpus]:
    return [NodeGpus(f"n{i}", gpus, max(total, gpus), cpus) for i, gpus in enumerate(free)]


def test_one_node_that_holds_it_all_is_left_to_ray_to_pick() -> None:
    placement = place(4, 1, nodes(8, 8), actor_cpus=2)
    assert placement.strategy == "STRICT_PACK"
    assert placement.bundle_nodes == ()
    assert placement.bundles == ({"GPU": 1.0, "CPU": 2.0}, *[{"GPU": 1.0}] * 3)
    assert placement.actor_gpus == 0


def test_the_actor_of_a_single_gpu_holds_it_itself() -> None:
    placement = place(1, 1, nodes(1), actor_cpus=0)
    assert placement.bundles == ({"GPU": 1.0},)
    assert placement.actor_gpus == 1


def test_two_stages_share_a_node_that_holds_both() -> None:
    assert place(4, 2, nodes(4, 8)).strategy == "STRICT_PACK"


def test_stages_that_need_nodes_of_their_own_are_pinned_whole() -> None:
    placement = place(4, 3, nodes(4, 3, 8))
    assert placement.strategy == "PACK"
    assert placement.bundle_nodes == ("n2",) * 8 + ("n0",) * 4


@pytest.mark.parametrize(
    ("degree", "free", "why", "nearest"),
    [
        ((8, 1), (4,), "needs 8 GPUs on one node; the largest has 4 free of 8", "once node n0"),
        ((8, 1), (4, 4), "needs 8 GPUs on one node", "tensor_parallel: 4 pipeline_parallel: 2"),
        ((8, 2), (8, 4), "there is room for 1 (12 GPUs free in all)", "once node n1 is free"),
        ((6, 1), (4, 2), "needs 6 GPUs", "tensor_parallel: 2 pipeline_parallel: 3"),
        ((1, 1), (), "no node of the cluster has any", "leave `gpu` out"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_reason_and_nearest(
    degree: tuple[int, int], free: tuple[int, ...], why: str, nearest: str
) -> None:
    with pytest.raises(PlanError) as refused:
        place(*degree, nodes(*free))
    assert why in str(refused.value)
    assert nearest in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_node_too_small_for_the_degree_names_the_degree_that_fits() -> None:
    with pytest.raises(
        PlanError, match="largest has 4 free of 4; nearest that fits: tensor_parallel: 4 pip"
    ):
        place(8, 1, nodes(4, 4, total=4))  # fmt: skip


def test_the_actors_cpus_count() -> None:
    with pytest.raises(PlanError, match="needs 4 free CPUs beside 2 GPUs; no node has both"):
        place(2, 1, nodes(8, cpus=1), actor_cpus=4)
    with_cpus = [NodeGpus("poor", 8, 8, 0), NodeGpus("rich", 8, 8, 16)]
    assert place(8, 2, with_cpus, actor_cpus=4).bundle_nodes[0] == "rich"


def test_ranks_start_on_the_engines_node_and_go_on_by_node_id() -> None:
    placement = place(2, 3, nodes(2, 2, 2))
    given = {0: "c", 1: "c", 2: "a", 3: "a", 4: "b", 5: "b"}
    ranks = expected_ranks(placement, given)
    assert [(rank.bundle, rank.node_id, rank.stage) for rank in ranks] == [
        (0, "c", 0), (1, "c", 0), (2, "a", 1), (3, "a", 1), (4, "b", 2), (5, "b", 2),
    ]  # fmt: skip
    elsewhere = expected_ranks(placement, given, driver_node="b")
    assert [rank.node_id for rank in elsewhere] == ["b", "b", "a", "a", "c", "c"]


def test_a_group_that_ray_tore_apart_is_an_error() -> None:
    placement = place(2, 2, nodes(2, 2))
    with pytest.raises(PlanError, match="group 1 would cross nodes a, b"):
        expected_ranks(placement, {0: "b", 1: "b", 2: "b", 3: "a"})
    with pytest.raises(PlanError, match=r"bundles \[3\] have no node"):
        expected_ranks(placement, {0: "b", 1: "b", 2: "b"})


CLUSTERS = st.lists(st.integers(0, 16), max_size=8)


@given(st.integers(1, 16), st.integers(1, 6), CLUSTERS)
def test_a_placement_takes_what_is_free_and_keeps_groups_whole(
    tp: int, stages: int, free: list[int]
) -> None:
    cluster = nodes(*free)
    try:
        placement = place(tp, stages, cluster)
    except PlanError:
        # Refused only if truly impossible: too few whole groups.
        assert sum(gpus // tp for gpus in free) < stages
        return
    assert len(placement.bundles) == tp * stages
    if placement.strategy == "STRICT_PACK":
        assert max(free) >= tp * stages
        assert not placement.bundle_nodes
        return
    for node in cluster:
        taken = placement.bundle_nodes.count(node.node_id)
        assert taken <= node.free_gpus
        assert taken % tp == 0
    ranks = expected_ranks(placement, dict(enumerate(placement.bundle_nodes)))
    assert {rank.bundle for rank in ranks} == set(range(tp * stages))
    for stage in range(stages):
        assert len({rank.node_id for rank in ranks if rank.stage == stage}) == 1


@given(st.integers(2, 16), st.integers(1, 4), CLUSTERS)
def test_the_named_nearest_can_be_placed(tp: int, stages: int, free: list[int]) -> None:
    try:
        place(tp, stages, nodes(*free))
    except PlanError as refused:
        if refused.nearest and refused.nearest.startswith("tensor_parallel"):
            words = refused.nearest.split()
            smaller, deeper = int(words[1]), int(words[3])
            assert smaller * deeper == tp * stages
            place(smaller, deeper, nodes(*free))


def test_what_is_asked_of_nodes_to_come_keeps_each_stage_on_one() -> None:
    one = place_later(4, 1, gpus_per_node=8, actor_cpus=2)
    assert one.strategy == "STRICT_PACK"
    assert one.bundles == ({"GPU": 1.0, "CPU": 2}, *[{"GPU": 1.0}] * 3)
    two = place_later(8, 2, gpus_per_node=8, actor_cpus=2)
    assert two.bundles == ({"GPU": 8.0, "CPU": 2}, {"GPU": 8.0})
    assert not two.bundle_nodes, "which nodes is not known yet"
