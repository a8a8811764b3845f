"""A hosted model becomes slow under a running job: `agentcloud alerts`, webhook, metrics, end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import ray
import requests

from agentcloud.cluster.config import parse_fleet
from agentcloud.cluster.contracts import FLEET_NAME, RAY_NAMESPACE
from agentcloud.cluster.fleet import FleetActor
from agentcloud.cluster.lifecycle import connect_ray
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.sandbox.settings import Latency, SandboxConfig
from agentcloud.cluster.scheduler_actor import start_scheduler
from agentcloud.tasks.cli_metrics import metrics_targets, scrape
from agentcloud.tasks.jobs import Job, preflight, start_job
from agentcloud.tasks.ledger_actor import start_ledger
from agentcloud.tasks.spec import JobSpec
from tests.cluster.webhook_server import SECRET, Received, webhook_server
from tests.conftest import wait_until
from tests.tasks.cluster import Outcome, cli

MODEL = "claude-haiku-5-5"
# Another account than of other tests, whose metrics the same Ray exports.
ENDPOINT = f"watched/{MODEL}"
KIND = "agent:steady"
AGENT = '''
from pathlib import Path

from pydantic import BaseModel

from agentcloud.agents.agent import agent


class Reply(BaseModel):
    text: str


@agent(tier="large")
async def steady(ctx, item):
    """Calls until it is told to stop."""
    while not Path("stop").exists():
        await ctx.ask("Answer: hello", output=Reply, max_tokens=64)
'''


@dataclass(frozen=True)
class Watched:
    """A fleet whose hosted model serves a job that goes on calling."""

    scheduler: Any
    sandbox: SandboxProcess
    hook: Received
    job: Job
    folder: Path
    gcs: str
    logs: Path

    def cli(self, *args: str) -> Outcome:
        env = os.environ | {"PYTHONWARNINGS": "default"}
        return cli("alerts", *args, "--address", self.gcs, cwd=self.folder, env=env)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = ray.get(self.scheduler.alarms.remote(True), timeout=30)
        return report

    def windows(self, measure: str, endpoint: str = ENDPOINT) -> int:
        return sum(
            row["windows"]
            for row in self.report()["baselines"]
            if (row["endpoint"], row["kind"], row["measure"]) == (endpoint, KIND, measure)
        )


@pytest.fixture
def watched(ray_cluster: None, tmp_path: Path) -> Iterator[Watched]:
    (tmp_path / "key").write_text("sandbox-of-the-tests")
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "inputs.jsonl").write_text("".join(f'{{"id": "t{n}"}}\n' for n in range(16)))
    # Slow enough that this machine's other work, which slows calls in truth, is no change.
    latency = {MODEL: Latency(ttft_s=0.1, per_output_token_s=0.003, jitter=0.3)}
    config = SandboxConfig(latency=latency)
    with webhook_server() as hook, SandboxProcess(config) as sandbox:
        fleet_yaml = parse_fleet(
            {
                "accounts": {
                    "watched": {"base_url": sandbox.url, "api_key_file": str(tmp_path / "key")}
                },
                "hosted": {MODEL: {"account": "watched", "tier": "large"}},
                "alarms": {
                    "window_calls": 10,
                    "window_s": 0.1,
                    "min_ratio": 2.0,
                    "webhook_url": hook.url,
                },
            }
        )
        scheduler = start_scheduler(fleet_yaml)
        ledger = start_ledger(f"sqlite:///{tmp_path / 'store.db'}")
        fleet = FleetActor.options(name=FLEET_NAME, namespace=RAY_NAMESPACE, num_cpus=0).remote(
            fleet_yaml, "fleet.yaml"
        )
        ray.get(fleet.start.remote(), timeout=60)
        spec = JobSpec(
            job_id="alerts",
            agent="agent.py:steady",
            input=tmp_path / "inputs.jsonl",
            output=tmp_path / "results.jsonl",
            budget_usd=Decimal(50),
            folder=tmp_path,
        )
        job = start_job(spec, total=preflight(spec).total)
        info = connect_ray()
        assert info.session_dir is not None
        try:
            yield Watched(
                *(scheduler, sandbox, hook, job, tmp_path, info.address),
                info.session_dir / "logs",
            )
        finally:
            job.close()
            ray.get(fleet.stop.remote(), timeout=30)
            for actor in (fleet, scheduler, ledger):
                ray.kill(actor)


@pytest.mark.slow
@pytest.mark.ray
def test_a_model_that_becomes_slow_raises_one_alarm_everywhere(watched: Watched) -> None:
    assert wait_until(lambda: watched.windows("ttft_s") >= 45, 60), watched.report()
    quiet = watched.cli("--json", "--fail")
    assert (quiet.status, quiet.json["active"]) == (0, []), quiet.err
    assert quiet.json["windows"] > 100

    fault = {"kind": "slow_first_token", "delay_s": 0.8, "model": MODEL, "count": 1_000_000}
    requests.post(f"{watched.sandbox.url}/sandbox/faults", json=fault, timeout=10)
    assert wait_until(lambda: bool(watched.report()["active"]), 60)
    loud = watched.cli("--json", "--fail")
    assert loud.status == 1, loud.err
    (alarm,) = [each for each in loud.json["active"] if each["measure"] == "ttft_s"]
    assert (alarm["endpoint"], alarm["kind"]) == (ENDPOINT, KIND)
    evidence = alarm["evidence"]
    assert 0.05 < evidence["baseline"] < 0.4 < evidence["observed"]
    assert evidence["ratio"] > 2.0
    assert evidence["calls"] >= 30
    table = watched.cli("--baselines")
    assert table.status == 0, table.err
    assert "active" in table.out
    assert "tokens_per_s" in table.out

    assert wait_until(lambda: bool(watched.hook.bodies), 20)
    body = watched.hook.bodies[0]
    assert (body["event"], body["alarm"]["id"]) == ("raised", alarm["id"])
    assert "ttft_s of watched/claude-haiku-5-5 and agent:steady is" in body["text"]
    (target,) = metrics_targets()
    tags = {"endpoint": ENDPOINT, "agent": KIND, "measure": "ttft_s"}

    def gauge() -> list[float]:
        samples = scrape(target)
        return [
            s.value
            for s in samples
            if s.name == "alarms_active" and tags.items() <= s.labels.items()
        ]

    assert wait_until(lambda: gauge() == [1.0], 20), gauge()

    # The sandbox forgets its faults, the alarm ends; the job too, and its tasks tell their costs.
    requests.post(f"{watched.sandbox.url}/sandbox/reset", timeout=10)
    assert wait_until(lambda: not watched.report()["active"], 60)
    (ended,) = [each for each in watched.report()["recent"] if each["measure"] == "ttft_s"]
    assert (ended["id"], ended["how_it_ended"]) == (alarm["id"], "back to normal")
    (watched.folder / "stop").touch()
    assert watched.job.wait().done == 16

    def told() -> set[tuple[str, str, str]]:
        rows = watched.report()["baselines"]
        return {(row["endpoint"], row["kind"], row["measure"]) for row in rows}

    # Too few tasks for a window: their costs and checked answers have arrived all the same.
    of_tasks = {(ENDPOINT, "cost_per_task_usd"), ("*", "cost_per_task_usd")}
    of_tasks.add((ENDPOINT, "invalid_rate"))
    expected = {(endpoint, KIND, measure) for endpoint, measure in of_tasks}
    assert wait_until(lambda: expected <= told(), 10), told()
    lines = [
        line
        for path in watched.logs.glob("worker-*.err")
        for line in path.read_text(errors="replace").splitlines()
    ]
    assert [line for line in lines if '"event": "alarm"' in line and alarm["id"] in line]
    assert not [line for line in lines if SECRET in line]
