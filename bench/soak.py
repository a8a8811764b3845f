"""A job at full speed for 20 minutes: memory, file handles and asyncio tasks of every process.

    python -m bench.soak                          # 20 minutes and 300,000 steps, whichever is later
    python -m bench.soak --minutes 2 --steps 1000

Each task makes two paid calls (the sandbox, without latency) and two steps of its own, all in the
ledger. Figures go to `bench/out/soak.json`; what each process grew by from the second quarter of
the time to the last is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from asyncio import tasks
from pathlib import Path
from typing import Any, Final

import psutil
import ray

from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.ray_session import connect_ray
from bench.report import table
from tests.faults.job_world import Setting, World, job_world
from tests.faults.running_job import RunningJob

OUT: Final = Path(__file__).parent / "out" / "soak.json"
EVERY_S: Final = 10.0
STEPS_A_TASK: Final = 4
#: More tasks than any machine gets through; the job is stopped when it has run for long enough.
TASKS: Final = 2_000_000
AGENT: Final = """
from agentcloud.agents import Context, agent


def double(number: int) -> int:
    return 2 * number


@agent(tier="large", max_tokens=64)
async def soak(ctx: Context, item: dict) -> int:
    first = await ctx.ask(f"one {item['id']}")
    length = await ctx.step(double, len(first))
    second = await ctx.ask(f"two {item['id']} {first}")
    return await ctx.step(double, length + len(second))
"""
#: What is flat: it grew by no more than this share, or this much.
FLAT_SHARE: Final = 0.1
FLAT: Final = {"rss_mb": 25.0, "handles": 5, "tasks": 20}


def sample(actors: dict[str, Any], driver: psutil.Process) -> dict[str, dict[str, float]]:
    """What every process holds now, by its name."""

    def look(_actor: Any) -> tuple[int, int]:
        # What is sent to an actor need not run in its loop, so asyncio.all_tasks() does not do.
        # (gc.get_objects() would: it breaks tuples that another thread is making.)
        while True:
            with contextlib.suppress(RuntimeError):  # one came or went meanwhile
                return os.getpid(), sum(not task.done() for task in list(vars(tasks)["_all_tasks"]))

    asked = {name: actor.__ray_call__.remote(look) for name, actor in actors.items()}
    held = {name: ray.get(answer, timeout=60) for name, answer in asked.items()}
    found = {name: _held(psutil.Process(pid)) | {"tasks": t} for name, (pid, t) in held.items()}
    return found | {"command": _held(driver)}


def _held(process: psutil.Process) -> dict[str, float]:
    return {"rss_mb": process.memory_info().rss / 1e6, "handles": float(process.num_fds())}


def actors_of_job() -> dict[str, Any]:
    """Every actor of ours by a name that says what it is."""
    named = [
        each["name"]
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["namespace"] == RAY_NAMESPACE
    ]
    return {name: ray.get_actor(name, namespace=RAY_NAMESPACE) for name in sorted(named)}


def soak(world: World, seconds: float, steps: int, concurrency: int) -> dict[str, Any]:
    """Run, look every ten seconds, stop; what was seen."""
    (world.folder / "agent.py").write_text(AGENT)
    with world.job("soak", TASKS, agent="soak", budget="1000", at_once=concurrency) as job:
        job.until(1000, timeout_s=600)  # two million inputs are checked first
        os.environ.update({k: v for k, v in world.head.env.items() if k.startswith("RAY_")})
        connect_ray(world.head.gcs)
        try:
            samples = _watch(job, seconds, steps)
        finally:
            ray.shutdown()
        os.kill(job.pid, signal.SIGINT)
        record = job.ended()
        ids = [json.loads(line)["id"] for line in job.output.open()]
        twice, _ = world.billed()
    took_s, done = samples[-1]["at_s"], samples[-1]["tasks_done"]
    return {
        "seconds": took_s,
        "steps": done * STEPS_A_TASK,
        "steps_per_s": done * STEPS_A_TASK / took_s,
        "failed": record["tasks"]["failed"],
        "doubled": len(ids) - len(set(ids)),
        "paid_twice": twice,
        "samples": samples,
    }


def _watch(job: RunningJob, seconds: float, steps: int) -> list[dict[str, Any]]:
    actors, driver = actors_of_job(), psutil.Process(job.pid)
    began_s, done_before = time.monotonic(), job.lines()
    samples: list[dict[str, Any]] = []
    while True:
        time.sleep(EVERY_S)
        took_s = time.monotonic() - began_s
        done = job.lines() - done_before
        samples.append({"at_s": took_s, "tasks_done": done, "held": sample(actors, driver)})
        print(f"{took_s:6.0f} s  {done} tasks  {done / took_s:.0f} tasks/s", flush=True)
        if took_s >= seconds and done * STEPS_A_TASK >= steps:
            return samples


def growth(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each process holds in the second quarter of the time and in the last."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    rows = []
    for name, held in samples[0]["held"].items():
        for what in held:
            before, after = (
                statistics.median(each["held"][name][what] for each in part)
                for part in (early, late)
            )
            grown = after - before
            is_flat = grown <= max(FLAT[what], FLAT_SHARE * before)
            rows.append(
                {"process": name, "what": what, "early": before, "late": after, "flat": is_flat}
            )
    return rows


def _told(row: dict[str, Any]) -> str:
    return "flat" if row["flat"] else "GROWS"


def main() -> int:
    """Run, print, write; 1 where something grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--concurrency", type=int, default=128)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="agentcloud-soak-") as folder,
        job_world(Path(folder), Setting(ttft_s=0.0)) as world,
    ):
        found = soak(world, 60 * given.minutes, given.steps, given.concurrency)
    found["growth"] = growth(found["samples"])
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2))
    print(
        f"{found['steps']} steps in {found['seconds']:.0f} s: {found['steps_per_s']:.0f} steps/s; "
        f"{found['failed']} tasks failed, {found['doubled']} doubled, "
        f"{found['paid_twice']} calls paid twice"
    )
    table(
        "Held by each process, medians",
        ("process", "what", "2nd quarter", "last quarter", ""),
        [
            (each["process"], each["what"], each["early"], each["late"], _told(each))
            for each in found["growth"]
        ],
    )
    clean = not (found["failed"] or found["doubled"] or found["paid_twice"])
    return 0 if clean and all(r["flat"] for r in found["growth"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
