"""The results of a job: one line per input, whole lines only, as JSON lines or as Parquet.

A line holds `id`, `status` (`done` or `failed`), `output` or `error` and `error_kind`, `attempts`,
`usage` (tokens), `cost_usd` (a decimal as text; null: unknown), `calls` (one entry per answered
inference call), `duration_s` and `started_at`. A call that a cascade made after cheaper ones names
them: `escalated_from`, `escalation` (why), `spent_elsewhere_usd` (what those cost). A task that was
begun again says `reused_steps` (recorded answers used in place of calls) and `resent_calls` (paid
calls sent again because the first's answer was lost). Lines come in the order in which tasks end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from agentcloud.tasks.id_set import IdSet
from agentcloud.tasks.jsonl_results import ResultsFile, read_lines
from agentcloud.tasks.parquet_results import ParquetResults, read_parts
from agentcloud.tasks.spec import TaskResult

_TOKEN_KEYS = ("input_tokens", "cache_write_tokens", "cache_read_tokens", "output_tokens")


def result_line(result: TaskResult, *, done: bool, attempts: int, error: str | None) -> str:
    """One line of the results file, without its newline.

    Args:
        result: the last attempt.
        done: whether the task is done; else failed.
        attempts: how often it was started.
        error: what a person reads when it failed.
    """
    line: dict[str, Any] = {"id": result.id, "status": "done" if done else "failed"}
    if done:
        line["output"] = result.output
    else:
        line |= {"error": error, "error_kind": result.error_kind}
    line |= {
        "attempts": attempts,
        "usage": {key: sum(call[key] for call in result.calls) for key in _TOKEN_KEYS},
        "cost_usd": _text(cost_of(result.calls)),
        "calls": [call | {"cost_usd": _text(call["cost_usd"])} for call in result.calls],
        **({"reused_steps": result.reused} if result.reused else {}),
        **({"resent_calls": result.resent} if result.resent else {}),
        "duration_s": round(result.duration_s, 6),
        "started_at": result.started_at,
    }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def cost_of(calls: Sequence[dict[str, Any]]) -> Decimal | None:
    """Sum of the calls' costs; None as soon as one is unknown."""
    costs = [call["cost_usd"] for call in calls]
    return None if None in costs else sum(costs, Decimal(0))


def _text(cost_usd: Decimal | None) -> str | None:
    return None if cost_usd is None else format(cost_usd, "f")


class Results(Protocol):
    """Where a job's lines go; one writer at a time.

    Attributes:
        ids: what an earlier run left there.
        done: of these those that are done.
        failed: those that failed.
    """

    ids: IdSet
    done: int
    failed: int

    def append(self, lines: Sequence[str]) -> None:
        """Write whole lines; a crash of this process after it loses none of them."""
        ...

    def close(self) -> None:
        """Put everything on the disk and let others write. Safe to call twice."""
        ...

    def leave(self) -> None:
        """Close it as it was found."""
        ...


def open_results(path: Path, *, retry_failed: bool = False) -> Results:
    """Open the results of a job to write them: a folder of Parquet for `*.parquet`, else a file.

    Args:
        path: made when missing.
        retry_failed: failed lines are taken out, so that their tasks run again.

    Raises:
        ConfigError: it cannot be written, holds something else, or another job is writing it.
    """
    if _is_parquet(path):
        return ParquetResults(path, retry_failed=retry_failed)
    return ResultsFile(path, retry_failed=retry_failed)


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the whole lines of a job's results, those of a running job so far.

    Raises:
        ConfigError: they are not there, or it holds something else.
    """
    return read_parts(path) if _is_parquet(path) else read_lines(path)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"
