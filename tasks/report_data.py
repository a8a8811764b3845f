"""What a job's report shows, summed up from the ledger where the ledger is."""

from __future__ import annotations

import heapq
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import PAGE, LedgerJob

#: Tasks that are listed as the slowest.
SLOWEST: Final = 20
#: Times kept of each kind; beyond it, a uniform sample (reservoir) of all.
SAMPLES: Final = 20_000
#: An error's line in the report, characters.
_ERROR_CHARS: Final = 200


@dataclass(slots=True)
class Sample:
    """Numbers, or a uniform sample of them where they are many."""

    values: list[float] = field(default_factory=list)
    seen: int = 0

    def add(self, value: float | None, rng: random.Random) -> None:
        """Take one in; None is nothing."""
        if value is None:
            return
        self.seen += 1
        if len(self.values) < SAMPLES:
            self.values.append(value)
        elif (place := rng.randrange(self.seen)) < SAMPLES:
            self.values[place] = value


@dataclass(slots=True)
class ModelSums:
    """What one model did; `usd` is of the calls whose cost is known."""

    calls: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: Decimal = Decimal(0)
    unknown_cost_calls: int = 0
    ttft_s: Sample = field(default_factory=Sample)
    total_s: Sample = field(default_factory=Sample)


@dataclass(frozen=True, slots=True)
class SlowTask:
    """One of the slowest tasks."""

    id: str
    seconds: float
    calls: int
    usd: str | None
    attempts: int
    error: str | None


@dataclass(slots=True)
class ReportData:
    """Everything that is shown.

    Attributes:
        ends_unix_s: when tasks ended, done or failed; a sample where they are many.
        errors: failed tasks by the class of their error, with an example.
    """

    job: LedgerJob
    done: int = 0
    failed: int = 0
    reused: int = 0
    resent: int = 0
    restarted: int = 0
    ends_unix_s: Sample = field(default_factory=Sample)
    task_s: Sample = field(default_factory=Sample)
    models: dict[str, ModelSums] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    slowest: list[SlowTask] = field(default_factory=list)


def report_data(ledger: Ledger, job_id: str) -> ReportData | None:
    """Sum up a job, running or ended; None: there is no such job."""
    job = ledger.job(job_id)
    if job is None:
        return None
    data = ReportData(job, resent=ledger.resent(job_id))
    rng = random.Random(0)  # noqa: S311 - a sample of timings, not a secret
    slowest: list[tuple[float, int, SlowTask]] = []
    for number, line in enumerate(_lines(ledger, job_id)):
        _add(data, line, rng)
        task = SlowTask(
            line["id"],
            line["duration_s"],
            len(line["calls"]),
            line["cost_usd"],
            line["attempts"],
            line["error"][:_ERROR_CHARS] if line.get("error") else None,
        )
        heapq.heappush(slowest, (task.seconds, number, task))
        if len(slowest) > SLOWEST:
            heapq.heappop(slowest)
    data.slowest = [task for _, _, task in sorted(slowest, reverse=True)]
    return data


def _lines(ledger: Ledger, job_id: str) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        page = ledger.ended(job_id, after)
        for row in page:
            yield json.loads(row.line)
        if len(page) < PAGE:
            return
        after = page[-1].task_id


def _add(data: ReportData, line: dict[str, Any], rng: random.Random) -> None:
    done = line["status"] == "done"
    data.done += done
    data.failed += not done
    data.reused += line.get("reused_steps", 0)
    data.restarted += line["attempts"] > 1
    if not done:
        kind = line["error_kind"] or "unknown"
        data.errors[kind] += 1
        data.examples.setdefault(kind, (line["error"] or "")[:_ERROR_CHARS])
    if line["started_at"]:
        began_unix_s = datetime.fromisoformat(line["started_at"]).timestamp()
        data.ends_unix_s.add(began_unix_s + line["duration_s"], rng)
        data.task_s.add(line["duration_s"], rng)
    for call in line["calls"]:
        sums = data.models.setdefault(call["model"], ModelSums())
        sums.calls += 1
        sums.cached += call.get("cached", False)
        sums.input_tokens += (
            call["input_tokens"] + call["cache_write_tokens"] + call["cache_read_tokens"]
        )
        sums.output_tokens += call["output_tokens"]
        if call["cost_usd"] is None:
            sums.unknown_cost_calls += 1
        else:
            sums.usd += Decimal(call["cost_usd"])
        sums.ttft_s.add(call["ttft_s"], rng)
        sums.total_s.add(call["total_s"], rng)
