"""`agentcloud status` without a job: what people and programs see of the fleet's replicas."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from agentcloud.cluster.contracts import LoadReport
from agentcloud.cluster.fleet_status import (
    FleetStatus,
    ModelStatus,
    ReplicaState,
    ReplicaStatus,
    count_states,
)
from agentcloud.tasks.cli_fleet import fleet_json, models_table
from tests.tasks.cluster import clean_env, cli


def replica(
    index: int, state: ReplicaState, note: str = "", *, current: bool = True
) -> ReplicaStatus:
    return ReplicaStatus(f"replica:big:{index}", "big", state, 0, LoadReport(), note, current)


REPLICAS = (
    replica(0, ReplicaState.READY, current=False),
    replica(1, ReplicaState.PENDING, "needs 4 GPUs"),
    replica(2, ReplicaState.LOST),
    replica(3, ReplicaState.DRAINING, current=False),
)
STATUS = FleetStatus(
    REPLICAS,
    None,
    (
        ModelStatus("big", 0, 4, 2, "12 calls waiting", 75.0, problem="", **count_states(REPLICAS)),
        ModelStatus("odd", 1, 1, 1, "set to 1", 1.0, problem="holds no weights"),
    ),
)


def test_replicas_are_counted_by_what_they_do() -> None:
    (big, _odd) = STATUS.models
    assert (big.running, big.starting, big.pending, big.draining, big.old) == (1, 1, 1, 1, 1)
    assert not STATUS.serves()
    assert not STATUS.is_settled()
    assert "replica:big:1 pending (needs 4 GPUs)" in STATUS.one_line()


def test_the_table_shows_target_states_and_reason() -> None:
    console = Console(width=140)
    with console.capture() as shown:
        console.print(models_table(STATUS))
    big, odd = [line for line in shown.get().splitlines() if "big" in line or "odd" in line]
    assert [cell.strip() for cell in big.split("│")[1:-1]] == [
        *("big", "0 to 4", "2", "1", "1", "1", "1", "1 min 15 s", "12 calls waiting")
    ]
    assert "cannot start: holds no weights" in odd


def test_json_holds_all_of_it() -> None:
    shown = json.loads(json.dumps(fleet_json(STATUS)))
    assert shown["models"][0]["reason"] == "12 calls waiting"
    assert shown["replicas"][1]["state"] == "pending"
    assert shown["failure"] is None


def test_a_dashboards_address_is_told_from_the_clusters(tmp_path: Path) -> None:
    done = cli("status", "--address", "http://127.0.0.1:8265", cwd=tmp_path, env=clean_env())
    assert done.status == 2
    assert done.err.startswith("error: http://127.0.0.1:8265: the fleet's status is asked of")
