"""What a task may use at most: its own money, and its one number of extra attempts."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.tasks.results import read_results
from tests.tasks.cluster import Head

pytestmark = pytest.mark.ray

Write = Callable[..., Path]


def lines_by_id(path: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in read_results(path)}


def test_a_task_over_its_own_budget_fails_alone(
    head: Head, project: Path, write_inputs: Write
) -> None:
    modest = [f"modest{n}" for n in range(5)]
    write_inputs(
        {"id": "greedy", "calls": 60},
        *({"id": id_, "calls": 2} for id_ in modest),
    )
    # One call reserves about $0.00004 and costs about $0.000008.
    ended = head.cli(
        *("run", "agent.py:asks_often", "-i", "inputs.jsonl", "-o", "out.jsonl", "--json"),
        *("--address", head.gcs, "--task-budget", "0.0002", "--budget", "1usd"),
        cwd=project,
    )
    assert ended.status == 1, ended.err
    lines = lines_by_id(project / "out.jsonl")
    greedy = lines.pop("greedy")
    assert (greedy["status"], greedy["error_kind"]) == ("failed", "BudgetExceeded")
    job_id = ended.json["job_id"]
    assert f"task:{job_id}/greedy" in greedy["error"]
    assert 2 < len(greedy["calls"]) < 60
    assert Decimal(greedy["cost_usd"]) <= Decimal("0.0002")
    assert sorted(lines) == modest
    for line in lines.values():
        assert line["status"] == "done", line
        # What a task may still spend is its own cap less its own calls; a call whose settlement
        # is still on its way counts with its worst case.
        left = Decimal("0.0002") - Decimal(line["cost_usd"])
        assert Decimal(0) < Decimal(line["output"]) <= left
    budgets = head.cli("endpoints", "--address", head.gcs, "--json", cwd=project).out
    assert job_id not in budgets


def test_all_layers_together_send_no_more_than_one_task_may(
    head: Head, sandbox: SandboxProcess, project: Path, write_inputs: Write
) -> None:
    write_inputs({"id": "t"})
    before = requests.get(f"{sandbox.url}/sandbox/state", timeout=5).json()["count"]
    # The first start meets server errors only, a whole call's worth: the task is started again.
    # Then one more error, and answers that are never valid.
    faults = {"kind": "api_error", "count": 5}
    assert requests.post(f"{sandbox.url}/sandbox/faults", json=faults, timeout=5).ok
    ended = head.cli(
        *("run", "agent.py:never_content", "-i", "inputs.jsonl", "-o", "out.jsonl", "--json"),
        *("--address", head.gcs, "--extra-attempts", "7", "--attempts", "5"),
        cwd=project,
    )
    assert ended.status == 1, ended.err
    line = lines_by_id(project / "out.jsonl")["t"]
    sent = requests.get(f"{sandbox.url}/sandbox/state", timeout=5).json()["count"] - before
    assert sent == 1 + 7, line
    # Three layers spent: a call's own sends, a restart, repairs.
    assert line["attempts"] == 2
    assert line["error_kind"] == "AttemptsExhausted"
    assert len(line["calls"]) >= 2
