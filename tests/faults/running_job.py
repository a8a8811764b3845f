"""A job in a process of its own, as a user starts it, and what it came to as seen from outside.

That is: its results file, and the sandbox's own list of what it answered and billed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agentcloud.tasks.spec import new_job_id
from tests.tasks.cluster import BIN

if TYPE_CHECKING:
    from tests.faults.job_world import World

CONCURRENCY: Final = 32


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
        recover_s: from the fault to the next lines; None: nothing was broken.
        errors: what the first failed lines say.
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
    errors: tuple[str, ...]

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

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Verdict:
        """What `to_dict` gave."""
        usd = {key: Decimal(told[key]) for key in ("over_usd", "uncharged_usd")}
        return cls(**{**told, **usd, "errors": tuple(told["errors"])})


class RunningJob:
    """A job by `agentcloud run`."""

    def __init__(
        self,
        world: World,
        name: str,
        tasks: int,
        budget_usd: Decimal,
        options: dict[str, str],
        agent: str,
        concurrency: int,
    ) -> None:
        self.world = world
        self.name = name
        self.tasks = tasks
        self.budget_usd = budget_usd
        self._said = world.folder / f"{name}.err"
        self._said_file = self._said.open("a")
        self._began_s = time.monotonic()
        self._recover_s: float | None = None
        more = [part for key, value in options.items() for part in (f"--{key}", value)]
        self._args = (
            f"agent.py:{agent}", "--input", f"{name}.jsonl", "--budget", f"${budget_usd}",
            "--workers", "2", "--concurrency", str(concurrency), *more,
        )  # fmt: skip
        self._process = self._begin()

    def _begin(self) -> subprocess.Popen[str]:
        return self._start("run", *self._args, "--output", str(self.output))

    @property
    def output(self) -> Path:
        """Its results file; it may not be there yet."""
        return self.world.folder / f"{self.name}.out.jsonl"

    def _record(self, out: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(out)
        return record

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
        # The command tries whether the file can be written, and removes it again.
        try:
            return self.output.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def until(self, lines: int, timeout_s: float = 120.0) -> None:
        """Wait until the results file has so many lines."""
        deadline_s = time.monotonic() + timeout_s
        while self.lines() < lines:
            if self._process.poll() is not None:
                raise RuntimeError(f"the job ended: {self.ended()}")
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

    def ended(self, timeout_s: float = 300.0) -> dict[str, Any]:
        """Wait for its end; its record.

        Raises:
            RuntimeError: it says nothing.
        """
        out, _ = self._process.communicate(timeout=timeout_s)
        if not out.strip():
            raise RuntimeError(f"no summary: {self._said.read_text()[-2000:]}")
        return self._record(out)

    @property
    def pid(self) -> int:
        """Of the command that follows it."""
        return self._process.pid

    def verdict(self, timeout_s: float = 300.0) -> Verdict:
        """Wait for its end, and compare what it says with what there is."""
        record = self.ended(timeout_s)
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        ids = [line["id"] for line in lines]
        later = sum(call["attempts"] - 1 for line in lines for call in line["calls"])
        twice, usd = self.world.billed()
        failed = [line for line in lines if line["status"] == "failed"]
        listed = self.world.head.cli("jobs", "--json", cwd=self.world.folder, address=True).json
        (job,) = (each for each in listed if each["job_id"] == record["job_id"])
        return Verdict(
            tasks=self.tasks,
            lost=self.tasks - len(set(ids)),
            duplicated=len(ids) - len(set(ids)),
            failed=len(failed),
            paid_twice=twice,
            told=record["resent_calls"] + record["unknown_cost_calls"] + later,
            over_usd=max(Decimal(0), usd - self.budget_usd),
            uncharged_usd=max(Decimal(0), usd - Decimal(job["spent_usd"])),
            reused=record["reused_steps"],
            runs=record["run"],
            recover_s=self._recover_s,
            seconds=time.monotonic() - self._began_s,
            errors=tuple(json.dumps(line["error"])[:200] for line in failed[:3]),
        )


class SubmittedJob(RunningJob):
    """A job by `agentcloud submit --wait`, under a key: sent again, it goes on."""

    def _begin(self) -> subprocess.Popen[str]:
        return self._start("submit", *self._args, "--key", self.name, "--wait")

    @property
    def output(self) -> Path:
        """Its results file on the cluster, the newest."""
        found = self.world.head.folder.glob(f"session_2*/logs/agentcloud/{self.job_id}/*.jsonl")
        return next(found, Path("/nowhere"))

    @property
    def job_id(self) -> str:
        """Its id, which follows from its key."""
        return new_job_id(self.name)

    def _record(self, out: str) -> dict[str, Any]:
        record: dict[str, Any] | None = json.loads(out)["record"]
        if record is None:
            raise RuntimeError(f"no record: {out}\n{self._said.read_text()[-2000:]}")
        return record

    def resume(self) -> None:
        """As a user does after the cluster died: the same command again."""
        self.kill_driver()
        self._process = self._begin()
