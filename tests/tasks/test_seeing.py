"""What a person sees of a running cluster: log lines, metrics, panels, Ray's dashboard."""

from __future__ import annotations

import json
import math
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from http import HTTPStatus
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
from agentcloud.cluster.sandbox.settings import FaultKind, FaultRule, SandboxConfig
from agentcloud.cluster.scheduler_actor import start_scheduler
from agentcloud.tasks.cli_metrics import Sample, metrics_targets, scrape
from agentcloud.tasks.grafana import PANELS, SERVICE_DISCOVERY, write_grafana
from agentcloud.tasks.jobs import preflight, start_job
from agentcloud.tasks.ledger_actor import start_ledger
from agentcloud.tasks.spec import JobSpec
from tests.conftest import RunningReplica, wait_until
from tests.tasks.browser import CHROMIUM, browser
from tests.tasks.cluster import Head, free_ports

pytestmark = [pytest.mark.ray, pytest.mark.engine]

JOB = "seen"
# Names of this file alone: a Ray goes on exporting the counters of schedulers that ended, and late.
HAIKU = "seen/claude-haiku-5-5"
TINY = "seen-tiny"
SCREENSHOTS = Path(__file__).parents[2] / "bench" / "out"
AGENT = '''
import asyncio
from pathlib import Path

from agentcloud.agents.agent import agent


@agent
async def steady(ctx, item):
    """Calls until it is told to stop."""
    while not Path("stop").exists():
        if not Path("pause").exists():
            await ctx.ask("hello", tier="small", max_tokens=8)
            await ctx.ask("hello", tier="large", max_tokens=32)
            ctx.log.info("round over")
        else:
            Path("idle").touch()
        await asyncio.sleep(0.1)
'''


@dataclass(frozen=True)
class Busy:
    """A cluster with a job that goes on calling."""

    scheduler: Any
    folder: Path
    logs: Path
    dashboard: str

    def snapshot(self) -> dict[str, Any]:
        snapshot: dict[str, Any] = ray.get(self.scheduler.snapshot.remote(), timeout=30)
        return snapshot

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No call is in flight, and none begins."""
        pause, idle = self.folder / "pause", self.folder / "idle"
        idle.unlink(missing_ok=True)
        pause.touch()
        try:
            assert wait_until(idle.exists, 60)
            assert wait_until(lambda: self.snapshot()["inflight"] == 0, 60)
            yield
        finally:
            pause.unlink()


@pytest.fixture(scope="module")
def busy(replica: RunningReplica, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    """Scheduler, fleet, the shared replica, a hosted model that fails now and then, and a job."""
    folder = tmp_path_factory.mktemp("busy")
    (folder / "key").write_text("sandbox-of-the-tests")
    (folder / "agent.py").write_text(AGENT)
    (folder / "inputs.jsonl").write_text('{"id": "t1"}\n')
    # Few: failed sends spend the attempts of a task.
    rule = FaultRule(kind=FaultKind.OVERLOADED, calls=frozenset({2, 5}))
    with SandboxProcess(SandboxConfig(faults=(rule,))) as sandbox:
        hosted: dict[str, Any] = {
            "accounts": {
                "seen": {
                    "base_url": sandbox.url,
                    "api_key_file": str(folder / "key"),
                    "limits": {"*": {"requests_per_minute": 100_000}},
                }
            },
            "hosted": {"claude-haiku-5-5": {"account": "seen", "tier": "large"}},
            "retry": {"base_s": 0.01},
            "fleet_budget_usd": "5",
        }
        models = {TINY: {"path": str(replica.settings.model)}}
        scheduler = start_scheduler(parse_fleet(hosted | {"models": models}))
        ledger = start_ledger(f"sqlite:///{folder / 'store.db'}")
        local = replace(replica.spec, model=TINY)
        # The replica is the whole run's: this fleet keeps the hosted model alone.
        fleet = FleetActor.options(name=FLEET_NAME, namespace=RAY_NAMESPACE, num_cpus=0).remote(
            parse_fleet(hosted), "fleet.yaml"
        )
        ray.get([fleet.start.remote(), scheduler.register.remote([local])], timeout=60)
        load = ray.get(replica.actor.load.remote(), timeout=30)
        ray.get(scheduler.report_load.remote({replica.name: load}), timeout=30)
        spec = JobSpec(
            job_id=JOB,
            agent="agent.py:steady",
            input=folder / "inputs.jsonl",
            output=folder / "results.jsonl",
            budget_usd=Decimal(1),
            folder=folder,
        )
        job = start_job(spec, total=preflight(spec).total)
        info = connect_ray()
        assert info.session_dir is not None
        assert info.dashboard_url is not None
        logs = info.session_dir / "logs"
        running = Busy(scheduler, folder, logs, info.dashboard_url)
        try:
            assert wait_until(lambda: _calls(running, HAIKU) > 8, 120), job.record()
            yield running
            (folder / "stop").touch()
            assert job.wait().done == 1
        finally:
            job.close()
            ray.get(fleet.stop.remote(), timeout=30)
            for actor in (fleet, scheduler, ledger):
                ray.kill(actor)


def _calls(busy: Busy, endpoint: str) -> int:
    calls: int = busy.snapshot()["endpoints"][endpoint]["totals"]["calls"]
    return calls


def _log_lines(busy: Busy) -> Iterator[dict[str, Any]]:
    for path in busy.logs.glob("worker-*.err"):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith('{"'):
                yield json.loads(line)


def test_log_lines_carry_the_ids_of_their_job_task_call_and_endpoint(busy: Busy) -> None:
    lines = list(_log_lines(busy))
    (failed, *_) = [line for line in lines if line["event"] == "send failed"]
    assert failed["actor"] == f"worker:{JOB}:1.0"
    assert failed["job"] == JOB
    assert failed["task"] == "t1"
    assert failed["endpoint"] == HAIKU
    assert failed["call"].startswith("call-")
    assert (failed["kind"], failed["then"]) == ("overloaded_error", "is sent again")
    assert failed["level"] == "warning"
    (said, *_) = [line for line in lines if line["event"] == "round over"]
    assert (said["job"], said["task"], said["actor"]) == (JOB, "t1", f"worker:{JOB}:1.0")
    assert any(line["event"] == "job state" and line["actor"] == f"job:{JOB}" for line in lines)


def _value(samples: list[Sample], name: str, **labels: str) -> float:
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def _expected(snapshot: dict[str, Any]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Every metric of the snapshot's endpoints: name, labels, value."""
    for name, row in snapshot["endpoints"].items():
        totals = row["totals"]
        of = {"endpoint": name, "model": row["model"], "kind": row["kind"]}
        for outcome in ("ok", "failed", "cancelled", "unknown", "expired"):
            yield "calls_total", {"outcome": outcome, **of}, totals[outcome]
        for direction in ("input", "cache_write", "cache_read", "output"):
            yield "tokens_total", {"direction": direction, **of}, totals[f"{direction}_tokens"]
        for kind, errors in totals["errors"].items():
            yield "errors_total", {"error": kind, **of}, errors
        yield "cost_usd_total", of, float(totals["cost_usd"])
        yield "unknown_cost_calls", of, totals["unknown_costs"]
        yield "ttft_seconds_count", of, totals["ok"]
        yield "lease_wait_seconds_count", of, totals["calls"]
    yield "retries_total", {"endpoint": HAIKU}, snapshot["endpoints"][HAIKU]["totals"]["failed"]
    (budget,) = [each for each in snapshot["budgets"] if each["scope"] == f"job:{JOB}"]
    yield "budget_used_usd", {"scope": budget["scope"]}, float(budget["spent_usd"])
    yield "budget_limit_usd", {"scope": budget["scope"]}, 1.0


def test_exported_metrics_are_the_scheduler_s_totals(busy: Busy) -> None:
    with busy.paused():
        snapshot = busy.snapshot()
        (target,) = metrics_targets()
        wrong: list[str] = []

        def is_exported() -> bool:  # Ray exports one metric after the other
            samples = scrape(target)
            wrong[:] = [
                f"{name} {labels}: {_value(samples, name, **labels)}, not {value}"
                for name, labels, value in _expected(snapshot)
                if _value(samples, name, **labels) != pytest.approx(value)
            ]
            return not wrong

        assert wait_until(is_exported, 30), wrong
        samples = scrape(target)
    assert snapshot["endpoints"][HAIKU]["totals"]["errors"]["overloaded_error"] > 0
    assert _value(samples, "budget_used_usd", scope=f"job:{JOB}") > 0
    for sample in samples:
        assert not {"task", "call"} & sample.labels.keys()


@contextmanager
def _prometheus(folder: Path, session_dir: Path) -> Iterator[str]:
    # The same file as that below /tmp/ray, which the last Ray that started here owns.
    write_grafana(folder, str(session_dir / Path(SERVICE_DISCOVERY).name))
    config = json.loads((folder / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    (folder / "prometheus.yml").write_text(json.dumps(config))
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _answer(url: str, expr: str) -> list[float]:
    """The numbers that Prometheus gives for an expression, none while it is starting."""
    try:
        answer = requests.get(f"{url}/api/v1/query", params={"query": expr}, timeout=10)
    except requests.ConnectionError:
        return []
    if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:  # it listens before it is ready
        return []
    told = answer.json()
    assert told.get("status") == "success", told
    values = [float(row["value"][1]) for row in told["data"]["result"]]
    return [value for value in values if not math.isnan(value)]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="scripts/apt.sh installs prometheus")
def test_every_panel_has_data_in_prometheus(busy: Busy, tmp_path: Path) -> None:
    queries = {(panel.title, q.expr): q.over("15s") for panel in PANELS for q in panel.queries}
    with _prometheus(tmp_path, busy.logs.parent) as url:
        empty = dict(queries)

        def all_have_data() -> bool:
            for key, expr in list(empty.items()):
                if _answer(url, expr):
                    del empty[key]
            return not empty

        assert wait_until(all_have_data, 90), f"no data: {list(empty)}"
        (cost,) = _answer(url, "sum(rate(ray_agentcloud_cost_usd_total[15s])) * 3600")
        assert cost > 0
    written = json.loads((tmp_path / "dashboards" / "agentcloud.json").read_text())
    shown = {(p["title"], t["expr"]) for p in written["panels"] for t in p["targets"]}
    assert shown == queries.keys()


def _ray_token() -> str:
    default = Path.home() / ".ray" / "auth_token"
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", default)).read_text().strip()


@pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="scripts/apt.sh installs chromium")
async def test_ray_s_dashboard_shows_our_names(
    busy: Busy, replica: RunningReplica, tmp_path: Path
) -> None:
    dialog = "Authentication Token Required"
    async with browser(tmp_path / "profile") as page:
        await page.open(busy.dashboard)
        await page.wait_for(dialog, timeout_s=90)
        await page.type_into("[role=dialog] input", _ray_token())
        await page.press("submit")
        await page.wait_for("Recent jobs", without=dialog)
        await page.open(f"{busy.dashboard}/#/actors")
        names = ("scheduler", "fleet", replica.name, f"worker:{JOB}:1.0", f"job:{JOB}")
        await page.wait_for(*names, "ALIVE", without=dialog)
        await page.screenshot(SCREENSHOTS / "ray_actors.png")
        await page.open(f"{busy.dashboard}/#/jobs")
        await page.wait_for("RUNNING", without=dialog)
        await page.screenshot(SCREENSHOTS / "ray_jobs.png")


def test_lines_on_a_terminal_are_for_people() -> None:
    script = (
        "import structlog; from agentcloud.cluster.logs import bound_ids, configure_logs\n"
        "configure_logs(actor='cli')\n"
        "with bound_ids(call='c1', task=None): structlog.get_logger().info('sent', tokens=7)"
    )
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTCLOUD_LOG")}
    subprocess.run([sys.executable, "-c", script], stderr=theirs, env=env, check=True)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert "sent" in said
    assert "\x1b[" in said
    assert "call" in said
    assert "c1" in said
    assert not said.lstrip().startswith("{")
    piped = subprocess.run(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, env=env, check=True, text=True
    )
    line = json.loads(piped.stderr)
    assert (line["event"], line["call"], line["actor"], line["tokens"]) == ("sent", "c1", "cli", 7)
    assert "task" not in line


def test_metrics_command(head: Head, tmp_path: Path) -> None:
    def is_shown() -> bool:
        shown = head.cli("metrics", "--json", cwd=tmp_path, address=True)
        assert shown.status == 0, shown.err
        rows = {row["name"]: row for row in shown.json} if shown.out.strip() else {}
        # Ray exports them one after another.
        waiting = rows.get("leases_waiting", {}).get("value")
        return waiting == 0.0 and "endpoint_running" in rows

    assert wait_until(is_shown, 60)
    table = head.cli("metrics", cwd=tmp_path, address=True)
    assert table.status == 0, table.err
    assert "endpoint_running" in table.out
    assert "sandbox/claude-haiku-5-5" in table.out
    wrote = head.cli("metrics", "--grafana", "monitoring", "--json", cwd=tmp_path)
    assert wrote.status == 0, wrote.err
    assert sorted(str(Path(path).relative_to("monitoring")) for path in wrote.json) == [
        "dashboards/agentcloud.json",
        "prometheus.yml",
        "provisioning/dashboards/agentcloud.yaml",
        "provisioning/datasources/agentcloud.yaml",
    ]
    prometheus = json.loads((tmp_path / "monitoring" / "prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [SERVICE_DISCOVERY]}]
