"""The Ray actor `job:<id>`: feeds its crew of workers, collects outcomes, writes results.

`run` owns its supervisor, which ends with it. `submit`'s is detached and mirrored by the driver of
its Ray job: when the driver falls silent (its Ray job was stopped or killed) the supervisor stops
the job by itself, so that no job goes on paying unseen.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import ray
import structlog

from agentcloud.cluster.errors import AgentCloudError, one_line
from agentcloud.cluster.logs import configure_logs
from agentcloud.tasks.board import Board
from agentcloud.tasks.budgets import Budgets
from agentcloud.tasks.crew import ERROR, Crew, end_former
from agentcloud.tasks.facts import TELL_EVERY_S, FactBook, tell
from agentcloud.tasks.job_ledger import JobLedger, begin_run
from agentcloud.tasks.results import Results, open_results
from agentcloud.tasks.sources import read_inputs
from agentcloud.tasks.spec import (
    Asked,
    Handout,
    JobRecord,
    JobSpec,
    JobState,
    TaskInput,
    TaskResult,
    check_job_change,
)
from agentcloud.tasks.tally import Tally

log = structlog.get_logger()

#: After a cancellation, tasks get so long to end before their worker is killed, seconds.
CANCEL_GRACE_S = 3.0
#: Why a job stops: on request. Others come from the board and the crew.
_CANCELLED = "cancelled"


_Method = TypeVar("_Method", bound=Callable[..., Any])


def _once(method: _Method) -> _Method:
    """Ray does not call it again where it lost the answer: what that handed out is nobody's."""
    decorated: _Method = ray.method(max_task_retries=0)(method)
    return decorated


class Supervisor:
    """The body of a supervisor actor.

    Args:
        spec: the job.
        total: inputs in its file, as surveyed.
        mirror_timeout_s: without a call of `record` for so long the job stops; None: never.
        origin: what the job's submitter gave, for whoever resumes it.
    """

    def __init__(
        self,
        spec: JobSpec,
        total: int,
        mirror_timeout_s: float | None = None,
        origin: dict[str, Any] | None = None,
    ) -> None:
        configure_logs(actor=f"job:{spec.job_id}", job=spec.job_id)
        self._spec = spec
        self._total = total
        self._mirror_timeout_s = mirror_timeout_s
        self._state = JobState.PENDING
        self._reason: str | None = None
        self._detail: str | None = None
        self._tally = Tally()
        self._facts = FactBook()
        self._told_s = 0.0
        self._results: Results | None = None
        self._board = Board(iter(()), attempts=1, finished_ids=frozenset(), tally=self._tally)
        self._crew: Crew | None = None
        self._started_s = time.monotonic()
        self._working_since_s: float | None = None
        self._ended_s: float | None = None
        self._heard_s = time.monotonic()
        self._over = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._origin = origin or {}
        self._ledger: JobLedger | None = None
        self._starting = asyncio.Lock()

    def __repr__(self) -> str:
        return f"job:{self._spec.job_id}"

    async def start(self) -> None:
        """Open ledger, results file and budget, and start the workers. Safe to call twice.

        A supervisor that Ray has restarted is started by the first call that reaches it, and goes
        on from the ledger: its workers ended with the one before.

        Raises:
            ConfigError: no fleet is up, or the results file cannot be used.
        """
        await self._started(first=True)

    async def _started(self, *, first: bool = False) -> None:
        async with self._starting:
            if self._main is None:
                # What failed since the job began is not done again because its supervisor died.
                retry_failed = first and self._spec.retry_failed
                await self._start(self._spec.model_copy(update={"retry_failed": retry_failed}))
                assert self._ledger is not None
                if self._ledger.was_paused and not first:
                    await self._pause(True)

    async def _start(self, spec: JobSpec) -> None:
        budgets = Budgets.of_cluster()
        end_former(spec.job_id)
        # Its lock comes first: a job that runs elsewhere is not taken from there.
        results = open_results(spec.output, retry_failed=spec.retry_failed)
        try:
            ledger = await begin_run(spec, self._origin, budgets)
            former = await ledger.former_runs(results, self._tally)
            await budgets.open((spec.budget_scope,), ledger.budget_usd)
        except BaseException:
            results.close()
            raise
        self._ledger, self._results = ledger, results
        self._board = Board(
            read_inputs(spec.input, source=spec.source),
            attempts=spec.attempts,
            extra_attempts=spec.extra_attempts,
            finished_ids=results.ids,
            tally=self._tally,
            facts=self._facts,
            former=former,
        )
        self._move(JobState.RUNNING)
        self._crew = Crew(self._spec, ledger.epoch, self._board, self._write)
        self._crew.start()
        self._main = asyncio.create_task(self._run(self._crew))

    @_once
    async def exchange(self, worker: str, ended: list[TaskResult], room: int) -> Handout:
        """A worker brings outcomes and asks for at most `room` tasks."""
        if self._crew is None or worker not in self._crew:
            return Handout((), is_over=True)  # it was given up on
        if ended:
            self._crew.worked()
        try:
            self._board.settle(worker, ended)
            tasks = self._board.take(worker, room) if room > 0 else []
            if tasks and self._working_since_s is None:
                self._working_since_s = time.monotonic()
            await self._write(tasks)
        except AgentCloudError as error:  # the input or the disk went away under the job
            self._crew.fail(one_line(error))
            return Handout((), is_over=False)
        return Handout(tuple(tasks), self._board.is_finished)

    async def record(self) -> JobRecord:
        """The job as it stands; each call is also a sign of life of whoever mirrors the job."""
        self._heard_s = time.monotonic()
        await self._started()
        return self._record()

    async def cancel(self, reason: str = "on request") -> None:
        """Stop now: running tasks are cancelled, their calls aborted; what is done is kept."""
        await self._started()
        if self._state.is_final:
            return
        self._board.stop(_CANCELLED, reason)
        if self._state is not JobState.STOPPING:
            self._move(JobState.STOPPING)
        assert self._crew is not None
        await self._crew.cancel()

    async def pause(self, paused: bool) -> JobRecord:
        """Start no more tasks, or go on; those that run go on."""
        await self._started()
        if self._board.stop_reason is None and not self._state.is_final:
            await self._pause(paused)
        return self._record()

    async def _pause(self, paused: bool) -> None:
        self._board.is_paused = paused
        state = JobState.PAUSED if paused else JobState.RUNNING
        if state is not self._state:
            self._move(state)
            assert self._ledger is not None
            await self._ledger.mark(state)

    async def parked(self) -> list[Asked]:
        """What tasks ask persons."""
        await self._started()
        return self._board.parked

    async def answer(self, task_id: str, answer: bytes) -> bool:
        """Record a person's answer and let its task go on; False: it asks nothing.

        Args:
            task_id: the task.
            answer: the `Approval` as JSON.
        """
        await self._started()
        assert self._ledger is not None
        asked = next((each for each in self._board.parked if each.task_id == task_id), None)
        if asked is None:
            return False
        await self._ledger.answer(asked, answer)
        return self._board.answered(task_id)

    async def wait(self) -> JobRecord:
        """Wait until the job has ended."""
        await self._started()
        await self._over.wait()
        return self._record()

    async def _run(self, crew: Crew) -> None:
        try:
            await self._until_finished(crew)
            crew.end()
            await self._write()
            if self._results is not None:
                self._results.close()
            tell(self._spec.kind, self._facts.drain())
            state = self._end_state()
            await self._settle(state)
            self._move(state)  # last: whoever sees it ends this actor
        except Exception as error:
            log.exception("the supervisor failed", job=self._spec.job_id)
            self._reason, self._detail = ERROR, one_line(error)
            with contextlib.suppress(AgentCloudError):  # the ledger may be what failed
                await self._settle(JobState.FAILED)
            self._state = JobState.FAILED
        finally:
            if self._results is not None:
                self._results.close()
            self._ended_s = time.monotonic()
            self._over.set()

    async def _until_finished(self, crew: Crew) -> None:
        # A worker that has nothing more to do ends by itself, and with the last one the job.
        give_up_s: float | None = None
        while crew.is_at_work:
            await crew.wait(0.1)
            now_s = time.monotonic()
            if now_s - self._told_s >= TELL_EVERY_S:
                self._told_s = now_s
                tell(self._spec.kind, self._facts.drain())
            if self._board.stop_reason is not None and self._state is not JobState.STOPPING:
                self._move(JobState.STOPPING)
            if self._board.stop_reason in (_CANCELLED, ERROR):
                # Tasks that ignore their cancellation go with their worker.
                give_up_s = give_up_s or now_s + CANCEL_GRACE_S
                if now_s > give_up_s:
                    return
            if self._is_abandoned(now_s):
                await self.cancel("its driver is gone")

    def _is_abandoned(self, now_s: float) -> bool:
        return (
            self._mirror_timeout_s is not None
            and now_s - self._heard_s > self._mirror_timeout_s
            and self._board.stop_reason is None
        )

    def _end_state(self) -> JobState:
        reason, detail = self._board.stop_reason, self._board.stop_detail
        # Four ends: every input has its line; cancelled; an error of the job as a whole; the
        # budget.
        if reason is None:
            return JobState.DONE
        if reason == _CANCELLED:
            self._reason = detail
            return JobState.CANCELLED
        self._reason, self._detail = reason, detail
        return JobState.FAILED if reason == ERROR else JobState.STOPPED

    def _move(self, new: JobState) -> None:
        check_job_change(self._state, new)
        self._state = new
        log.info("job state", job=self._spec.job_id, state=str(new), reason=self._reason)

    async def _write(self, started: Sequence[TaskInput] = ()) -> None:
        """Into the ledger first, then into the results file, which a later run completes."""
        assert self._ledger is not None
        assert self._results is not None
        ended = self._board.drain_ended()
        await self._ledger.write(started, ended)
        if ended:
            self._results.append([each.line for each in ended])

    async def _settle(self, state: JobState) -> None:
        """Tell the ledger how the run ended, and forget its budgets, the tasks' own with them."""
        assert self._ledger is not None
        self._board.resent = await self._ledger.resent()
        budgets, scope = Budgets.of_cluster(), (self._spec.budget_scope,)
        record = replace(self._record(), state=state)
        await self._ledger.end(record, await budgets.used_usd(scope))
        await budgets.close(scope)

    def _record(self) -> JobRecord:
        board = self._board
        now_s = self._ended_s or time.monotonic()
        return JobRecord(
            job_id=self._spec.job_id,
            agent=self._spec.agent,
            state=self._state,
            output=str(self._spec.output),
            total=self._total,
            done=board.done,
            failed=board.failed,
            running=board.running,
            already_done=board.already_done,
            bad_inputs=board.bad_inputs,
            retried=board.retried,
            workers_lost=self._crew.lost if self._crew is not None else 0,
            reused_steps=board.reused,
            resent_calls=board.resent,
            parked=len(board.parked),
            run=self._ledger.epoch if self._ledger is not None else 1,
            cost_usd=self._tally.cost_usd,
            unknown_cost_calls=self._tally.unknown_cost_calls,
            elapsed_s=now_s - self._started_s,
            reason=self._reason,
            detail=self._detail,
            endpoints=self._tally.endpoints(now_s - (self._working_since_s or now_s)),
        )


SupervisorActor = ray.remote(Supervisor)
