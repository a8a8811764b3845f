"""A real cluster with the sandbox, jobs on it, and ways to break either; for `make faults` too."""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from anthropic.types import Usage

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.sandbox.settings import Latency, SandboxConfig
from tests.faults.running_job import CONCURRENCY, RunningJob, SubmittedJob
from tests.tasks.cluster import Head, ray_head, ray_node

MODEL: Final = "claude-haiku-5-5"
LOCAL_MODEL: Final = "triage-small"
AGENTS: Final = """
from agentcloud.agents import Context, agent


async def _three(ctx: Context, item: dict) -> str:
    first = await ctx.ask(f"one {item['id']}")
    second = await ctx.ask(f"two {item['id']} {first}")
    return await ctx.ask(f"three {item['id']} {second}")


@agent(tier="large", max_tokens=64)
async def three(ctx: Context, item: dict) -> str:
    return await _three(ctx, item)


@agent(tier="small", max_tokens=64)
async def three_local(ctx: Context, item: dict) -> str:
    return await _three(ctx, item)
"""
#: Titles of the processes, as Ray sets them.
TITLES: Final = {
    "worker": "ray::Worker",
    "supervisor": "ray::Supervisor",
    "scheduler": "ray::Scheduler",
    "ledger": "ray::LedgerService",
    "fleet": "ray::Fleet",
    "replica": "ray::Replica",
}
#: Points at which a process may be killed, in the order of one call (fault_points.py).
POINTS: Final = (
    *("before-grant", "after-grant", "leased", "sent", "answered", "settled"),
    *("before-step", "after-step", "recorded"),
)


@dataclass(frozen=True)
class Setting:
    """What a world is made of.

    Attributes:
        ttft_s: how long the sandbox takes for an answer, seconds.
        store: URL of the ledger's database and the scheduler's; None: SQLite in the folder.
        fleet: more of fleet.yaml.
        has_local_model: the embedded model on vLLM, as tier `small`.
        has_node: a second machine, as a raylet of its own.
        env: of Ray and of the commands.
    """

    ttft_s: float = 0.05
    store: str | None = None
    fleet: Mapping[str, Any] = field(default_factory=dict)
    has_local_model: bool = False
    has_node: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


class World:
    """A cluster, its sandbox, and the folder of a user."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        sandbox: SandboxProcess,
        folder: Path,
        setting: Setting,
    ) -> None:
        self._stack = stack
        self._setting = setting
        self.sandbox = sandbox
        self.folder = folder
        self.faults = folder / "armed"
        self.faults.mkdir()
        self.store = setting.store or f"sqlite:///{folder / 'store.db'}"
        self._write_files()
        self.start_ray()

    def _write_files(self) -> None:
        (self.folder / "agent.py").write_text(AGENTS)
        # A submitted job's package is this folder.
        (self.folder / ".gitignore").write_text("*.db*\n*.err\n*.out.jsonl\narmed/\n")
        model = {
            "path": f"embedded:{LOCAL_MODEL}",
            "tier": "small",
            "context_tokens": 1024,
            "kv_cache_gib": 0.25,
            "usd_per_gpu_hour": "0.04",
        }
        fleet = {
            "accounts": {"sandbox": {"base_url": self.sandbox.url, "api_key_env": "SANDBOX_KEY"}},
            "hosted": {MODEL: {"account": "sandbox", "tier": "large"}},
            "store": self.store,
            **({"models": {LOCAL_MODEL: model}} if self._setting.has_local_model else {}),
            **self._setting.fleet,
        }
        (self.folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))

    def start_ray(self) -> None:
        """`ray start`, then `agentcloud up`: the machine is there (again)."""
        env: dict[str, Any] = {"AGENTCLOUD_FAULT_POINTS": str(self.faults), **self._setting.env}
        self.head: Head = self._stack.enter_context(ray_head(**env))
        if self._setting.has_node:
            self.start_node()
        up = self.head.cli("up", "--address", self.head.gcs, cwd=self.folder, timeout_s=240)
        if up.status != 0:
            raise RuntimeError(up.err)

    @property
    def has_node(self) -> bool:
        """Whether there is, or was, a second machine."""
        return self._setting.has_node

    def start_node(self) -> None:
        """`ray start --address`: a second machine."""
        self._node = self._stack.enter_context(ray_node(self.head))

    def kill_node(self) -> None:
        """SIGKILL all that runs on the second machine, at once; workers of a job among it."""
        node, deadline_s = psutil.Process(self._node.pid), time.monotonic() + 30
        while True:
            there = [node, *node.children(recursive=True)]
            if {each.pid for each in there} & set(self.pids("worker")):
                return _kill(there)
            # The first machine's are there sooner, and have done tasks.
            if time.monotonic() > deadline_s:
                raise RuntimeError("no worker runs on the second node")
            time.sleep(0.05)

    def kill_ray(self) -> None:
        """SIGKILL all of Ray at once, with the command that follows the job."""
        _kill(self._processes())

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("AGENTCLOUD_FAULT_POINTS") == str(self.faults):
                    found.append(process)
        return found

    @contextlib.contextmanager
    def job(
        self,
        name: str,
        tasks: int,
        *,
        agent: str = "three",
        submitted: bool = False,
        budget: str = "1",
        at_once: int = CONCURRENCY,
        **options: str,
    ) -> Iterator[RunningJob]:
        """Start `agentcloud run`, or `submit`, on the cluster; the sandbox's list begins anew."""
        if self._setting.has_node and self._node.poll() is not None:
            self.start_node()
        rows = "".join(json.dumps({"id": f"{name}-{n}"}) + "\n" for n in range(tasks))
        (self.folder / f"{name}.jsonl").write_text(rows)
        self._sandbox("POST", "reset")
        kind = SubmittedJob if submitted else RunningJob
        job = kind(self, name, tasks, Decimal(budget), options, agent, at_once)
        try:
            yield job
        finally:
            job.close()

    def pids(self, kind: str) -> list[int]:
        """Processes of a kind that belong to this cluster."""
        found = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(TITLES[kind]):
                    found.append(process.pid)
        return found

    def arm(self, point: str) -> None:
        """The next process that reaches the point dies there."""
        (self.faults / point).touch()

    def go_wrong(self, kind: str, count: int) -> None:
        """The next calls at the sandbox meet a fault of its own."""
        self._sandbox("POST", "faults", {"kind": kind, "count": count})

    def go_right(self) -> None:
        """No more calls meet a fault."""
        self._sandbox("DELETE", "faults")

    def billed(self) -> tuple[int, Decimal]:
        """Answers beyond one for each request, and the money for all, as the sandbox has it."""
        calls = [each for each in self._sandbox("GET", "state")["calls"] if each["usage"]]
        catalog = load_catalog()
        usd = Decimal(0)
        for call in calls:
            usd += catalog.cost_usd(MODEL, Usage.model_validate(call["usage"])) or Decimal(0)
        return len(calls) - len({call["body_sha256"] for call in calls}), usd

    def _sandbox(self, method: str, what: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.sandbox.url}/sandbox/{what}", data=data, method=method
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


@contextlib.contextmanager
def job_world(folder: Path, setting: Setting = Setting()) -> Iterator[World]:
    """A cluster by `ray start` with a fleet by `agentcloud up`: one hosted model, the sandbox.

    Args:
        folder: of the user; empty.
        setting: what else there is.
    """
    config = SandboxConfig(latency={"*": Latency(ttft_s=setting.ttft_s)}, keep_calls=1_000_000)
    with SandboxProcess(config) as sandbox, contextlib.ExitStack() as stack:
        yield World(stack, sandbox, folder, setting)
