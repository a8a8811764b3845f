"""The SDK on a real cluster, and the sandbox's command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.cluster import Head, clean_env, cli

#: A user's script: what the README shows.
SCRIPT = """
import sys
from agentcloud.tasks.client import Client

with Client(sys.argv[1]) as client:
    tickets = ({"id": f"t{n}", "text": f"number {n}"} for n in range(12))
    job = client.run("agent.py:answers", tickets, output="out.parquet", budget_usd="1")
    lines = list(job.results())
    record = job.wait()
print(len(lines), {line["status"] for line in lines}, record.label, record.cost_usd > 0)
"""


@pytest.mark.ray
def test_a_job_from_python(head: Head, project: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, head.gcs],
        cwd=project,
        env=head.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "12 {'done'} done True"
    assert os.listdir(project / "out.parquet") == ["part-00000.parquet"]


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = cli("sandbox", "--port", str(port), cwd=tmp_path, env=clean_env())
    assert ended.status == 2
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "choose another port, or 0 for a free one" in line
