"""Tasks a second of a job whose agent does nothing: what a task costs before any model is called.

All parts are the real ones: Ray, supervisor, workers, ledger and results on disk; only calls are
missing (the hosted model is never called). The rate is that of the whole job from the first task
that ended to the last; the time to start Ray and the workers is told beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml

from agentcloud.tasks.client import Client
from agentcloud.tasks.jobs import Job
from bench import report

#: Workers and tasks at once, over all of them.
SHAPES: Final = ((1, 128), (1, 1024), (2, 1024))
BOUNDS: Final = {"tasks_per_s": (">=", 300.0)}

_AGENT: Final = """
from agentcloud.agents.agent import agent

@agent(tier="large")
async def nothing(ctx, item):
    return item["n"]
"""
_FLEET: Final = {
    "accounts": {"none": {"base_url": "http://127.0.0.1:9", "api_key_env": "BENCH_KEY"}},
    "hosted": {"claude-haiku-5-5": {"account": "none", "tier": "large"}},
}


@dataclass(frozen=True)
class Round:
    """One job.

    Attributes:
        start_s: until its first task ended, since it was asked for.
        tasks_per_s: from then on.
        whole_job_tasks_per_s: since it was asked for, its input's survey and its workers' start
            included.
    """

    workers: int
    concurrency: int
    output: str
    tasks: int
    start_s: float
    tasks_per_s: float
    whole_job_tasks_per_s: float


def measure(client: Client, tasks: int, workers: int, concurrency: int, output: str) -> Round:
    """Run one job to its end."""
    asked_s = time.monotonic()
    inputs = ({"n": n} for n in range(tasks))
    settings: dict[str, Any] = {"workers": workers, "concurrency": concurrency}
    job = client.run("agent.py:nothing", inputs, output=output, **settings)
    first_done, first_s, last_s = _follow(job, tasks)
    rate = (tasks - first_done) / (last_s - first_s)
    kind = Path(output).suffix.removeprefix(".")
    whole = tasks / (last_s - asked_s)
    return Round(workers, concurrency, kind, tasks, first_s - asked_s, rate, whole)


def _follow(job: Job, tasks: int) -> tuple[int, float, float]:
    first: tuple[int, float] | None = None
    while True:
        record, now_s = job.record(), time.monotonic()
        if first is None and record.done:
            first = record.done, now_s
        if record.state.is_final:
            if record.done != tasks or first is None:
                raise RuntimeError(f"{record.label}: {record.done} of {tasks}: {record.detail}")
            return *first, now_s
        time.sleep(0.1)


def main() -> int:
    """Measure, print, write `bench/out/dispatch.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=20_000, help="of each job")
    args = parser.parse_args()
    os.environ["BENCH_KEY"] = "never-used"
    rounds = []
    with TemporaryDirectory(prefix="agentcloud-bench-") as folder:
        os.chdir(folder)
        Path("agent.py").write_text(_AGENT)
        fleet = _FLEET | {"store": f"sqlite:///{folder}/store.db"}
        Path("fleet.yaml").write_text(yaml.safe_dump(fleet))
        with Client(fleet="fleet.yaml") as client:
            client.connect()
            for number, (workers, concurrency) in enumerate(SHAPES):
                output = f"out-{number}.jsonl"
                rounds.append(measure(client, args.tasks, workers, concurrency, output))
                print(rounds[-1], flush=True)
            rounds.append(measure(client, args.tasks, *SHAPES[0], "out.parquet"))
    rows = [
        (
            f"{each.workers} x {each.concurrency}, {each.output}",
            each.tasks_per_s,
            each.start_s,
            each.whole_job_tasks_per_s,
        )
        for each in rounds
    ]
    columns = ("workers x tasks at once", "tasks/s", "start s", "whole job, tasks/s")
    report.table("tasks that do nothing", columns, rows)
    ratios = {"tasks_per_s": min(each.tasks_per_s for each in rounds)}
    kept = report.ratios_table(ratios, BOUNDS)
    figures = {"rounds": [vars(each) for each in rounds]}
    report.write("dispatch", figures, ratios, BOUNDS)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
