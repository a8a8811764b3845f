"""A task run again from its record alone: no call is made, nothing is written, nothing is paid.

For looking at what an agent did, under a debugger if one likes, and for trying an edited agent on
what models answered before: the first step that is not on record ends it, by name.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from agentcloud.agents.agent import Context, load_agent, run_agent
from agentcloud.agents.ports import MessagesClient, MessagesResource
from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.contracts import Receipt
from agentcloud.cluster.errors import ConfigError, StepMismatch, one_line
from agentcloud.cluster.ports import Step
from agentcloud.cluster.tiers import FleetTiers
from agentcloud.tasks.attempt import call_summary, json_output
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_wire import ContentRow, Recalled, StartRow, StepRow
from agentcloud.tasks.recorder import TaskRecorder
from agentcloud.tasks.spec import JobSpec, OnUnknown


@dataclass(frozen=True, slots=True)
class TaskRecordFound:
    """What the ledger holds of one task; `line` is None where it has not ended."""

    spec: str
    start: StartRow
    line: str | None
    recalled: Recalled


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a replay went.

    Attributes:
        output: of the agent; None where it raised.
        error: what it raised, one line.
        calls: summaries of the recorded calls that it used, as in the results file.
        steps: recorded steps that it used.
        on_record: recorded steps of the task.
        line: the task's line of the results file; None: it has not ended.
    """

    output: Any
    error: str | None
    calls: tuple[dict[str, Any], ...]
    steps: int
    on_record: int
    line: dict[str, Any] | None

    @property
    def is_same(self) -> bool | None:
        """Whether it came to what the job has written; None: the job has written nothing."""
        if self.line is None:
            return None
        if self.line["status"] == "done":
            return self.error is None and bool(self.output == self.line["output"])
        return self.error is not None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "output": self.output,
            "error": self.error,
            "same": self.is_same,
            "steps": self.steps,
            "steps_on_record": self.on_record,
            "calls": [call | {"cost_usd": _text(call["cost_usd"])} for call in self.calls],
            "recorded": self.line,
        }


def find_task(ledger: Ledger, job_id: str, task_id: str) -> TaskRecordFound | str:
    """What the ledger holds of a task, or why it holds nothing."""
    job = ledger.job(job_id)
    if job is None:
        return f"no job {job_id!r} in the ledger; `agentcloud jobs` lists them"
    start = ledger.task(job_id, task_id)
    if start is None:
        return f"task {task_id!r} of job {job_id} was never started"
    line = ledger.line(job_id, task_id)
    return TaskRecordFound(job.spec, start, line, ledger.recall(job_id, task_id))


def replay(found: TaskRecordFound, config: FleetConfig | None) -> Replayed:
    """Run a task's agent, as it is now, on what is recorded.

    Args:
        found: the record.
        config: the fleet, for the tiers of cascades; None: an agent with cascades cannot be run.

    Raises:
        ConfigError: the agent cannot be loaded.
    """
    spec = JobSpec.model_validate_json(found.spec)
    if spec.folder is not None and spec.folder.is_dir():
        os.chdir(spec.folder)
        sys.path.insert(0, str(spec.folder))
    return asyncio.run(_replay(spec, found, config))


async def _replay(spec: JobSpec, found: TaskRecordFound, config: FleetConfig | None) -> Replayed:
    agent = load_agent(spec.agent)
    recorder = _Replayer(spec.job_id, found.start.task_id, found.recalled)
    item = json.loads(found.start.item)
    context = Context(
        _NoClient(config),
        job_id=spec.job_id,
        task_id=found.start.task_id,
        item=item,
        recorder=recorder,
        cascade=spec.cascade.to_cascade() if spec.cascade is not None else None,
    )
    output: Any = None
    error: str | None = None
    try:
        output = json_output(await run_agent(agent, context, item))
    except StepMismatch:
        raise
    except Exception as raised:
        error = one_line(raised)
    return Replayed(
        output,
        error,
        tuple(call_summary(receipt) for receipt in context.usage.receipts),
        recorder.reused,
        len(found.recalled.answers),
        json.loads(found.line) if found.line else None,
    )


class _Replayer(TaskRecorder):
    """Gives what is recorded, and nothing else."""

    def __init__(self, job_id: str, task_id: str, recalled: Recalled) -> None:
        super().__init__(_Nothing(), job_id, task_id, OnUnknown.FAIL)
        self._recalled = Recalled(recalled.answers)

    async def begin(self, kind: str, name: str, content: Any) -> Step:
        step = await super().begin(kind, name, content)
        if step.recorded is None:
            told = json.dumps(content, default=str)
            raise StepMismatch(
                f"not on record: {kind} {name}, occurrence {step.occurrence + 1}, "
                f"{told[:300]}{'...' if len(told) > 300 else ''}; the agent asks something else "
                f"than it did, or the task ended before"
            )
        return step

    async def done(self, step: Step, answer: bytes, receipt: Receipt | None = None) -> None:
        """Nothing new is ever done."""


class _Nothing:
    """A ledger that is not written."""

    async def put(
        self, *, steps: Sequence[StepRow] = (), contents: Sequence[ContentRow] = ()
    ) -> None:
        """Nothing."""

    async def recall(self, task_id: str) -> Recalled:
        """Nothing."""
        return Recalled()


class _NoClient(MessagesClient):
    """A client that knows the fleet's tiers and makes no call."""

    def __init__(self, config: FleetConfig | None) -> None:
        self._config = config

    @property
    def messages(self) -> MessagesResource:
        """None: every answer is on record."""
        self._no_call()

    async def tiers(self) -> FleetTiers:
        """Of fleet.yaml."""
        if self._config is None:
            raise ConfigError("the agent has a cascade: name its fleet with --fleet")
        return FleetTiers.of(self._config, load_catalog().with_overrides(self._config.hosted))

    def _no_call(self) -> NoReturn:
        raise StepMismatch("a replay makes no call")


def _text(cost_usd: Any) -> str | None:
    return None if cost_usd is None else format(cost_usd, "f")
