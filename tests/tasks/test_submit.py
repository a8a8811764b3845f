"""`agentcloud submit` and what follows, as a Ray job on a head that `ray start` started."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentcloud.cluster.sandbox.process import SandboxProcess
from tests.tasks.cluster import SANDBOX_KEY, Head
from tests.tasks.test_run import calls_in_flight, wait_for

pytestmark = pytest.mark.ray

Write = Callable[..., Path]


def test_a_job_from_submit_to_results(head: Head, project: Path, write_inputs: Write) -> None:
    """Over the dashboard's address alone, as from a machine outside the cluster."""
    write_inputs(*({"id": f"t{n}", "text": f"number {n}"} for n in range(25)))
    (project / ".gitignore").write_text("*.jsonl\n")
    there = ("--address", head.dashboard)

    sent = head.cli(
        *("submit", "agent.py:answers", "-i", "inputs.jsonl", *there, "--wait"),
        *("-o", "fetched.jsonl", "--budget", "1usd", "--json"),
        cwd=project,
        timeout_s=280,
    )
    assert sent.status == 0, sent.err
    job = sent.json
    assert (job["state"], job["ray_status"]) == ("done", "SUCCEEDED")
    assert job["record"]["tasks"]["done"] == 25
    lines = [json.loads(line) for line in (project / "fetched.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(f"t{n}" for n in range(25))
    assert {line["status"] for line in lines} == {"done"}

    # Everything again, after the job has ended.
    job_id = job["job_id"]
    status = head.cli("status", job_id, *there, cwd=project)
    assert f"{job_id}: done\n25 of 25 done, 0 failed" in status.out
    logs = head.cli("logs", job_id, *there, cwd=project)
    assert "25/25 done, 0 failed" in logs.out
    again = head.cli("results", job_id, *there, cwd=project)
    assert again.out == (project / "fetched.jsonl").read_text()
    listed = head.cli("list", *there, "--json", cwd=project)
    assert [(j["job_id"], j["agent"]) for j in listed.json if j["job_id"] == job_id] == [
        (job_id, "agent.py:answers")
    ]
    # No key in what Ray's job API shows of the job.
    assert SANDBOX_KEY not in listed.out + status.out + logs.out


def test_cancel_stops_paid_calls_and_keeps_what_is_done(
    head: Head, sandbox: SandboxProcess, project: Path, write_inputs: Write
) -> None:
    write_inputs(
        *({"id": f"f{n}", "do": "answer", "text": "x"} for n in range(5)),
        *({"id": f"s{n}", "do": "slow"} for n in range(40)),
    )
    there = ("--address", head.gcs)
    sent = head.cli(
        *("submit", "agent.py:mixed", "-i", "inputs.jsonl", *there, "--concurrency", "9"),
        cwd=project,
    )
    assert sent.status == 0, sent.err
    job_id = sent.out.strip()
    assert re.fullmatch(r"j[0-9a-f]{8}", job_id)
    wait_for(lambda: calls_in_flight(sandbox) == 9)
    started_s = time.monotonic()
    cancelled = head.cli("cancel", job_id, *there, "--json", cwd=project)
    assert cancelled.status == 0, cancelled.err
    assert cancelled.json["was_running"] is True
    assert cancelled.json["state"] == "cancelled"
    wait_for(lambda: calls_in_flight(sandbox) == 0, timeout_s=5)
    assert time.monotonic() - started_s < 60  # the calls alone would have taken that long
    kept = head.cli("results", job_id, *there, "-o", "kept.jsonl", "--json", cwd=project)
    assert kept.json["results"] == 5
    twice = head.cli("cancel", job_id, *there, cwd=project)
    assert f"{job_id} is cancelled already" in twice.err

    # What was to run after it does not, and says so.
    after = head.cli(
        *("run", "agent.py:no_calls", "-i", "inputs.jsonl", "-o", "never.jsonl"),
        *("--after", job_id, "--address", head.gcs),
        cwd=project,
    )
    assert after.status == 1
    assert f"not started: it was to run after job {job_id}, and it was cancelled" in after.err
    assert not (project / "never.jsonl").exists()


def test_a_job_that_cannot_begin_says_why(head: Head, project: Path, write_inputs: Write) -> None:
    write_inputs({"text": "x"})
    sent = head.cli(
        *("submit", "agent.py:misnamed", "-i", "inputs.jsonl", "--address", head.dashboard),
        "--wait",
        cwd=project,
        timeout_s=280,
    )
    assert sent.status == 1
    assert "failed" in sent.out
    assert "no agent 'misnamed'" in sent.out
    assert "Traceback" not in sent.out


@pytest.mark.parametrize(
    "command", [("status", "jnone"), ("results", "jnone"), ("cancel", "jnone")]
)
def test_a_job_that_is_not_there(head: Head, project: Path, command: tuple[str, str]) -> None:
    ended = head.cli(*command, "--address", head.dashboard, cwd=project)
    assert ended.status == 2
    assert ended.err == (
        f"error: {head.dashboard}: no job 'jnone' on this cluster; `agentcloud list` shows them\n"
    )


def test_a_wrong_token_is_one_clear_error(head: Head, project: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    stranger = replace(head, env=head.env | {"RAY_AUTH_TOKEN_PATH": str(token)})
    for address in (head.dashboard, head.gcs):
        ended = stranger.cli("list", "--address", address, cwd=project)
        assert ended.status == 2
        # Before it, for a GCS address, Ray's own C++ code logs a warning.
        last = ended.err.splitlines()[-1]
        assert last.startswith(f"error: {address}: the cluster does not accept our token")
        assert "Traceback" not in ended.err
