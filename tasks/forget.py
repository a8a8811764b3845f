"""Forgetting jobs: which of them may go, and page after page of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Final

import ray

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.jobs import find_supervisor
from agentcloud.tasks.ledger_wire import Forgotten, LedgerJob
from agentcloud.tasks.resume import Ask, asking
from agentcloud.tasks.spec import JobState

#: Longest pause after a page. SQLite lets whoever waits for its lock try again this often.
MAX_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class ForgottenJob:
    """A job that was forgotten, or would be, and how it stood."""

    job: LedgerJob
    counts: Forgotten

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "job_id": self.job.job_id,
            "state": self.job.state,
            "created_unix_s": self.job.created_unix_s,
            "ended_unix_s": self.job.ended_unix_s,
            "tasks": self.counts.tasks,
            "steps": self.counts.steps,
            "freed_bytes": self.counts.freed_bytes,
        }


def forget_jobs(
    job_ids: Sequence[str],
    *,
    address: str | None,
    fleet: Path,
    older_than_s: float | None = None,
    dry_run: bool = False,
    force: bool = False,
    on_page: Callable[[str, Forgotten], None] = lambda job_id, counts: None,
    sleep: Callable[[float], object] = time.sleep,
) -> list[ForgottenJob]:
    """Delete ended jobs from the ledger; what was interrupted goes on when it is called again.

    Args:
        job_ids: the jobs; those that are not there (any more) are left out.
        address: a cluster; None: RAY_ADDRESS, else this machine's own ledger.
        fleet: for the latter.
        older_than_s: in place of names: those that ended so long ago.
        dry_run: delete nothing.
        force: jobs that were cut off may go too.
        on_page: gets the counts so far, page after page.
        sleep: waits so long, seconds.

    Raises:
        ConfigError: none of the jobs is there, or one of them has not ended: none was touched.
    """
    with asking(address, fleet) as ask:
        if older_than_s is not None:
            job_ids = ask(methodcaller("ended_before", time.time() - older_than_s))
        named = [(job_id, ask(methodcaller("job", job_id))) for job_id in dict.fromkeys(job_ids)]
        jobs = [job for _, job in named if job is not None]
        if named and not jobs:
            raise ConfigError(f"no job {named[0][0]!r} in the ledger; `agentcloud jobs` lists them")
        for job in jobs:
            _check(job, force=force)
        if dry_run:
            return [ForgottenJob(job, ask(methodcaller("held", job.job_id))) for job in jobs]
        return [
            ForgottenJob(job, _forget(ask, job.job_id, force, partial(on_page, job.job_id), sleep))
            for job in jobs
        ]


def _check(job: LedgerJob, *, force: bool) -> None:
    """Refuse a job that has not ended.

    Raises:
        ConfigError: it runs or is paused, or was cut off and there is no `force`.
    """
    # Three cases: it has ended; this cluster runs it; it was cut off, or runs on one out of sight.
    if job.state in set(JobState) and JobState(job.state).is_final:
        return
    if ray.is_initialized() and find_supervisor(job.job_id) is not None:
        raise ConfigError(
            f"job {job.job_id} is {job.state}; end it first: agentcloud cancel {job.job_id}"
        )
    if not force:
        raise ConfigError(
            f"job {job.job_id} is {job.state}, or was cut off; go on with it (agentcloud resume "
            f"{job.job_id}), or, if nothing runs it any more, name it with --force"
        )


def _forget(
    ask: Ask,
    job_id: str,
    force: bool,
    on_page: Callable[[Forgotten], None],
    sleep: Callable[[float], object],
) -> Forgotten:
    counts = Forgotten(freed_bytes=0)
    while True:
        began_s = time.monotonic()
        page: Forgotten = ask(methodcaller("forget", job_id, force=force))
        counts = Forgotten(
            counts.tasks + page.tasks,
            counts.steps + page.steps,
            (counts.freed_bytes or 0) + (page.freed_bytes or 0),
            page.is_over,
        )
        on_page(counts)
        if page.is_over:
            return counts
        # Whoever waits for the database's lock has its turn.
        sleep(min(time.monotonic() - began_s, MAX_PAUSE_S))
