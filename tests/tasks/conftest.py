"""A project folder, and a real cluster with a hosted model (the sandbox) on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.sandbox.settings import BatchSettings, Latency, SandboxConfig
from tests.tasks.cluster import Head, ray_head

AGENTS = Path(__file__).with_name("agent_kinds.py")
#: Calls to this model take so long that a test can act meanwhile.
SLOW_MODEL = "claude-opus-5-5"
#: Calls to this one that can wait go by batches.
PATIENT_MODEL = "claude-sonnet-5-5"


def hosted_fleet(url: str, store: str = "batches.db", **more: Any) -> dict[str, Any]:
    """A fleet without a local model: the sandbox alone."""
    return {
        "accounts": {"sandbox": {"base_url": url, "api_key_env": "SANDBOX_KEY"}},
        "hosted": {
            "claude-haiku-5-5": {
                "account": "sandbox",
                "tier": "large",
                "context_tokens": 8000,
                "max_output_tokens": 1000,
            },
            SLOW_MODEL: {"account": "sandbox", "tier": "slow"},
            PATIENT_MODEL: {"account": "sandbox", "tier": "patient", "batch": True},
        },
        "batch": {"linger_s": 1.0, "poll_s": 0.2, "max_poll_s": 0.5, "store": store},
    } | more


@pytest.fixture(scope="session")
def sandbox() -> Iterator[SandboxProcess]:
    config = SandboxConfig(
        latency={SLOW_MODEL: Latency(ttft_s=60.0)}, batches=BatchSettings(takes_s=3.0)
    )
    with SandboxProcess(config) as process:
        yield process


@pytest.fixture(scope="session")
def head(sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster started by `ray start`, with a fleet by `agentcloud up`."""
    folder = tmp_path_factory.mktemp("fleet")
    fleet = hosted_fleet(sandbox.url, str(folder / "batches.db"))
    (folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    with ray_head() as running:
        up = running.cli("up", "--address", running.gcs, "--json", cwd=folder)
        assert up.status == 0, up.err
        assert up.json["endpoints"] == [
            "sandbox/claude-haiku-5-5",
            f"sandbox/{SLOW_MODEL}",
            f"sandbox/{PATIENT_MODEL}",
            f"sandbox/{PATIENT_MODEL}:batch",
        ]
        yield running


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with agents, beside names that are ours too."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(AGENTS, folder / "agent.py")
    # A job's own folder comes first on the import path: these must not hide ours.
    (folder / "tasks.py").write_text("raise RuntimeError('the user\\'s tasks.py was imported')\n")
    return folder


@pytest.fixture
def write_inputs(project: Path) -> Callable[..., Path]:
    """Writes inputs.jsonl into the project."""

    def write(*items: dict[str, Any] | str) -> Path:
        path = project / "inputs.jsonl"
        lines = (item if isinstance(item, str) else json.dumps(item) for item in items)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write
