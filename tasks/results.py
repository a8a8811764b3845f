"""The results file: JSON lines, one per input, whole lines only.

A line holds `id`, `status` (`done` or `failed`), `output` or `error` and `error_kind`, `attempts`,
`usage` (tokens), `cost_usd` (a decimal as text; null: unknown), `calls` (one entry per answered
inference call), `duration_s` and `started_at`. A call that a cascade made after cheaper ones names
them: `escalated_from`, `escalation` (why), `spent_elsewhere_usd` (what those cost). A task that was
begun again says `reused_steps` (recorded answers used in place of calls) and `resent_calls` (paid
calls sent again because the first's answer was lost). Lines come in the order in which tasks end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.id_set import IdSet
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


class ResultsFile:
    """The one writer of a results file; a second one is refused.

    What an earlier run left in the file is kept: `ids` are those it holds, `done` and `failed` how
    many of each. A last line that a crash cut off is removed.

    Args:
        path: the file; it and its folder are made when missing.
        retry_failed: failed lines are taken out, so that their tasks run again.

    Raises:
        ConfigError: it cannot be written, is no results file, or another job is writing it.
    """

    def __init__(self, path: Path, *, retry_failed: bool = False) -> None:
        self.path = path
        self.ids = IdSet()
        self.done = self.failed = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot write it ({error.strerror}); choose another --output", where=str(path)
            ) from None
        try:
            self._lock(self._fd)
            if self._mend_and_read(leave_failed_out=retry_failed):
                self._drop_failed()
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, lines: Sequence[str]) -> None:
        """Write whole lines at once.

        Raises:
            ConfigError: the disk is full or gone.
        """
        data = memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise ConfigError(f"cannot write it ({error.strerror})", where=str(self.path)) from None

    def close(self) -> None:
        """Put everything on the disk and let others write. Safe to call twice."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # pipes and some file systems cannot
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _lock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                "another job is writing it; choose another --output", where=str(self.path)
            ) from None

    def _mend_and_read(self, *, leave_failed_out: bool) -> bool:
        """Returns whether lines were left out."""
        kept_bytes = 0
        left_out = False
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    os.ftruncate(self._fd, kept_bytes)
                    break
                kept_bytes += len(raw)
                entry = _parse(raw)
                if entry is None:
                    raise ConfigError(
                        "exists and is no results file; choose another --output",
                        where=f"{self.path}:{number}",
                    )
                is_done = entry["status"] == "done"
                if leave_failed_out and not is_done:
                    left_out = True
                elif self.ids.add(entry["id"]):
                    self.done += is_done
                    self.failed += not is_done
        return left_out

    def _drop_failed(self) -> None:
        # Atomic: at any moment the path holds either the old lines or the kept ones, whole.
        beside = self.path.with_name(self.path.name + ".new")
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        try:
            self._lock(fd)
            with self.path.open("rb") as old, os.fdopen(os.dup(fd), "wb") as new:
                for raw in old:
                    entry = _parse(raw)
                    if entry is not None and entry["status"] == "done":
                        new.write(raw)
            os.fsync(fd)
            beside.replace(self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the whole lines of a results file.

    Raises:
        ConfigError: it is not there, or is no results file.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    return  # still being written
                entry = _parse(raw)
                if entry is None:
                    raise ConfigError("is no line of results", where=f"{path}:{number}")
                yield entry
    except OSError as error:
        raise ConfigError(f"cannot read it ({error.strerror})", where=str(path)) from None


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(entry, dict) or entry.get("status") not in ("done", "failed"):
        return None
    return entry if isinstance(entry.get("id"), str) else None
