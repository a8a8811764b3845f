"""Durable steps a second: the ledger alone, through its actor, and a plain INSERT with its fsync.

A step is a model's answer of 800 bytes to a question of a few hundred, under settings that all
share; it is on the disk before whoever waits for it goes on. SQLite, as by default.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import ray

from agentcloud.cluster.ray_session import start_local_ray
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_actor import start_ledger
from agentcloud.tasks.ledger_client import LedgerClient, ask_ledger
from agentcloud.tasks.ledger_wire import ContentRow, Put, StepRow
from agentcloud.tasks.step_ids import asked, step_id, task_prefix
from bench import report

BOUNDS: Final = {"steps_per_s": (">=", 5_000.0)}
#: Steps that are waited for at once: as many calls are under way in a busy job.
IN_FLIGHT: Final = 512
GROUP: Final = 256
ANSWER: Final = b"x" * 800


def step(number: int) -> tuple[StepRow, tuple[ContentRow, ...]]:
    """One of four steps of a task."""
    task = f"t{number // 4}"
    params = {
        "model": "small",
        "max_tokens": 256,
        "system": "You sort tickets. " * 40,
        "messages": [{"role": "user", "content": f"Ticket {number}: it does not work. " * 8}],
    }
    what = asked("model", "small", params)
    id_ = step_id(task_prefix("j", task), what.key, 0)
    row = StepRow(id_, task, "model", "small", what.settings, what.history, ANSWER)
    return row, what.contents


def plain(folder: Path, count: int) -> float:
    """Rows a second of one INSERT and one fsync each."""
    with closing(sqlite3.connect(folder / "plain.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE steps (step TEXT PRIMARY KEY, answer BLOB)")
        began_s = time.perf_counter()
        for number in range(count):
            connection.execute("INSERT INTO steps VALUES (?, ?)", (str(number), ANSWER))
        return count / (time.perf_counter() - began_s)


def alone(folder: Path, count: int) -> float:
    """Steps a second in transactions of a group, their hashing left out."""
    steps = [step(number) for number in range(count)]
    with closing(Ledger(f"sqlite:///{folder / 'alone.db'}")) as ledger:
        epoch = ledger.begin("j", "{}", {})
        began_s = time.perf_counter()
        for first in range(0, count, GROUP):
            group = steps[first : first + GROUP]
            contents = [row for _, rows in group for row in rows]
            ledger.write([Put("j", epoch, [row for row, _ in group], contents)])
        return count / (time.perf_counter() - began_s)


async def through_actor(count: int) -> float:
    """Steps a second of one process on a real Ray, each waited for, hashing included."""
    epoch = await ask_ledger(lambda ledger: ledger.begin.remote("j", "{}", {}))
    client = LedgerClient("j", epoch)
    numbers = iter(range(count))

    async def one_after_another() -> None:
        for number in numbers:
            row, contents = step(number)
            await client.put(steps=(row,), contents=contents)

    began_s = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - began_s)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentcloud-bench-") as name:
        folder = Path(name)
        figures = {"plain_insert_fsync_per_s": plain(folder, given.steps // 4)}
        figures["ledger_alone_per_s"] = alone(folder, given.steps)
        start_local_ray(dashboard=False)
        try:
            start_ledger(f"sqlite:///{folder / 'store.db'}")
            figures["through_actor_per_s"] = asyncio.run(through_actor(given.steps))
        finally:
            ray.shutdown()
    ratios = {
        "steps_per_s": figures["through_actor_per_s"],
        "vs_plain_insert": figures["through_actor_per_s"] / figures["plain_insert_fsync_per_s"],
    }
    report.table("durable steps", ("what", "a second"), list(figures.items()))
    kept = report.ratios_table(ratios, BOUNDS)
    report.write("ledger", figures, ratios, BOUNDS)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
