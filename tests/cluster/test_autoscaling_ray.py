"""Waiting requests make Ray's own autoscaler add nodes, and idle ones go after the drain.

Ray's autoscaler is real, with token authentication; its nodes are raylets on this machine (Ray's
fake multi-node provider). The cluster is one of its own: the suite shares another Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.cluster import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

SCRIPT = Path(__file__).with_name("autoscaling_ray.py")
GPU_NODE = {
    "resources": {"CPU": 4, "GPU": 4, "object_store_memory": 100 << 20},
    "node_config": {},
    "min_workers": 0,
    "max_workers": 3,
}


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    with ray_head(wait=False, node_types={"gpu_node": GPU_NODE}) as head:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), head.gcs],
            env=head.env, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    shown: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return shown


def test_a_waiting_request_brings_nodes_and_is_served_there(seen: dict[str, Any]) -> None:
    assert seen["gpu_nodes_before"] == 0
    assert seen["reason"] == "1 call waiting and no replica runs"
    assert seen["lease"] == "replica:big:0"
    assert any("replica:big:0 pending (needs 8 GPUs" in line for line in seen["lines"]), seen


def test_each_stage_is_whole_on_a_node_that_came(seen: dict[str, Any]) -> None:
    assert seen["ranks_by_node"] == [4, 4]
    assert not seen["stages_split"]


def test_other_models_serve_meanwhile(seen: dict[str, Any]) -> None:
    assert seen["meanwhile"] == "replica:small:0"


def test_a_replica_is_drained_before_it_stops(seen: dict[str, Any]) -> None:
    assert not seen["ended_before_its_call"]


def test_what_finds_no_room_is_given_up_and_asked_for_again(seen: dict[str, Any]) -> None:
    assert any("replica:odd:0 pending (waits for room: 1 unobtainium" in x for x in seen["lines"])
    assert seen["odd_waits"]


def test_afterwards_the_nodes_go_and_nothing_stays_reserved(seen: dict[str, Any]) -> None:
    # That all nodes with GPUs left was awaited by the script itself.
    assert seen["groups_left"] == []
