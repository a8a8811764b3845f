"""`agentcloud run` against a real cluster: real workers, the real client, a hosted model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.tasks.results import read_results
from tests.tasks.cluster import BIN, Head

pytestmark = pytest.mark.ray

Write = Callable[..., Path]


def lines_by_id(path: Path) -> dict[str, dict[str, Any]]:
    return {line["id"]: line for line in read_results(path)}


def test_one_line_per_input_and_a_summary(head: Head, project: Path, write_inputs: Write) -> None:
    write_inputs(*({"id": f"t{n}", "text": f"number {n}"} for n in range(30)))
    ended = head.cli(
        *("run", "agent.py:answers", "-i", "inputs.jsonl", "--address", head.gcs, "--json"),
        *("--budget", "1usd", "--workers", "2"),
        cwd=project,
    )
    assert ended.status == 0, ended.err
    lines = lines_by_id(project / "inputs.results.jsonl")
    assert sorted(lines) == sorted(f"t{n}" for n in range(30))
    for line in lines.values():
        assert line["status"] == "done"
        assert isinstance(line["output"]["text"], str)
        (call,) = line["calls"]
        assert call["endpoint"] == "sandbox/claude-haiku-5-5"
        assert call["ttft_s"] is not None
        assert call["reason"]
        assert line["usage"]["output_tokens"] == call["output_tokens"] > 0
    summary = ended.json
    assert summary["state"] == "done"
    assert summary["tasks"]["done"] == 30
    (row,) = summary["endpoints"]
    assert row["calls"] == 30
    spent = sum(Decimal(line["cost_usd"]) for line in lines.values())
    assert Decimal(summary["cost_usd"]) == Decimal(row["cost_usd"]) == spent > 0


def test_what_goes_wrong_in_a_task_is_one_line_of_its_own(
    head: Head, project: Path, write_inputs: Write
) -> None:
    kinds = ("raise", "exit", "never valid", "too long", "no json", "sleep", "kill")
    write_inputs(
        *({"id": kind, "do": kind} for kind in kinds),
        "no json at all",
        *({"id": f"ok{n}", "do": "answer", "text": "x"} for n in range(20)),
    )
    ended = head.cli(
        *("run", "agent.py:mixed", "-i", "inputs.jsonl", "-o", "out.jsonl", "--address", head.gcs),
        *("--on-bad-input", "skip", "--task-timeout", "20"),
        cwd=project,
    )
    assert ended.status == 1
    assert "Traceback" not in ended.err + ended.out
    lines = lines_by_id(project / "out.jsonl")
    failed = {id_: line["error"] for id_, line in lines.items() if line["status"] == "failed"}
    assert set(failed) == {*kinds, "line:8"}
    assert all("\n" not in error for error in failed.values())
    assert failed["raise"].startswith("ValueError: I do not like this one")
    assert "exit" in failed["exit"]
    assert "no text is good enough" in failed["never valid"]
    assert lines["never valid"]["error_kind"] == "OutputInvalid"
    assert "8000" in failed["too long"] or "8,000" in failed["too long"]
    assert failed["no json"].startswith("TypeError: the agent's return value is no JSON")
    assert failed["sleep"].startswith("took longer than --task-timeout 20 s")
    assert failed["kill"].startswith("its worker died")
    assert lines["kill"]["attempts"] == 3
    assert failed["line:8"].startswith("inputs.jsonl:8: not JSON")
    # A paid answer that did not validate is still counted.
    assert Decimal(lines["never valid"]["cost_usd"]) > 0
    assert "20 done, 8 failed" in ended.out


def test_a_used_up_budget_stops_the_job_and_the_next_run_goes_on(
    head: Head, project: Path, write_inputs: Write
) -> None:
    write_inputs(*({"id": f"t{n}", "text": f"number {n}"} for n in range(60)))
    run = ("run", "agent.py:answers", "-i", "inputs.jsonl", "--address", head.gcs, "--json")
    # One call reserves about $0.00004 and costs about $0.000008.
    stopped = head.cli(*run, "--budget", "0.0002", "--concurrency", "4", cwd=project)
    assert stopped.status == 1, stopped.err
    summary = stopped.json
    assert (summary["state"], summary["reason"]) == ("stopped", "budget")
    assert "raise its limit" in summary["detail"]
    assert 0 < summary["tasks"]["done"] < 60
    assert summary["tasks"]["failed"] == 0
    assert Decimal(summary["cost_usd"]) <= Decimal("0.0002")
    rest = head.cli(*run, cwd=project)
    assert rest.status == 0, rest.err
    assert rest.json["tasks"]["already_done"] == summary["tasks"]["done"]
    assert len(lines_by_id(project / "inputs.results.jsonl")) == 60


def test_ctrl_c_stops_cleanly_and_aborts_the_calls_in_flight(
    head: Head, sandbox: SandboxProcess, project: Path, write_inputs: Write
) -> None:
    write_inputs(*({"id": f"t{n}"} for n in range(50)))
    running = subprocess.Popen(
        [
            str(BIN / "agentcloud"), "run", "agent.py:waits_at_the_model", "-i", "inputs.jsonl",
            "--address", head.gcs, "--concurrency", "7",
        ],
        cwd=project,
        env=head.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: calls_in_flight(sandbox) == 7)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "cancelled: on request: 0 done, 0 failed, 50 not done" in out
    wait_for(lambda: calls_in_flight(sandbox) == 0, timeout_s=5)


def calls_in_flight(sandbox: SandboxProcess) -> int:
    state = requests.get(f"{sandbox.url}/sandbox/state", timeout=5).json()
    return int(state["in_flight"])


def wait_for(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come true in time"
        time.sleep(0.1)


def test_a_call_is_explained_by_its_id(head: Head, project: Path, write_inputs: Write) -> None:
    write_inputs({"id": "t1", "text": "why there?"})
    ended = head.cli(
        *("run", "agent.py:answers", "-i", "inputs.jsonl", "--address", head.gcs), cwd=project
    )
    assert ended.status == 0, ended.err
    (call,) = lines_by_id(project / "inputs.results.jsonl")["t1"]["calls"]
    told = head.cli("explain", call["call"], "--json", cwd=project, address=True)
    assert told.status == 0, told.err
    (send,) = told.json["sends"]
    assert send["chosen"] == call["endpoint"]
    assert send["considered"] == call["considered"]
    assert send["happened"] == "ok"
    assert Decimal(send["cost_usd"]) == Decimal(call["cost_usd"])
    assert send["output_tokens"] == call["output_tokens"]
    shown = head.cli("explain", call["call"], cwd=project, address=True)
    assert "chosen" in shown.out
    assert "happened: ok" in shown.out
    unknown = head.cli("explain", "call-of-nobody", cwd=project, address=True)
    assert unknown.status == 2
    assert len(unknown.err.strip().splitlines()) == 1
    assert "call-of-nobody" in unknown.err


def test_json_of_other_commands_is_one_document(head: Head, project: Path) -> None:
    endpoints = head.cli("endpoints", "--address", head.gcs, "--json", cwd=project)
    assert endpoints.status == 0, endpoints.err
    assert "sandbox/claude-haiku-5-5" in endpoints.json["endpoints"]
    table = head.cli("endpoints", "--address", head.gcs, cwd=project)
    assert "sandbox/claude-haiku-5-5" in table.out
    again = head.cli("up", "--address", head.gcs, cwd=project)
    assert again.status == 2
    assert json.dumps(again.out) == '""'
