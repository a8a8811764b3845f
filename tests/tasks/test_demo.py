"""The demo as a user starts it: real Ray, two real engines, the real client over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path

import pytest

from tests.conftest import marked_processes, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.ray, pytest.mark.timeout(420)]

_MARK = "AGENTCLOUD_DEMO_MARK"
TASKS = 24


def start(tmp_path: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A demo without a key, and the mark that all its processes carry."""
    mark = uuid.uuid4().hex
    env = {k: v for k, v in os.environ.items() if k != "ANTHROPIC_API_KEY"} | {_MARK: mark}
    command = [str(Path(sys.executable).with_name("agentcloud")), "demo", "--folder", str(tmp_path)]
    process = subprocess.Popen(
        [*command, *options], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process, mark


@pytest.mark.slow
def test_it_answers_from_both_models_and_leaves_nothing(tmp_path: Path) -> None:
    demo, mark = start(tmp_path, "--tasks", str(TASKS), "--json")
    out, err = demo.communicate(timeout=360)
    # At once: whoever starts it again the next moment finds ports and memory free.
    assert marked_processes(_MARK, mark) == {}
    assert demo.returncode == 0, err
    assert "a sandbox stands in for Anthropic" in err

    report = json.loads(out)
    assert (report["tasks"]["done"], report["tasks"]["failed"]) == (TASKS, 0)
    small, large = report["accuracy"]
    assert small["answers"] == large["answers"] == TASKS
    assert min(small["accuracy"], large["accuracy"]) > 0.4  # by chance not one in fifty
    assert Decimal(large["cost_usd"]) > Decimal(small["cost_usd"]) > 0
    lines = Path(report["results"]).read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == TASKS


@pytest.mark.slow
def test_interrupted_it_keeps_what_is_done_and_leaves_nothing(tmp_path: Path) -> None:
    demo, mark = start(tmp_path, "--tasks", "2000", "--no-dashboard")

    def results() -> list[Path]:
        return list(tmp_path.glob("*/results.jsonl"))

    assert wait_until(lambda: any(path.stat().st_size for path in results()), 300)
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=100)
    assert marked_processes(_MARK, mark) == {}
    assert demo.returncode == 130, err
    assert "Traceback" not in err
    (file,) = results()
    done = [json.loads(line) for line in file.read_text().splitlines()]
    assert 0 < len(done) < 2000
