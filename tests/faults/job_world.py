"""A real cluster with the sandbox, a job on it, and ways to break either; for `make faults` too.

What is found out comes from outside: the results file, and the sandbox's own list of what it
answered and billed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psutil
import yaml
from anthropic.types import Usage

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.cluster.sandbox.settings import Latency, SandboxConfig
from tests.tasks.cluster import BIN, Head, ray_head

MODEL: Final = "claude-haiku-5-5"
AGENT: Final = """
from agentcloud.agents import Context, agent


@agent(tier="large", max_tokens=64)
async def three(ctx: Context, item: dict) -> str:
    first = await ctx.ask(f"one {item['id']}")
    second = await ctx.ask(f"two {item['id']} {first}")
    return await ctx.ask(f"three {item['id']} {second}")

"""
CONCURRENCY: Final = 32
#: Titles of the processes, as Ray sets them.
TITLES: Final = {
    "worker": "ray::Worker",
    "supervisor": "ray::Supervisor",
    "scheduler": "ray::Scheduler",
    "ledger": "ray::LedgerService",
}
#: Points at which a process may be killed, in the order of one call (fault_points.py).
POINTS: Final = (
    *("before-grant", "after-grant", "leased", "sent", "answered", "settled"),
    *("before-step", "after-step", "recorded"),
)


@dataclass(frozen=True)
class Verdict:
    """What a job came to.

    Attributes:
        lost: inputs without a line.
        duplicated: lines beyond one for each input.
        failed: lines that say so.
        paid_twice: answers that the sandbox billed beyond one for each request.
        told: how many of them the job says: sent again after a crash (`resent_calls`), of unknown
            cost, or a later send of a call that failed (`attempts`).
        over_usd: what the sandbox billed beyond the job's budget.
        uncharged_usd: what it billed beyond what the job was charged.
        recover_s: from the fault to the next line; None: nothing was broken.
    """

    tasks: int
    lost: int
    duplicated: int
    failed: int
    paid_twice: int
    told: int
    over_usd: Decimal
    uncharged_usd: Decimal
    reused: int
    runs: int
    recover_s: float | None
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Nothing lost, doubled or unpaid, and nothing paid twice in silence."""
        return (
            not (self.lost or self.duplicated or self.failed)
            and self.paid_twice <= self.told
            and self.over_usd <= 0
            and self.uncharged_usd <= 0
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = asdict(self)
        return {k: str(v) if isinstance(v, Decimal) else v for k, v in told.items()}


class World:
    """A cluster, its sandbox, and the folder of a user."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        sandbox: SandboxProcess,
        folder: Path,
        faults: Path,
        store: str,
    ) -> None:
        self._stack = stack
        self.store = store
        self.sandbox = sandbox
        self.folder = folder
        self.faults = faults
        self.start_ray()

    def start_ray(self) -> None:
        """`ray start`, then `agentcloud up`: the machine is there (again)."""
        started = ray_head(AGENTCLOUD_FAULT_POINTS=str(self.faults))
        self.head: Head = self._stack.enter_context(started)
        up = self.head.cli("up", "--address", self.head.gcs, cwd=self.folder)
        if up.status != 0:
            raise RuntimeError(up.err)

    def kill_ray(self) -> None:
        """SIGKILL all of Ray at once, with the command that follows the job."""
        ours = self._processes()
        for process in ours:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(ours, timeout=10)

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("AGENTCLOUD_FAULT_POINTS") == str(self.faults):
                    found.append(process)
        return found

    @contextlib.contextmanager
    def job(
        self, name: str, tasks: int, *, budget: str = "1", **options: str
    ) -> Iterator[RunningJob]:
        """Start `agentcloud run` on the cluster; the sandbox's list begins anew."""
        rows = "".join(json.dumps({"id": f"{name}-{n}"}) + "\n" for n in range(tasks))
        (self.folder / f"{name}.jsonl").write_text(rows)
        request = urllib.request.Request(f"{self.sandbox.url}/sandbox/reset", method="POST")
        urllib.request.urlopen(request).close()
        job = RunningJob(self, name, tasks, Decimal(budget), options)
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
        body = json.dumps({"kind": kind, "count": count}).encode()
        urllib.request.urlopen(f"{self.sandbox.url}/sandbox/faults", data=body).close()

    def billed(self) -> tuple[int, Decimal]:
        """Answers beyond one for each request, and the money for all, as the sandbox has it."""
        with urllib.request.urlopen(f"{self.sandbox.url}/sandbox/state") as reply:
            calls = [each for each in json.load(reply)["calls"] if each["usage"]]
        catalog = load_catalog()
        usd = Decimal(0)
        for call in calls:
            usd += catalog.cost_usd(MODEL, Usage.model_validate(call["usage"])) or Decimal(0)
        return len(calls) - len({call["body_sha256"] for call in calls}), usd


class RunningJob:
    """A job in its own process, as a user starts it."""

    def __init__(
        self,
        world: World,
        name: str,
        tasks: int,
        budget_usd: Decimal,
        options: dict[str, str],
    ) -> None:
        self.world = world
        self.name = name
        self.tasks = tasks
        self.budget_usd = budget_usd
        self._output = world.folder / f"{name}.out.jsonl"
        self._said = world.folder / f"{name}.err"
        self._said_file = self._said.open("a")
        self._began_s = time.monotonic()
        self._recover_s: float | None = None
        more = [part for key, value in options.items() for part in (f"--{key}", value)]
        self._process = self._start(
            "run", "agent.py:three", "--input", f"{name}.jsonl", "--output", str(self._output),
            "--budget", f"${budget_usd}", "--workers", "2",
            "--concurrency", str(CONCURRENCY), *more,
        )  # fmt: skip

    def _start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(BIN / "agentcloud"), *args, "--address", self.world.head.gcs, "--json"],
            cwd=self.world.folder,
            env=self.world.head.env,
            stdout=subprocess.PIPE,
            stderr=self._said_file,
            text=True,
        )

    def close(self) -> None:
        """End it, whatever it is doing."""
        self.kill_driver()
        self._said_file.close()

    def lines(self) -> int:
        """Whole lines of the results file."""
        return self._output.read_bytes().count(b"\n") if self._output.exists() else 0

    def until(self, lines: int, timeout_s: float = 120.0) -> None:
        """Wait until the results file has so many lines."""
        deadline_s = time.monotonic() + timeout_s
        while self.lines() < lines:
            if self._process.poll() is not None:
                raise RuntimeError(f"the job ended: {self._said.read_text()[-2000:]}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{self.lines()} lines after {timeout_s:g} s")
            time.sleep(0.02)

    def kill(self, kind: str) -> None:
        """SIGKILL one process of a kind."""
        os.kill(self.world.pids(kind)[0], signal.SIGKILL)

    def kill_driver(self) -> None:
        """SIGKILL the command that follows the job; safe to call twice."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def recovered(self, *, since_s: float, timeout_s: float = 120.0) -> None:
        """Wait until more tasks have ended than may have been under way at the fault.

        Args:
            since_s: clock time of the fault.
            timeout_s: the longest to wait.
        """
        self.until(min(self.tasks, self.lines() + CONCURRENCY), timeout_s)
        self._recover_s = time.monotonic() - since_s

    @property
    def job_id(self) -> str:
        """Its id, as the command said it."""
        while "agentcloud resume" not in (said := self._said.read_text()):
            if self._process.poll() is not None:
                raise RuntimeError(f"the job ended: {said}")
            time.sleep(0.05)
        (job_id,) = set(re.findall(r"agentcloud resume (\w+)", self._said.read_text()))
        return str(job_id)

    def resume(self) -> None:
        """As a user does after the command died."""
        self.kill_driver()
        self._process = self._start("resume", self.job_id)

    def verdict(self, timeout_s: float = 300.0) -> Verdict:
        """Wait for its end, and compare what it says with what there is."""
        out, _ = self._process.communicate(timeout=timeout_s)
        if not out.strip():
            raise RuntimeError(f"no summary: {self._said.read_text()[-2000:]}")
        record = json.loads(out)
        lines = [json.loads(line) for line in self._output.read_text().splitlines()]
        ids = [line["id"] for line in lines]
        later = sum(call["attempts"] - 1 for line in lines for call in line["calls"])
        twice, usd = self.world.billed()
        listed = self.world.head.cli("jobs", "--json", cwd=self.world.folder, address=True).json
        (job,) = (each for each in listed if each["job_id"] == record["job_id"])
        return Verdict(
            tasks=self.tasks,
            lost=self.tasks - len(set(ids)),
            duplicated=len(ids) - len(set(ids)),
            failed=sum(line["status"] == "failed" for line in lines),
            paid_twice=twice,
            told=record["resent_calls"] + record["unknown_cost_calls"] + later,
            over_usd=max(Decimal(0), usd - self.budget_usd),
            uncharged_usd=max(Decimal(0), usd - Decimal(job["spent_usd"])),
            reused=record["reused_steps"],
            runs=record["run"],
            recover_s=self._recover_s,
            seconds=time.monotonic() - self._began_s,
        )


@contextlib.contextmanager
def job_world(folder: Path, *, ttft_s: float = 0.05, store: str | None = None) -> Iterator[World]:
    """A cluster by `ray start` with a fleet by `agentcloud up`: one hosted model, the sandbox.

    Args:
        folder: of the user; empty.
        ttft_s: how long the sandbox takes for an answer.
        store: URL of the ledger's database and the scheduler's; None: SQLite in the folder.
    """
    faults = folder / "armed"
    faults.mkdir()
    (folder / "agent.py").write_text(AGENT)
    config = SandboxConfig(latency={"*": Latency(ttft_s=ttft_s)}, keep_calls=1_000_000)
    with SandboxProcess(config) as sandbox, contextlib.ExitStack() as stack:
        store = store or f"sqlite:///{folder / 'store.db'}"
        fleet = {
            "accounts": {"sandbox": {"base_url": sandbox.url, "api_key_env": "SANDBOX_KEY"}},
            "hosted": {MODEL: {"account": "sandbox", "tier": "large"}},
            "store": store,
        }
        (folder / "fleet.yaml").write_text(yaml.safe_dump(fleet))
        yield World(stack, sandbox, folder, faults, store)
