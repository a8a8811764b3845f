"""Job and task records, their states and the legal changes between them."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from agentcloud.cluster.errors import TaskError
from agentcloud.tasks.cascade_file import CascadeSetting

Usd = Annotated[Decimal, Field(gt=0)]

#: Extra attempts of a task unless its job says otherwise.
EXTRA_ATTEMPTS = 8


class OnBadInput(StrEnum):
    """What an input that cannot be read does to its job."""

    STOP = "stop"
    SKIP = "skip"


class OnUnknown(StrEnum):
    """What becomes of a paid call that was under way at a crash: its answer is lost."""

    RESEND = "resend"
    FAIL = "fail"


class JobState(StrEnum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    DONE = "done"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return not _JOB_CHANGES[self]


class TaskState(StrEnum):
    """Where a task is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"


_ENDS: frozenset[JobState] = frozenset(
    {JobState.DONE, JobState.STOPPED, JobState.CANCELLED, JobState.FAILED}
)
_JOB_CHANGES: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: _ENDS | {JobState.STOPPING, JobState.PAUSED},
    JobState.PAUSED: _ENDS | {JobState.STOPPING, JobState.RUNNING},
    JobState.STOPPING: _ENDS - {JobState.DONE},
    JobState.DONE: frozenset(),
    JobState.STOPPED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.FAILED: frozenset(),
}

_TASK_CHANGES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.RUNNING, TaskState.DROPPED}),
    # Back to waiting: its worker died, a passing error left it attempts, or a person is asked.
    TaskState.RUNNING: frozenset(
        {TaskState.DONE, TaskState.FAILED, TaskState.WAITING, TaskState.DROPPED}
    ),
    TaskState.DONE: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.DROPPED: frozenset(),
}


def check_job_change(old: JobState, new: JobState) -> None:
    """Refuse an illegal change.

    Raises:
        TaskError: `new` cannot follow `old`.
    """
    if new not in _JOB_CHANGES[old]:
        raise TaskError(f"a job that is {old} cannot become {new}")


def new_job_id(key: str | None = None) -> str:
    """An id that is short enough to type.

    Args:
        key: names the job for its submitter: the same key gives the same id, and so the same job.
            None: an id that is free for certain.
    """
    if key is None:
        return f"j{secrets.token_hex(4)}"
    return f"k{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"


class JobSpec(BaseModel):
    """What a job is to do; it travels to the cluster as JSON and never holds a key.

    Attributes:
        job_id: unique on the cluster.
        agent: `path/to/file.py:name` or `module:name`.
        input: JSONL, CSV or Parquet file, or a dataset's folder, as the supervisor sees it.
        output: results that the supervisor appends to: a JSONL file, or a folder *.parquet.
        source: how errors and results name the input; None: as `input`.
        on_bad_input: what a line that cannot be read does.
        budget_usd: cap over the whole job.
        task_budget_usd: cap over each task, all its attempts together.
        attempts: the most times a task is started: again after its worker died or a passing
            failure of an endpoint, never after an error of the agent's own.
        extra_attempts: the most extra attempts of a task over all layers: sends of a call after
            its first, repairs of an output, restarts of the task.
        concurrency: tasks at once, over all workers.
        workers: worker processes.
        task_timeout_s: the longest one attempt may take; None: no limit.
        deadline_s: how long each attempt at a task may take until its last answer: what its calls
            are told as their deadline. Tasks that wait for batches do not count as `concurrency`.
        on_unknown: what becomes of a paid call that was under way when its worker died.
        retry_failed: tasks that the results file shows as failed are done again.
        priority: of its calls; smaller is sooner, 0 is normal.
        labels: what its submitter calls it, for telling jobs apart.
        folder: the user's folder: put on the import path; None: the current one of the worker.
        pin_to_node: workers run beside the supervisor (their files are on that machine only).
        cascade: what `tier="auto"` is, and what asks use that name no tier; None: the fleet's
            tiers for the former, the agent's tier for the latter.
        after: jobs that must have ended well before this one starts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_id: str
    agent: str
    input: Path
    output: Path
    source: str | None = None
    on_bad_input: OnBadInput = OnBadInput.STOP
    budget_usd: Usd | None = None
    task_budget_usd: Usd | None = None
    attempts: PositiveInt = 3
    extra_attempts: NonNegativeInt = EXTRA_ATTEMPTS
    concurrency: PositiveInt = 128
    workers: PositiveInt = 1
    task_timeout_s: PositiveFloat | None = None
    deadline_s: PositiveFloat | None = None
    on_unknown: OnUnknown = OnUnknown.RESEND
    retry_failed: bool = False
    priority: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    folder: Path | None = None
    pin_to_node: bool = True
    cascade: CascadeSetting | None = None
    after: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The agent's name with its file's: what baselines and alarms tell jobs apart by."""
        where, _, name = self.agent.rpartition(":")
        return f"{PurePath(where).name.removesuffix('.py')}:{name}" if where else name

    @property
    def budget_scope(self) -> str:
        """The job's scope in the tree of budgets."""
        return f"job:{self.job_id}"


@dataclass(frozen=True, slots=True)
class TaskInput:
    """One task as a worker gets it.

    Attributes:
        id: the input's `id`, else its line number.
        index: its place in the input, from 0.
        item: what the agent function is given: any JSON value, mostly an object.
        attempt: 1 for the first start.
        extra_used: extra attempts that earlier starts used, this restart included.
        was_lost: an earlier start ended with its worker: what it asked may be paid and unanswered.
        was_parked: an earlier start ended by asking a person.
    """

    id: str
    index: int
    item: Any
    attempt: int = 1
    extra_used: int = 0
    was_lost: bool = False
    was_parked: bool = False


@dataclass(slots=True)
class TaskRecord:
    """One task while its job runs; changes state by `move` only.

    `counted`: ids of the calls of earlier attempts; what they recorded is told by later ones too.
    """

    id: str
    index: int
    item: Any
    state: TaskState = TaskState.WAITING
    attempts: int = 0
    lost: int = 0
    extra_used: int = 0
    worker: str | None = None
    parked: int = 0
    counted: set[str] = field(default_factory=set)

    def move(self, new: TaskState) -> None:
        """Change state.

        Raises:
            TaskError: `new` cannot follow the present state.
        """
        if new not in _TASK_CHANGES[self.state]:
            raise TaskError(f"task {self.id} is {self.state} and cannot become {new}")
        self.state = new

    def start(self, worker: str) -> TaskInput:
        """Count an attempt and hand the task to `worker`."""
        self.move(TaskState.RUNNING)
        self.attempts += 1
        self.worker = worker
        return TaskInput(
            self.id,
            self.index,
            self.item,
            self.attempts,
            self.extra_used,
            self.lost > 0,
            self.parked > 0,
        )


class TaskEnd(StrEnum):
    """How one attempt at a task ended, as its worker tells it."""

    DONE = "done"
    FAILED = "failed"
    #: An endpoint failed in a way that may pass: worth another attempt.
    PASSING = "passing"
    #: The job's (or the fleet's) budget is used up: the job stops.
    BUDGET = "budget"
    CANCELLED = "cancelled"
    #: It waits for a person.
    PARKED = "parked"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a parked task asks a person; the answer is recorded under `step`."""

    task_id: str
    step: str
    question: str
    details: Any


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One attempt's outcome, from worker to supervisor.

    Attributes:
        output: JSON-able; only for `done`.
        error: one line; for every other end.
        error_kind: the error's class name.
        calls: one summary per inference call that was answered, as in the results file.
        duration_s: of this attempt.
        started_at: ISO 8601, UTC.
        extra_used: extra attempts that the task has used so far, earlier starts included.
        reused: steps whose recorded answers were used.
        resent: paid calls sent again because the answer of the first was lost with its worker.
        asked: what a person is asked; only for `parked`.
    """

    id: str
    end: TaskEnd
    duration_s: float
    started_at: str
    output: Any = None
    error: str | None = None
    error_kind: str | None = None
    calls: tuple[dict[str, Any], ...] = ()
    extra_used: int = 0
    reused: int = 0
    resent: int = 0
    asked: Asked | None = None


@dataclass(frozen=True, slots=True)
class Handout:
    """Answer to a worker: tasks to start, and whether no more will come."""

    tasks: tuple[TaskInput, ...]
    is_over: bool


@dataclass(frozen=True, slots=True)
class EndpointTotals:
    """What one endpoint did for a job; None where nothing was measured.

    Attributes:
        cost_usd: of the calls whose cost is known; None when none is.
        unknown_cost_calls: calls whose cost is not known.
        tokens_per_s: output tokens a second, over the time that the job has been working.
        cache_read_tokens: of the input tokens those that the endpoint's cache held.
        saved_usd: what that saved, against plain input; below zero: writing it cost more so far.
    """

    endpoint: str
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    tokens_per_s: float | None = None
    cost_usd: Decimal | None = None
    unknown_cost_calls: int = 0
    cache_read_tokens: int = 0
    saved_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as its supervisor tells it: progress while it runs, the summary at its end.

    Attributes:
        reason: why it is in this state in a word, for stopped, cancelled and failed.
        detail: the line of the error that is behind the reason.
        total: inputs, those already done in an earlier run and bad ones included.
        already_done: results that an earlier run left in the output file.
        bad_inputs: inputs that could not be read (counted in `failed` too).
        cost_usd: of the calls whose cost is known.
        unknown_cost_calls: calls whose cost is not known: they stay charged at their reservation.
        reused_steps: steps whose recorded answers were used in place of calls.
        resent_calls: paid calls sent again because the answer of the first was lost at a crash.
        parked: tasks that wait for a person (`agentcloud approvals`).
        run: 1, and one more each time that the job was gone on with.
        elapsed_s: since this run started, until its end.
    """

    job_id: str
    agent: str
    state: JobState
    output: str
    total: int
    done: int = 0
    failed: int = 0
    running: int = 0
    already_done: int = 0
    bad_inputs: int = 0
    retried: int = 0
    workers_lost: int = 0
    reused_steps: int = 0
    resent_calls: int = 0
    parked: int = 0
    run: int = 1
    cost_usd: Decimal = Decimal(0)
    unknown_cost_calls: int = 0
    elapsed_s: float = 0.0
    reason: str | None = None
    detail: str | None = None
    endpoints: tuple[EndpointTotals, ...] = field(default_factory=tuple)

    @property
    def not_done(self) -> int:
        """Inputs without a result."""
        return max(0, self.total - self.done - self.failed - self.already_done)

    @property
    def label(self) -> str:
        """The state with its reason, as in `stopped: budget`."""
        return f"{self.state}: {self.reason}" if self.reason else str(self.state)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: money as decimal strings, unknown as null."""
        return {
            "job_id": self.job_id,
            "agent": self.agent,
            "state": str(self.state),
            "reason": self.reason,
            "detail": self.detail,
            "tasks": {
                "total": self.total,
                "done": self.done,
                "failed": self.failed,
                "running": self.running,
                "parked": self.parked,
                "already_done": self.already_done,
                "bad_inputs": self.bad_inputs,
                "not_done": self.not_done,
                "retried": self.retried,
            },
            "workers_lost": self.workers_lost,
            "reused_steps": self.reused_steps,
            "resent_calls": self.resent_calls,
            "run": self.run,
            "cost_usd": str(self.cost_usd),
            "unknown_cost_calls": self.unknown_cost_calls,
            "elapsed_s": round(self.elapsed_s, 3),
            "output": self.output,
            "endpoints": [
                {
                    "endpoint": row.endpoint,
                    "calls": row.calls,
                    "input_tokens": row.input_tokens,
                    "output_tokens": row.output_tokens,
                    "ttft_p50_s": row.ttft_p50_s,
                    "ttft_p95_s": row.ttft_p95_s,
                    "tokens_per_s": row.tokens_per_s,
                    "cost_usd": None if row.cost_usd is None else str(row.cost_usd),
                    "unknown_cost_calls": row.unknown_cost_calls,
                    "cache_read_tokens": row.cache_read_tokens,
                    "prefix_hit_rate": (
                        row.cache_read_tokens / row.input_tokens if row.input_tokens else None
                    ),
                    "saved_usd": str(row.saved_usd),
                }
                for row in self.endpoints
            ],
        }
