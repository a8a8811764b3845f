"""What jobs look like on a terminal: progress, the final table, lists."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from agentcloud.tasks.money import show_usd
from agentcloud.tasks.spec import EndpointTotals, JobRecord

if TYPE_CHECKING:
    from agentcloud.tasks.ledger_wire import LedgerJob
    from agentcloud.tasks.spec import Asked

#: The rate is that of the last so many seconds.
RATE_WINDOW_S = 10.0
#: Without a terminal a line is printed this often, seconds.
LINE_EVERY_S = 5.0

#: Width of tables that go into a file or a pipe, characters.
FILE_WIDTH = 180

_STYLES = {"done": "green", "running": "cyan", "failed": "red", "cancelled": "yellow"}


def stdout_console() -> Console:
    """For tables: as wide as the terminal, or wide enough where there is none."""
    # A model named `fire` in `replica:fire:0` is no emoji.
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=FILE_WIDTH, emoji=False)


class RateMeter:
    """Tasks per second lately, and how long the rest will take."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, ended: int) -> None:
        """Tell how many tasks have ended by now."""
        self._seen.append((now_s, ended))
        while now_s - self._seen[0][0] > RATE_WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    @property
    def per_s(self) -> float | None:
        """None until something ended."""
        if len(self._seen) < 2:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last == first or last_s <= first_s:
            return None
        return (last - first) / (last_s - first_s)

    def eta_s(self, remaining: int) -> float | None:
        """Seconds until the rest has ended, at the present rate."""
        rate = self.per_s
        return remaining / rate if rate else None


class ProgressView:
    """Shows a job's progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stderr, emoji=False)
        self._meter = RateMeter()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._printed_s = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(),
                TextColumn("{task.fields[line]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("job", total=None, line="starting")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, line: str) -> None:
        """Print one line above the bar."""
        (self._bar.console if self._bar else self._console).print(
            line, style="dim", highlight=False, markup=False
        )

    def update(self, record: JobRecord) -> None:
        """Show a record."""
        now_s = time.monotonic()
        ended = record.done + record.failed
        self._meter.add(now_s, ended)
        line = progress_line(record, self._meter)
        if self._bar is not None:
            self._bar.update(
                self._task,
                total=record.total,
                completed=ended + record.already_done,
                line=line,
            )
        elif now_s - self._printed_s >= LINE_EVERY_S or record.state.is_final:
            self._printed_s = now_s
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_line(record: JobRecord, meter: RateMeter | None = None) -> str:
    """`120/300 done, 2 failed, 31.2/s, $0.0021, 6 s left`."""
    parts = [f"{record.done + record.already_done}/{record.total} done", f"{record.failed} failed"]
    rate = meter.per_s if meter is not None else None
    if rate is not None:
        parts.append(f"{rate:.1f}/s")
    parts.append(show_cost(record))
    # How long persons take is not known.
    left = record.not_done - record.parked
    eta_s = meter.eta_s(left) if meter is not None and left else None
    if eta_s is not None and not record.state.is_final:
        parts.append(f"{show_duration(eta_s)} left")
    if record.parked:
        parts.append(f"{record.parked} ask a person (agentcloud approvals {record.job_id})")
    if str(record.state) != "running":
        parts.append(record.label)
    return ", ".join(parts)


def show_cost(record: JobRecord) -> str:
    """The known cost, and how many calls are not in it."""
    unknown = record.unknown_cost_calls
    return show_usd(record.cost_usd) + (f" + {unknown} calls of unknown cost" if unknown else "")


def summary_table(record: JobRecord) -> Table:
    """Tasks done and failed, then a row per endpoint."""
    table = Table(
        title=(
            f"job {record.job_id} {record.label}: {record.done} done, {record.failed} failed"
            + (f", {record.already_done} done before" if record.already_done else "")
            + (f", {record.not_done} not done" if record.not_done else "")
            + f" in {show_duration(record.elapsed_s)}"
        ),
        title_justify="left",
    )
    table.add_column("endpoint", overflow="fold", min_width=20)
    for heading in (
        "calls",
        "tokens in",
        "cached",
        "tokens out",
        "TTFT p50",
        "TTFT p95",
        "tokens/s",
        "cost",
    ):
        table.add_column(heading, justify="right")
    for row in record.endpoints:
        table.add_row(*_endpoint_cells(row))
    if len(record.endpoints) > 1:
        table.add_section()
        table.add_row(
            "all",
            f"{sum(row.calls for row in record.endpoints):,}",
            f"{sum(row.input_tokens for row in record.endpoints):,}",
            show_cached(
                sum(row.cache_read_tokens for row in record.endpoints),
                sum(row.input_tokens for row in record.endpoints),
                sum((row.saved_usd for row in record.endpoints), Decimal(0)),
            ),
            f"{sum(row.output_tokens for row in record.endpoints):,}",
            "",
            "",
            "",
            show_cost(record),
        )
    return table


def _endpoint_cells(row: EndpointTotals) -> Sequence[str]:
    cost = show_usd(row.cost_usd)
    if row.unknown_cost_calls and row.cost_usd is not None:
        cost += f" + {row.unknown_cost_calls} unknown"
    return (
        row.endpoint,
        f"{row.calls:,}",
        f"{row.input_tokens:,}",
        show_cached(row.cache_read_tokens, row.input_tokens, row.saved_usd),
        f"{row.output_tokens:,}",
        show_ms(row.ttft_p50_s),
        show_ms(row.ttft_p95_s),
        "-" if row.tokens_per_s is None else f"{row.tokens_per_s:,.1f}",
        cost,
    )


def show_cached(read_tokens: int, prompt_tokens: int, saved_usd: Decimal) -> str:
    """`62%`, with what that saved where it is money; `-` for nothing."""
    if not read_tokens and not saved_usd:
        return "-"
    share = f"{100 * read_tokens / max(1, prompt_tokens):.0f}%"
    # Three cases: a hosted model's cache saved, it cost more than it has saved so far, or local.
    if saved_usd > 0:
        return f"{share}, saved {show_usd(saved_usd)}"
    return f"{share}, cost {show_usd(-saved_usd)}" if saved_usd else share


def show_ms(seconds: float | None) -> str:
    """`12 ms`, `1.20 s`, `-` for not measured."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def show_duration(seconds: float) -> str:
    """`4.2 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def jobs_table(jobs: Sequence[Any]) -> Table:
    """Submitted jobs, one a row."""
    table = Table()
    for heading in ("job", "agent", "state", "started", "took"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        started = job.started_unix_s
        took = (job.ended_unix_s or time.time()) - started if started else None
        table.add_row(
            job.job_id,
            job.agent,
            f"[{_STYLES.get(job.state, 'default')}]{job.state}[/]",
            datetime.fromtimestamp(started).strftime("%Y-%m-%d %H:%M:%S") if started else "-",
            "-" if took is None else show_duration(took),
        )
    return table


def ledger_table(jobs: Sequence[LedgerJob]) -> Table:
    """Jobs of the ledger, one a row."""
    table = Table()
    for heading in ("job", "agent", "state", "done", "failed", "cost", "run", "begun"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        told = job.to_dict()
        tasks = (job.record or {}).get("tasks", {})
        table.add_row(
            job.job_id,
            told["agent"] or "-",
            f"[{_STYLES.get(job.state, 'default')}]{job.state}[/]",
            str(tasks.get("done", "-")),
            str(tasks.get("failed", "-")),
            f"${job.record['cost_usd']}" if job.record else "-",
            str(job.epoch),
            datetime.fromtimestamp(job.created_unix_s).strftime("%Y-%m-%d %H:%M:%S"),
        )
    return table


def approvals_table(asked: Sequence[Asked]) -> Table:
    """What tasks ask persons, one a row."""
    table = Table()
    for heading in ("task", "question", "details"):
        table.add_column(heading, overflow="fold")
    for each in asked:
        details = "" if each.details is None else json.dumps(each.details, ensure_ascii=False)
        table.add_row(escape(each.task_id), escape(each.question), escape(details))
    return table
