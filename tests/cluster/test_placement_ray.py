"""Placement groups on a real Ray of three nodes, two of them with 8 declared GPUs.

The cluster runs in a process of its own: the rest of the suite shares another Ray in this one.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

SCRIPT = Path(__file__).with_name("multi_node_ray.py")


def run_cluster(*arguments: str) -> dict[str, Any]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Its own token: nothing is read from or written to the user's home.
    env |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return run_cluster()


def nodes_of(scenario: dict[str, Any]) -> list[str]:
    """Nodes in order of rank."""
    return [node for _, _, _, node in scenario["ranks"]]


def test_the_cluster_is_two_nodes_of_eight_and_a_head_without_gpus(seen: dict[str, Any]) -> None:
    assert sorted(total for _, _, total in seen["nodes"]) == [0, 8, 8]
    assert {node for node, _, total in seen["nodes"] if total} == set(seen["gpu_nodes"])


@pytest.mark.parametrize(("degree", "ranks"), [("1x1", 1), ("4x1", 4), ("8x1", 8)])
def test_a_replica_that_fits_one_node_is_on_one(
    seen: dict[str, Any], degree: str, ranks: int
) -> None:
    scenario = seen["scenarios"][degree]
    assert scenario["strategy"] == "STRICT_PACK"
    assert len(scenario["bundles"]) == ranks
    (home,) = set(scenario["bundles"].values())
    assert home in seen["gpu_nodes"]
    assert scenario["ranks"] == [[rank, 0, rank, home] for rank in range(ranks)]


def test_two_stages_of_eight_take_a_node_each(seen: dict[str, Any]) -> None:
    scenario = seen["scenarios"]["8x2"]
    first, second = scenario["bundles"]["0"], scenario["bundles"]["8"]
    assert {first, second} == set(seen["gpu_nodes"])
    assert scenario["bundles"] == {
        str(bundle): first if bundle < 8 else second for bundle in range(16)
    }
    assert scenario["ranks"] == [
        [rank, rank // 8, rank, first if rank < 8 else second] for rank in range(16)
    ]


@pytest.mark.parametrize(("degree", "ends"), [("4x1", [0, 3]), ("8x2", [0, 7, 8, 15])])
def test_workers_really_sit_where_their_rank_is_expected(
    seen: dict[str, Any], degree: str, ends: list[int]
) -> None:
    scenario = seen["scenarios"][degree]
    expected = nodes_of(scenario)
    assert [[rank, node] for rank, node, _ in scenario["seats"]] == [
        [rank, expected[rank]] for rank in ends
    ]
    assert len({(node, gpu) for _, node, (gpu,) in scenario["seats"]}) == len(ends)
    assert scenario["engine_node"] == scenario["bundles"]["0"]


def test_three_stages_of_four_pack_two_on_one_node(seen: dict[str, Any]) -> None:
    nodes = nodes_of(seen["scenarios"]["4x3"])
    assert nodes[:4] == nodes[4:8]
    assert len(set(nodes[8:])) == 1
    assert nodes[8] != nodes[0]


def test_a_half_taken_node_still_gets_whole_stages_only(seen: dict[str, Any]) -> None:
    assert seen["free_gpus_with_4_taken"] == [0, 4, 8]
    scenario = seen["scenarios"]["4x3 fragmented"]
    nodes = nodes_of(scenario)
    assert sorted(nodes.count(node) for node in set(nodes)) == [4, 8]
    assert all(len(set(nodes[stage * 4 : stage * 4 + 4])) == 1 for stage in range(3))
    # The roomier node comes first, and the engine with it.
    assert nodes.count(nodes[0]) == 8


def test_what_cannot_be_placed_is_refused_with_what_would_fit(seen: dict[str, Any]) -> None:
    assert "needs 16 GPUs on one node; the largest has 8 free of 8" in seen["refused_tp16"]
    assert "tensor_parallel: 8 pipeline_parallel: 2" in seen["refused_tp16"]
    assert "room for 1 (12 GPUs free in all)" in seen["refused_8x2"]


def test_gpus_taken_in_between_are_an_error_and_leave_nothing_reserved(
    seen: dict[str, Any],
) -> None:
    # That all 16 GPUs came back afterwards is checked by the script itself.
    assert "were not reserved within 1 s" in seen["late"]


@pytest.mark.engine
@pytest.mark.slow
def test_ranks_are_ordered_as_vllms_own_executor_orders_them() -> None:
    beside_bundle_0, beside_bundle_15 = run_cluster("--vllm")["vllm"]
    assert beside_bundle_0["ours"] == beside_bundle_0["vllm"]
    assert beside_bundle_15["ours"] == beside_bundle_15["vllm"]
    assert [bundle for bundle, _ in beside_bundle_0["vllm"]] == list(range(16))
    assert [bundle for bundle, _ in beside_bundle_15["vllm"]] == [*range(8, 16), *range(8)]
