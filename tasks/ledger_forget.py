"""What a job has in the ledger is deleted, a page a transaction, its own row last.

A page is a bounded number of rows, so that what other jobs write waits only briefly. Contents are
shared between jobs: one goes with the last step, or longer conversation, that refers to it.

Leases that have ended go with their tasks: a job that begins anew under the same key has the same
steps, and would take its former self's calls for its own. No money depends on them: budgets have
sums of their own, and only leases that are open or of unknown cost are read back. Those stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Table,
    bindparam,
    cast,
    delete,
    exists,
    func,
    or_,
    select,
    text,
    update,
)

from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.journal import LeaseState
from agentcloud.cluster.sql import writing
from agentcloud.cluster.store_tables import LEASES
from agentcloud.tasks.ledger_tables import CONTENTS, JOBS, STEPS, TASKS
from agentcloud.tasks.ledger_wire import Forgotten
from agentcloud.tasks.spec import JobState
from agentcloud.tasks.step_ids import PAST_STEPS, task_prefix

#: Steps, or tasks, of one transaction.
ROWS: Final = 1_000
_FINAL: Final = tuple(state.value for state in JobState if state.is_final)


def ended_before(engine: Engine, unix_s: float) -> list[str]:
    """Jobs that ended before then, the oldest first."""
    ended = JOBS.c.state.in_(_FINAL), JOBS.c.ended_unix_s < unix_s
    with engine.connect() as connection:
        query = select(JOBS.c.job_id).where(*ended).order_by(JOBS.c.ended_unix_s)
        return list(connection.execute(query).scalars())


def held(engine: Engine, job_id: str) -> Forgotten:
    """What forgetting a job would delete; its bytes are not known, for contents are shared."""
    with engine.connect() as connection:
        tasks, steps = (
            connection.execute(
                select(func.count()).select_from(table).where(table.c.job_id == job_id)
            ).scalar_one()
            for table in (TASKS, STEPS)
        )
    return Forgotten(tasks, steps)


def forget_page(engine: Engine, store: Engine, job_id: str, *, force: bool) -> Forgotten:
    """Delete a page of a job; `is_over` once nothing is left of it.

    Args:
        engine: the ledger.
        store: the scheduler's.
        job_id: the job.
        force: it was cut off: the run that it is marked with can write no more from now on.

    Raises:
        ConfigError: it has not ended.
    """
    with writing(engine) as connection:
        if not _may_go(connection, job_id, force):
            return Forgotten(is_over=True)
        page = _forget_steps(connection, job_id)
        if page.steps:
            return page
        tasks = list(connection.execute(_first(TASKS, TASKS.c.task_id, job_id)).scalars())
    # In between: nobody waits for the ledger while this waits for the scheduler's database.
    _forget_leases(store, job_id, tasks)
    with writing(engine) as connection:
        if not _may_go(connection, job_id, force):
            return Forgotten(is_over=True)
        of_page = TASKS.c.job_id == job_id, TASKS.c.task_id.in_(tasks)
        size = _octets(connection, TASKS.c.item) + _octets(connection, TASKS.c.line)
        freed = connection.execute(delete(TASKS).where(*of_page).returning(size)).scalars().all()
        is_over = not any(
            connection.execute(_first(table, table.c.job_id, job_id).limit(1)).first()
            for table in (STEPS, TASKS)
        )
        if is_over:
            connection.execute(delete(JOBS).where(JOBS.c.job_id == job_id))
    return Forgotten(len(freed), 0, sum(freed), is_over)


def _may_go(connection: Connection, job_id: str, force: bool) -> bool:
    """Whether the job is there; it is locked, so nothing of it is written meanwhile.

    Raises:
        ConfigError: it has not ended.
    """
    row = JOBS.c.job_id == job_id
    found = select(JOBS.c.state, JOBS.c.epoch).where(row).with_for_update()
    job = connection.execute(found).first()
    if job is None:
        return False
    if job.state not in _FINAL:
        if not force:
            raise ConfigError(
                f"job {job_id} is {job.state}, or was cut off: end it first, go on with it "
                f"(agentcloud resume {job_id}), or, if nothing runs it any more, --force"
            )
        told = {"state": JobState.CANCELLED.value, "epoch": job.epoch + 1}
        connection.execute(update(JOBS).where(row).values(told))
    return True


def _forget_steps(connection: Connection, job_id: str) -> Forgotten:
    if connection.dialect.name == "postgresql":
        # Whoever finds a content there and means to refer to it has to be seen, or to wait.
        # (SQLite has one writer at a time.)
        connection.execute(text("LOCK TABLE contents IN SHARE ROW EXCLUSIVE MODE"))
    steps = list(connection.execute(_first(STEPS, STEPS.c.step, job_id)).scalars())
    told = delete(STEPS).where(STEPS.c.step.in_(steps))
    size = _octets(connection, STEPS.c.answer)
    rows = connection.execute(told.returning(STEPS.c.settings, STEPS.c.history, size)).all()
    freed = sum(row[2] for row in rows)
    left = {hash_ for row in rows for hash_ in row[:2] if hash_ is not None}
    while left:
        gone = _forget_contents(connection, left)
        freed += sum(size for _, size in gone)
        # A conversation's last message has gone: the one before it may be nobody's now.
        left = {parent for parent, _ in gone if parent is not None}
    return Forgotten(0, len(rows), freed)


def _forget_contents(connection: Connection, hashes: Iterable[str]) -> list[tuple[str | None, int]]:
    """Delete those that nothing refers to: parent and size of each."""
    child = CONTENTS.alias("child")
    unused = (
        ~exists().where(STEPS.c.settings == CONTENTS.c.hash),
        ~exists().where(STEPS.c.history == CONTENTS.c.hash),
        ~exists().where(child.c.parent == CONTENTS.c.hash),
    )
    told = delete(CONTENTS).where(CONTENTS.c.hash.in_(hashes), *unused)
    size = _octets(connection, CONTENTS.c.body)
    return [(row[0], row[1]) for row in connection.execute(told.returning(CONTENTS.c.parent, size))]


def _forget_leases(store: Engine, job_id: str, tasks: Iterable[str]) -> None:
    prefixes = [task_prefix(job_id, task) for task in tasks]
    if not prefixes:
        return
    ended = or_(
        *(LEASES.c.state == state.value for state in (LeaseState.SETTLED, LeaseState.FAILED))
    )
    of_task = LEASES.c.step >= _told("first"), LEASES.c.step < _told("past")
    rows = [{"first": each, "past": each + PAST_STEPS} for each in prefixes]
    with writing(store) as connection:
        connection.execute(delete(LEASES).where(*of_task, ended), rows)


def _first(table: Table, column: Column[Any], job_id: str) -> Any:
    # Ordered as the index by job is, so that no page reads what it leaves.
    return select(column).where(table.c.job_id == job_id).order_by(table.c.task_id).limit(ROWS)


def _octets(connection: Connection, column: Column[Any]) -> ColumnElement[int]:
    if connection.dialect.name == "postgresql":
        size = func.octet_length(column)
    else:  # its length of a text is one of characters
        size = func.length(cast(column, LargeBinary))
    return func.coalesce(size, 0)


def _told(name: str) -> BindParameter[Any]:
    return bindparam(name, None)
