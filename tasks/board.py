"""The tasks of one job: what to hand out next, and what each outcome means. Pure, no I/O.

Five cases decide what a worker gets next:

1. the job is stopping or paused: nothing;
2. suspects (tasks whose worker died under them): first, but never two on one worker, so that a
   task which kills its worker takes no second innocent one down with it and each loss is told
   apart from bad company;
3. tasks whose question a person has answered;
4. fresh inputs, read only as workers have room;
5. tasks that met a passing failure: last, so that the trouble has time to pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

from agentcloud.tasks.facts import FactBook
from agentcloud.tasks.id_set import IdSet
from agentcloud.tasks.results import result_line
from agentcloud.tasks.sources import BadInput, Input
from agentcloud.tasks.spec import (
    EXTRA_ATTEMPTS,
    Asked,
    TaskEnd,
    TaskInput,
    TaskRecord,
    TaskResult,
    TaskState,
)
from agentcloud.tasks.tally import Tally


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that has ended; `line` is its line of the results file, without its newline."""

    id: str
    index: int
    done: bool
    attempts: int
    extra_used: int = 0
    line: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a task has used that an earlier run of its job began and did not end."""

    attempts: int
    extra_used: int


@dataclass(slots=True)
class FormerRuns:
    """What earlier runs of a job left: ended tasks, how many of them are done, and begun ones."""

    ended: IdSet = field(default_factory=IdSet)
    done: int = 0
    begun: dict[str, Begun] = field(default_factory=dict)


class Board:
    """State of every task that was started and has not ended.

    Every input gets exactly one line, except those that were not done when the job stopped.

    Args:
        inputs: the job's inputs, streamed.
        attempts: the most starts of one task.
        extra_attempts: the most extra attempts of one task over all layers, restarts included.
        finished_ids: tasks that another job ended: not started again.
        former: what earlier runs of this job left.
        tally: adds up calls of all attempts.
        facts: takes what tasks cost that ended.
    """

    def __init__(
        self,
        inputs: Iterator[Input | BadInput],
        *,
        attempts: int,
        extra_attempts: int = EXTRA_ATTEMPTS,
        finished_ids: Container[str],
        tally: Tally,
        facts: FactBook | None = None,
        former: FormerRuns | None = None,
    ) -> None:
        self._inputs = inputs
        self._attempts = attempts
        self._extra_attempts = extra_attempts
        self._finished_ids = finished_ids
        self._tally = tally
        self._facts = facts if facts is not None else FactBook()
        self._running: dict[str, TaskRecord] = {}
        self._suspects: deque[TaskRecord] = deque()
        self._again: deque[TaskRecord] = deque()
        self._answered: deque[TaskRecord] = deque()
        self._parked: dict[str, tuple[TaskRecord, Asked]] = {}
        self._former = former or FormerRuns()
        self._ended: list[Ended] = []
        self._read_all = False
        self.is_paused = False
        self.stop_reason: str | None = None
        self.stop_detail: str | None = None
        self.done = self._former.done
        self.failed = len(self._former.ended) - self._former.done
        self.bad_inputs = 0
        self.retried = 0
        self.already_done = 0
        self.reused = 0
        self.resent = 0

    def __repr__(self) -> str:
        return (
            f"Board(done={self.done}, failed={self.failed}, running={len(self._running)}, "
            f"suspects={len(self._suspects)}, again={len(self._again)}, "
            f"read_all={self._read_all}, stop={self.stop_reason!r})"
        )

    @property
    def running(self) -> int:
        """Tasks that workers hold."""
        return len(self._running)

    @property
    def is_finished(self) -> bool:
        """Whether no task runs and none will be handed out."""
        if self._running:
            return False
        return self.stop_reason is not None or (
            self._read_all and not (self._suspects or self._again or self._answered or self._parked)
        )

    def take(self, worker: str, room: int) -> list[TaskInput]:
        """Hand at most `room` tasks to a worker."""
        handed: list[TaskInput] = []
        if self.stop_reason is not None or self.is_paused:
            return handed
        holds_suspect = any(r.worker == worker and r.lost for r in self._running.values())
        while len(handed) < room:
            if self._suspects and not holds_suspect:
                record = self._suspects.popleft()
                holds_suspect = True
            elif self._answered:
                record = self._answered.popleft()
            elif (fresh := self._next_input()) is not None:
                record = fresh
            elif self._again:
                record = self._again.popleft()
            else:
                break
            handed.append(record.start(worker))
            self._running[record.id] = record
        return handed

    def settle(self, worker: str, results: Sequence[TaskResult]) -> None:
        """Take the outcomes of a worker's attempts; tasks it no longer holds are left out."""
        for result in results:
            record = self._running.get(result.id)
            if record is None or record.worker != worker:
                continue  # the worker was given up on and the task started elsewhere
            del self._running[record.id]
            record.extra_used = result.extra_used
            fresh = [call for call in result.calls if call["call"] not in record.counted]
            record.counted.update(call["call"] for call in fresh)
            self._tally.add(fresh)
            self._facts.attempted(record.id, fresh)
            self.reused += result.reused
            self.resent += result.resent
            # Six ends: done; failed for good; a person is asked; a passing failure, with or
            # without attempts left; the budget is used up; cancelled.
            if result.end is TaskEnd.DONE:
                self._end(record, result, TaskState.DONE)
            elif result.end is TaskEnd.FAILED:
                self._end(record, result, TaskState.FAILED)
            elif result.end is TaskEnd.PARKED and result.asked is not None:
                self._park(record, result.asked)
            elif result.end is TaskEnd.PASSING:
                self._retry_or_fail(record, result, self._again)
            elif result.end is TaskEnd.BUDGET:
                # No line: a later run with a higher budget does the task again.
                self._drop(record)
                self.stop("budget", result.error)
            else:
                self._drop(record)

    def lose(self, worker: str, why: str, started_at: str) -> int:
        """A worker died: its tasks are suspects now, or failed when out of attempts.

        Args:
            worker: who died.
            why: for the error of tasks without attempts left.
            started_at: for the same lines.

        Returns:
            How many tasks it held.
        """
        held = [record for record in self._running.values() if record.worker == worker]
        for record in held:
            del self._running[record.id]
            record.lost += 1
            result = TaskResult(
                record.id,
                TaskEnd.PASSING,
                duration_s=0.0,
                started_at=started_at,
                error=f"its worker died: {why}",
                error_kind="WorkerLost",
            )
            self._retry_or_fail(record, result, self._suspects)
        return len(held)

    @property
    def parked(self) -> list[Asked]:
        """What persons are asked, the longest waiting first."""
        return [asked for _, asked in self._parked.values()]

    def answered(self, task_id: str) -> bool:
        """A parked task has its answer: it goes on; False: no such task is parked."""
        found = self._parked.pop(task_id, None)
        if found is None:
            return False
        self._answered.append(found[0])
        return True

    def _park(self, record: TaskRecord, asked: Asked) -> None:
        if self.stop_reason is not None:
            self._drop(record)
            return
        record.move(TaskState.WAITING)
        record.worker = None
        record.attempts -= 1  # it goes on, it is not tried again
        record.parked += 1
        self._parked[record.id] = record, asked

    def stop(self, reason: str, detail: str | None = None) -> None:
        """Hand out nothing more; the first reason stays."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self.stop_detail = detail

    def drain_ended(self) -> list[Ended]:
        """Tasks that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _next_input(self) -> TaskRecord | None:
        for entry in self._inputs:
            if entry.id in self._former.ended:
                self.bad_inputs += isinstance(entry, BadInput)
            elif entry.id in self._finished_ids:
                self.already_done += 1
            elif isinstance(entry, BadInput):
                self._bad(entry)
            else:
                record = TaskRecord(entry.id, entry.index, entry.item)
                if self._begun(record):
                    return record
        self._read_all = True
        return None

    def _begun(self, record: TaskRecord) -> bool:
        """Whether a task may be started, which an earlier run of the job may have begun.

        It is begun again through no fault of its own, as far as one can tell; one that was there
        whenever the whole job fell fails when its extra attempts are used.
        """
        before = self._former.begun.get(record.id)
        if before is None:
            return True
        record.attempts = min(before.attempts, self._attempts - 1)
        record.extra_used = before.extra_used + 1
        record.lost = 1
        self.retried += 1
        if before.extra_used < self._extra_attempts:
            return True
        why = f"the job was cut off {before.extra_used} times with this task under way"
        result = TaskResult(
            record.id,
            TaskEnd.FAILED,
            duration_s=0.0,
            started_at="",
            error=why,
            error_kind="AttemptsExhausted",
        )
        record.move(TaskState.RUNNING)
        self._end(record, result, TaskState.FAILED)
        return False

    def _bad(self, entry: BadInput) -> None:
        self.bad_inputs += 1
        self.failed += 1
        result = TaskResult(
            entry.id, TaskEnd.FAILED, duration_s=0.0, started_at="", error_kind="BadInput"
        )
        line = result_line(result, done=False, attempts=0, error=entry.why)
        self._ended.append(Ended(entry.id, entry.index, done=False, attempts=0, line=line))

    def _retry_or_fail(
        self, record: TaskRecord, result: TaskResult, queue: deque[TaskRecord]
    ) -> None:
        record.worker = None
        if self.stop_reason is not None:
            self._drop(record)
        elif record.attempts < self._attempts and record.extra_used < self._extra_attempts:
            record.extra_used += 1  # this restart; what a dead worker used is not known
            record.move(TaskState.WAITING)
            queue.append(record)
            self.retried += 1
        else:
            self._end(record, result, TaskState.FAILED)

    def _drop(self, record: TaskRecord) -> None:
        record.move(TaskState.DROPPED)
        self._facts.dropped(record.id)

    def _end(self, record: TaskRecord, result: TaskResult, state: TaskState) -> None:
        record.move(state)
        self._facts.ended(record.id)
        done = state is TaskState.DONE
        self.done += done
        self.failed += not done
        error = result.error
        if error is not None and record.attempts > 1:
            error = f"{error} (attempt {record.attempts} of {self._attempts})"
        line = result_line(result, done=done, attempts=record.attempts, error=error)
        self._ended.append(
            Ended(record.id, record.index, done, record.attempts, record.extra_used, line)
        )
