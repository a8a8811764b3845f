"""One run of a job and the ledger: what earlier runs left, and what this one does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from agentcloud.tasks.board import Begun, Ended, FormerRuns
from agentcloud.tasks.budgets import Budgets
from agentcloud.tasks.ledger_client import LedgerClient, ask_ledger
from agentcloud.tasks.ledger_wire import PAGE, EndRow, StartRow, StepRow
from agentcloud.tasks.results import Results
from agentcloud.tasks.spec import Asked, JobRecord, JobSpec, JobState, TaskInput, TaskState
from agentcloud.tasks.tally import Tally

#: Lines that are put into the results file at once.
_LINES = 500


class JobLedger:
    """The ledger as a supervisor uses it. Made by `begin_run`."""

    def __init__(
        self, spec: JobSpec, epoch: int, spent_before_usd: Decimal, *, was_paused: bool
    ) -> None:
        self.epoch = epoch
        self.was_paused = was_paused
        self.spent_before_usd = spent_before_usd
        self._spec = spec
        self._client = LedgerClient(spec.job_id, epoch)

    def __repr__(self) -> str:
        return f"<JobLedger {self._spec.job_id}/{self.epoch}>"

    @property
    def budget_usd(self) -> Decimal | None:
        """What this run may spend, in a fleet that knows nothing of earlier ones."""
        limit_usd = self._spec.budget_usd
        return None if limit_usd is None else max(Decimal(0), limit_usd - self.spent_before_usd)

    async def former_runs(self, results: Results, tally: Tally) -> FormerRuns:
        """What earlier runs left; lines that the results file lacks are put there.

        Args:
            results: the job's results file.
            tally: takes the calls of ended tasks.
        """
        former = FormerRuns()
        if self.epoch == 1:
            return former
        job_id = self._spec.job_id
        if self._spec.retry_failed:
            await ask_ledger(lambda ledger: ledger.forget_failed.remote(job_id))
        missing: list[str] = []
        async for row in _pages(lambda ledger, after: ledger.ended.remote(job_id, after)):
            former.ended.add(row.task_id)
            former.done += row.state == TaskState.DONE.value
            tally.add(_calls_of(row.line))
            if row.task_id not in results.ids:
                missing.append(row.line)
            if len(missing) >= _LINES:
                results.append(missing)
                missing = []
        results.append(missing)
        async for row in _pages(lambda ledger, after: ledger.begun.remote(job_id, after)):
            former.begun[row.task_id] = Begun(row.attempts, row.extra_used)
        return former

    async def write(self, started: Sequence[TaskInput], ended: Sequence[Ended]) -> None:
        """Write tasks that are about to start, and that have ended.

        Raises:
            RunReplaced: a later run of the job has begun.
        """
        if started or ended:
            await self._client.put(
                starts=[_start(each) for each in started], ends=[*map(_end, ended)]
            )

    async def answer(self, asked: Asked, answer: bytes) -> None:
        """Record what a person answered, as the step that the task finds when it goes on."""
        row = StepRow(asked.step, asked.task_id, "approval", "approve", None, None, answer)
        await self._client.put(steps=(row,))

    async def resent(self) -> int:
        """Paid calls that all runs have sent again: what the store knows, whatever died."""
        job_id = self._spec.job_id
        return await ask_ledger(lambda ledger: ledger.resent.remote(job_id))

    async def mark(self, state: JobState) -> None:
        """The run is paused, or goes on: whoever goes on with the job after a crash knows."""
        job_id = self._spec.job_id
        await ask_ledger(lambda ledger: ledger.mark.remote(job_id, self.epoch, str(state)))

    async def end(self, record: JobRecord, used_usd: Decimal) -> None:
        """The run has ended.

        Args:
            record: how.
            used_usd: what it spent, what is unknown at its reservation.
        """
        job_id, spent = self._spec.job_id, str(self.spent_before_usd + used_usd)
        told = record.to_dict()
        await ask_ledger(
            lambda ledger: ledger.end.remote(job_id, self.epoch, str(record.state), told, spent)
        )


async def begin_run(spec: JobSpec, origin: dict[str, Any], budgets: Budgets) -> JobLedger:
    """Begin the next run of a job: what an earlier one still writes is refused from now on.

    Args:
        spec: the job.
        origin: what its submitter gave, for whoever resumes it.
        budgets: of the fleet that runs it.

    Raises:
        ConfigError: there is no ledger.
    """
    text = spec.model_dump_json()
    before = await ask_ledger(lambda ledger: ledger.job.remote(spec.job_id))
    epoch = await ask_ledger(lambda ledger: ledger.begin.remote(spec.job_id, text, origin))
    fleet = await budgets.fleet_id()
    spent = await ask_ledger(lambda ledger: ledger.spent_before.remote(spec.job_id, fleet))
    was_paused = before is not None and before.state == JobState.PAUSED
    return JobLedger(spec, epoch, Decimal(spent), was_paused=was_paused)


async def _pages(ask: Callable[..., Awaitable[list[Any]]]) -> AsyncIterator[Any]:
    after = ""
    while True:
        rows = await ask_ledger(partial(ask, after=after))
        for row in rows:
            yield row
        if len(rows) < PAGE:
            return
        after = rows[-1].task_id


def _start(task: TaskInput) -> StartRow:
    item = json.dumps(task.item)
    return StartRow(task.id, task.index, task.attempt, task.extra_used, item)


def _end(ended: Ended) -> EndRow:
    state = TaskState.DONE if ended.done else TaskState.FAILED
    return EndRow(ended.id, ended.index, state.value, ended.attempts, ended.extra_used, ended.line)


def _calls_of(line: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = json.loads(line)["calls"]
    for call in calls:
        call["cost_usd"] = None if call["cost_usd"] is None else Decimal(call["cost_usd"])
    return calls
