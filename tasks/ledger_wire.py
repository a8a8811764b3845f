"""What travels between the ledger and those who use it: they need no database for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

#: The ledger's actor.
LEDGER_NAME: Final = "ledger"
#: Tasks that are told at once.
PAGE: Final = 2_000


class ContentRow(NamedTuple):
    """A part of a request, stored once.

    Attributes:
        hash: of the part and everything before it.
        parent: hash of what comes before it; None: it is the first.
        body: JSON.
    """

    hash: str
    parent: str | None
    body: bytes


class StepRow(NamedTuple):
    """A step that a task has made.

    Attributes:
        step: its id (`step_ids.py`).
        kind: `model`, `tool` or `step`.
        name: the model's, the tool's or the function's.
        settings: hash of the request without its messages; None where nothing was asked.
        history: hash of the last message, and so of the whole conversation.
        answer: JSON.
        lease_id: of a paid answer; else None.
        lease_usd: what that lease cost; None: unknown.
    """

    step: str
    task_id: str
    kind: str
    name: str
    settings: str | None
    history: str | None
    answer: bytes
    lease_id: str | None = None
    lease_usd: str | None = None


class StartRow(NamedTuple):
    """A task that is started; `item` is its input as JSON."""

    task_id: str
    place: int
    attempts: int
    extra_used: int
    item: str


class EndRow(NamedTuple):
    """A task that has ended; `line` is its line of the results file."""

    task_id: str
    place: int
    state: str
    attempts: int
    extra_used: int
    line: str


@dataclass(slots=True)
class Put:
    """What is to be written for one run of a job; `is_stale` once a later run has begun."""

    job_id: str
    epoch: int
    steps: Sequence[StepRow] = ()
    contents: Sequence[ContentRow] = ()
    starts: Sequence[StartRow] = ()
    ends: Sequence[EndRow] = ()
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Recalled:
    """What is known of a task that was begun before.

    Attributes:
        answers: recorded answers (JSON) by step.
        sent: steps that a paid lease was granted for, and that may have been answered.
        owed: leases of recorded steps whose cost the scheduler has not been told, with that cost.
    """

    answers: dict[str, bytes] = field(default_factory=dict)
    sent: frozenset[str] = frozenset()
    owed: tuple[tuple[str, Decimal], ...] = ()


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was deleted of a job, or would be.

    Attributes:
        freed_bytes: of the rows deleted; None: not known.
        is_over: nothing of the job is left.
    """

    tasks: int = 0
    steps: int = 0
    freed_bytes: int | None = None
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class LedgerJob:
    """A job as the ledger knows it.

    Attributes:
        origin: what its submitter gave, for whoever resumes it.
        record: as its last run ended; None: none has.
        spent_usd: by the runs that have ended, what is unknown at its reservation.
    """

    job_id: str
    epoch: int
    state: str
    spec: str
    origin: dict[str, Any]
    record: dict[str, Any] | None
    created_unix_s: float
    ended_unix_s: float | None
    spent_usd: Decimal

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        spec = json.loads(self.spec)
        return {
            "job_id": self.job_id,
            "agent": spec.get("agent"),
            "state": self.state,
            "run": self.epoch,
            "output": spec.get("output"),
            "labels": spec.get("labels", {}),
            "created_unix_s": self.created_unix_s,
            "ended_unix_s": self.ended_unix_s,
            "spent_usd": format(self.spent_usd, "f"),
            "record": self.record,
        }
