"""Jobs that can wait: `--deadline 6h` on a real cluster, by batches of the sandbox."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from anthropic.types import Usage

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.tasks.duration import parse_duration
from agentcloud.tasks.results import read_results
from tests.tasks.cluster import BIN, Head
from tests.tasks.conftest import PATIENT_MODEL

Write = Callable[..., Path]


def batches(sandbox: SandboxProcess) -> dict[str, dict[str, Any]]:
    """The sandbox's batches by id."""
    state = requests.get(f"{sandbox.url}/sandbox/state?last=0", timeout=10).json()
    return {batch["id"]: batch for batch in state["batches"]}


@pytest.mark.ray
def test_a_job_that_can_wait_is_one_batch_at_half_the_price(
    head: Head, project: Path, write_inputs: Write, sandbox: SandboxProcess
) -> None:
    write_inputs(*({"id": f"t{n}", "text": f"number {n}"} for n in range(40)))
    before = batches(sandbox)
    ended = head.cli(
        *("run", "agent.py:patient", "-i", "inputs.jsonl", "--address", head.gcs, "--json"),
        *("--deadline", "6h", "--concurrency", "16", "--budget", "1usd"),
        cwd=project,
    )
    assert ended.status == 0, ended.err
    (made,) = [batch for key, batch in batches(sandbox).items() if key not in before]
    assert len(made["custom_ids"]) == 40, "waiting tasks take no place of the 16"
    lines = list(read_results(project / "inputs.results.jsonl"))
    assert len(lines) == 40
    total_usd = Decimal(0)
    for line in lines:
        (call,) = line["calls"]
        assert call["batch"] is True
        assert call["endpoint"] == f"sandbox/{PATIENT_MODEL}:batch"
        usage = Usage(input_tokens=call["input_tokens"], output_tokens=call["output_tokens"])
        full = load_catalog().cost_usd(PATIENT_MODEL, usage)
        assert full is not None
        assert Decimal(line["cost_usd"]) == full / 2
        total_usd += full / 2
    assert Decimal(ended.json["cost_usd"]) == total_usd > 0


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_cancels_the_batch(
    head: Head, project: Path, write_inputs: Write, sandbox: SandboxProcess
) -> None:
    write_inputs(*({"id": f"t{n}", "text": f"stop {n}"} for n in range(8)))
    before = batches(sandbox)
    run = subprocess.Popen(
        [
            *(str(BIN / "agentcloud"), "run", "agent.py:patient", "-i", "inputs.jsonl"),
            *("--address", head.gcs, "--deadline", "6h"),
        ],
        cwd=project,
        env=head.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 60
    while not (made := batches(sandbox).keys() - before.keys()):
        assert time.monotonic() < deadline_s, "no batch was made"
        assert run.poll() is None, run.stderr.read() if run.stderr else ""
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    (name,) = made
    deadline_s = time.monotonic() + 10
    while (batch := batches(sandbox)[name])["status"] != "ended":
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.05)
    assert batch["request_counts"]["canceled"] == 8


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("6h", 21600), ("1.5 H", 5400), ("1d", 86400)],
)
def test_durations_as_people_type_them(text: str, seconds: float) -> None:
    assert parse_duration(text, where="--deadline") == seconds


@pytest.mark.parametrize("text", ["", "six hours", "0h", "-1h", "6h30m"])
def test_what_is_no_duration_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no length of time; write 90s, 15m or 6h"):
        parse_duration(text, where="--deadline")
