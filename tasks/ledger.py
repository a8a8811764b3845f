"""The durable record of jobs, tasks and steps, in SQL.

Who writes for a job names the epoch of its run: whoever goes on with a job begins the next epoch,
and what an earlier one still writes is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.journal import LeaseState
from agentcloud.cluster.sql import open_database, writing
from agentcloud.cluster.store_tables import BUDGETS, LEASES
from agentcloud.tasks.ledger_forget import ended_before, forget_page, held
from agentcloud.tasks.ledger_tables import (
    JOBS,
    STEPS,
    TASKS,
    Statements,
)
from agentcloud.tasks.ledger_wire import PAGE, EndRow, Forgotten, LedgerJob, Put, Recalled, StartRow
from agentcloud.tasks.spec import TaskState
from agentcloud.tasks.step_ids import PAST_STEPS, task_prefix

#: The ledger's file, where it is SQLite.
FILE: Final = "ledger.db"
#: Errors that the same answers would bring about again.
_BY_MODEL: Final = frozenset({"OutputInvalid", "Refused", "TurnLimit"})


class Ledger:
    """Jobs, tasks and steps. One thread writes; any may read.

    Args:
        url: fleet.yaml's `store:`.
        wall_s: the clock, seconds since 1970.

    Raises:
        ConfigError: the database cannot be used, or is of a newer agentcloud.
    """

    def __init__(self, url: str | None, *, wall_s: Callable[[], float] = time.time) -> None:
        self._engine = open_database(url, file=FILE)
        self._store = open_database(url, file="store.db")
        self._statements = Statements(self._engine)
        self._wall_s = wall_s

    def __repr__(self) -> str:
        return f"<Ledger {self._engine.url!r}>"

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()
        self._store.dispose()

    # -- jobs

    def begin(self, job_id: str, spec: str, origin: dict[str, Any]) -> int:
        """Begin a run of a job; returns its epoch: 1 for the first.

        Raises:
            ConfigError: the job is another agent's: its key was used before.
        """
        with writing(self._engine) as connection:
            found = connection.execute(
                select(JOBS.c.epoch, JOBS.c.spec).where(JOBS.c.job_id == job_id).with_for_update()
            ).first()
            if found is None:
                row = {
                    "job_id": job_id,
                    "epoch": 1,
                    "state": "running",
                    "spec": spec,
                    "origin": json.dumps(origin),
                    "spent_usd": "0",
                    "created_unix_s": self._wall_s(),
                }
                connection.execute(insert(JOBS), row)
                return 1
            before, now = (json.loads(text).get("agent") for text in (found.spec, spec))
            if before != now:
                raise ConfigError(
                    f"job {job_id} runs {before}, and this is {now}; give it another --key"
                )
            change = update(JOBS).where(JOBS.c.job_id == job_id)
            epoch = int(found.epoch) + 1
            connection.execute(
                change.values(epoch=epoch, state="running", spec=spec, ended_unix_s=None)
            )
            return epoch

    def mark(self, job_id: str, epoch: int, state: str) -> None:
        """A run is `running` or `paused` from now on; a stale one changes nothing."""
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.epoch == epoch)
        with self._engine.begin() as connection:
            connection.execute(change.values(state=state))

    def end(
        self, job_id: str, epoch: int, state: str, record: dict[str, Any], spent_usd: str
    ) -> None:
        """A run has ended; a stale one changes nothing.

        Args:
            job_id: the job.
            epoch: of the run.
            state: how it ended.
            record: its record as JSON.
            spent_usd: what all runs have spent, what is unknown at its reservation.
        """
        change = update(JOBS).where(JOBS.c.job_id == job_id, JOBS.c.epoch == epoch)
        told = {"state": state, "record": json.dumps(record), "spent_usd": spent_usd}
        with self._engine.begin() as connection:
            connection.execute(change.values(ended_unix_s=self._wall_s(), **told))

    def spent_before(self, job_id: str, fleet: str) -> Decimal:
        """What a job has spent that the budgets of its present fleet do not know, USD.

        Runs that ended told what they spent. Those that were cut off with their fleet are known by
        its budgets and by the leases that were open there: they are added to it now.

        Args:
            job_id: the job.
            fleet: the fleet that runs it now.
        """
        of_job = json.dumps([f"job:{job_id}"])
        gone = BUDGETS.c.fleet != fleet, BUDGETS.c.path == of_job
        open_there = (
            LEASES.c.fleet != fleet,
            LEASES.c.budget.startswith(of_job[:-1], autoescape=True),
            LEASES.c.state == LeaseState.GRANTED.value,
        )
        with writing(self._engine) as connection:
            row = JOBS.c.job_id == job_id
            spent = Decimal(
                connection.execute(select(JOBS.c.spent_usd).where(row).with_for_update()).scalar()
                or 0
            )
            with self._store.connect() as store:
                for each in store.execute(select(BUDGETS).where(*gone)):
                    spent += Decimal(each.spent_usd) + Decimal(each.unknown_usd)
                for each in store.execute(select(LEASES.c.reserved_usd).where(*open_there)):
                    spent += Decimal(each.reserved_usd)
            connection.execute(update(JOBS).where(row).values(spent_usd=str(spent)))
        # Last: a crash in between counts it twice, which is never over the budget.
        with writing(self._store) as store:
            store.execute(delete(BUDGETS).where(*gone))
            store.execute(update(LEASES).where(*open_there).values(state=LeaseState.UNKNOWN.value))
        return spent

    def job(self, job_id: str) -> LedgerJob | None:
        """One job; None: there is none."""
        with self._engine.connect() as connection:
            row = connection.execute(select(JOBS).where(JOBS.c.job_id == job_id)).first()
        return None if row is None else _job(row)

    def jobs(self, limit: int = 1000) -> list[LedgerJob]:
        """Jobs, the newest first."""
        newest = select(JOBS).order_by(JOBS.c.created_unix_s.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(newest)]

    def ended_before(self, unix_s: float) -> list[str]:
        """Jobs that ended before then, the oldest first."""
        return ended_before(self._engine, unix_s)

    def held(self, job_id: str) -> Forgotten | None:
        """What forgetting a job would delete; None: there is no such job."""
        return held(self._engine, job_id) if self.job(job_id) is not None else None

    def forget(self, job_id: str, *, force: bool = False) -> Forgotten:
        """Delete a page of a job that has ended, or with `force` one that was cut off.

        Raises:
            ConfigError: it has not ended.
        """
        return forget_page(self._engine, self._store, job_id, force=force)

    # -- tasks

    def ended(self, job_id: str, after: str = "") -> list[EndRow]:
        """A page of tasks that have ended, with their lines: those whose ids follow `after`."""
        state = TASKS.c.state.in_([TaskState.DONE.value, TaskState.FAILED.value])
        return [
            EndRow(row.task_id, row.place, row.state, row.attempts, row.extra_used, row.line or "")
            for row in self._page(job_id, after, state)
        ]

    def begun(self, job_id: str, after: str = "") -> list[StartRow]:
        """A page of tasks that were started and have not ended."""
        return [
            StartRow(row.task_id, row.place, row.attempts, row.extra_used, row.item or "")
            for row in self._page(job_id, after, TASKS.c.state == TaskState.RUNNING.value)
        ]

    def forget_failed(self, job_id: str) -> int:
        """Failed tasks are to be done again; how many.

        Their recorded answers are used again, as after a crash, but for those of tasks that failed
        because of what a model answered: it is asked anew.
        """
        query = select(TASKS.c.task_id, TASKS.c.line).where(
            TASKS.c.job_id == job_id, TASKS.c.state == TaskState.FAILED.value
        )
        with writing(self._engine) as connection:
            failed = connection.execute(query).all()
            for start in range(0, len(failed), PAGE):
                rows = failed[start : start + PAGE]
                anew = [row.task_id for row in rows if _failed_by_model(row.line)]
                of_job = STEPS.c.job_id == job_id
                connection.execute(delete(STEPS).where(of_job, STEPS.c.task_id.in_(anew)))
                again = TASKS.c.task_id.in_([row.task_id for row in rows])
                told = {"state": TaskState.RUNNING.value, "line": None, "attempts": 0}
                change = update(TASKS).where(TASKS.c.job_id == job_id, again)
                connection.execute(change.values(extra_used=0, **told))
        return len(failed)

    def task(self, job_id: str, task_id: str) -> StartRow | None:
        """One task as it was started; None: it never was."""
        query = select(TASKS).where(TASKS.c.job_id == job_id, TASKS.c.task_id == task_id)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None or row.item is None:
            return None
        return StartRow(row.task_id, row.place, row.attempts, row.extra_used, row.item)

    def line(self, job_id: str, task_id: str) -> str | None:
        """A task's line of the results file; None: it has not ended."""
        query = select(TASKS.c.line).where(TASKS.c.job_id == job_id, TASKS.c.task_id == task_id)
        with self._engine.connect() as connection:
            line: str | None = connection.execute(query).scalar()
        return line

    def _page(self, job_id: str, after: str, state: ColumnElement[bool]) -> Sequence[Any]:
        query = select(TASKS).where(TASKS.c.job_id == job_id, TASKS.c.task_id > after, state)
        with self._engine.connect() as connection:
            return connection.execute(query.order_by(TASKS.c.task_id).limit(PAGE)).all()

    # -- steps

    def resent(self, job_id: str) -> int:
        """Paid calls of a job that were sent again after a crash, or beside a slow one."""
        of_job = json.dumps([f"job:{job_id}"])
        sends = select(LEASES.c.step, func.count().label("sends")).where(
            LEASES.c.budget.startswith(of_job[:-1], autoescape=True),
            LEASES.c.step.is_not(None),
            LEASES.c.state != LeaseState.FAILED.value,
        )
        with self._store.connect() as connection:
            rows = connection.execute(sends.group_by(LEASES.c.step).having(func.count() > 1))
            return sum(row.sends - 1 for row in rows)

    def recall(self, job_id: str, task_id: str) -> Recalled:
        """Everything known of a task that was begun before."""
        prefix = task_prefix(job_id, task_id)
        of_task = STEPS.c.step >= prefix, STEPS.c.step < prefix + PAST_STEPS
        steps = select(STEPS.c.step, STEPS.c.answer, STEPS.c.lease_id, STEPS.c.lease_usd)
        with self._engine.connect() as connection:
            found = connection.execute(steps.where(*of_task)).all()
        with self._store.connect() as connection:
            leases = connection.execute(
                select(LEASES.c.step, LEASES.c.lease_id, LEASES.c.state).where(
                    LEASES.c.step >= prefix,
                    LEASES.c.step < prefix + PAST_STEPS,
                    LEASES.c.state != LeaseState.FAILED.value,
                )
            ).all()
        unsettled = {row.lease_id for row in leases if row.state != LeaseState.SETTLED.value}
        return Recalled(
            {row.step: bytes(row.answer) for row in found},
            frozenset(row.step for row in leases),
            tuple(
                (row.lease_id, Decimal(row.lease_usd))
                for row in found
                if row.lease_id in unsettled and row.lease_usd is not None
            ),
        )

    def write(self, puts: Sequence[Put], again: bool = False) -> None:
        """Write all of it in one transaction; what a stale run puts is left out and marked.

        Args:
            puts: what to write.
            again: an earlier try failed; every row may be written twice.

        Raises:
            SQLAlchemyError: nothing was written.
        """
        now_s = self._wall_s()
        write = self._statements
        with writing(self._engine) as connection:
            epochs = _epochs(connection, {put.job_id for put in puts})
            for put in puts:
                put.is_stale = epochs.get(put.job_id) != put.epoch
            fresh = [put for put in puts if not put.is_stale]
            contents = {row.hash: row for put in fresh for row in put.contents}
            write.content.run(connection, [row._asdict() for row in contents.values()])
            write.step.run(
                connection,
                [
                    {**row._asdict(), "job_id": put.job_id, "made_unix_s": now_s}
                    for put in fresh
                    for row in put.steps
                ],
            )
            running = {"state": TaskState.RUNNING.value, "changed_unix_s": now_s}
            write.start.run(
                connection,
                [
                    {**row._asdict(), **running, "job_id": put.job_id}
                    for put in fresh
                    for row in put.starts
                ],
            )
            write.end.run(
                connection,
                [
                    {**row._asdict(), "job_id": put.job_id, "changed_unix_s": now_s}
                    for put in fresh
                    for row in put.ends
                ],
            )


def _failed_by_model(line: str | None) -> bool:
    kind = json.loads(line).get("error_kind") if line else None
    return kind in _BY_MODEL


def _epochs(connection: Connection, job_ids: set[str]) -> dict[str, int]:
    # Locked until the end of the transaction: no later run begins in its middle.
    query = select(JOBS.c.job_id, JOBS.c.epoch).where(JOBS.c.job_id.in_(job_ids))
    rows = connection.execute(query.with_for_update(read=True))
    return {row.job_id: row.epoch for row in rows}


def _job(row: Any) -> LedgerJob:
    return LedgerJob(
        row.job_id,
        row.epoch,
        row.state,
        row.spec,
        json.loads(row.origin),
        None if row.record is None else json.loads(row.record),
        row.created_unix_s,
        row.ended_unix_s,
        Decimal(row.spent_usd),
    )
