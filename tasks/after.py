"""A job that starts when others have ended: `after=`.

Whoever starts the job waits, before anything of it begins. It counts as ended well what ends
`agentcloud run` with status 0: every input has a result, and none failed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import ray

from agentcloud.cluster.config import load_fleet
from agentcloud.cluster.contracts import RAY_NAMESPACE
from agentcloud.cluster.errors import ConfigError, TaskError
from agentcloud.cluster.lifecycle import connect_ray
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_client import find_ledger
from agentcloud.tasks.ledger_wire import LedgerJob
from agentcloud.tasks.spec import JobState
from agentcloud.tasks.submission import Submissions

#: How often the others are looked at, seconds.
POLL_S: Final = 1.0

_ENDED: Final = {"failed": "failed", "stopped": "was stopped", "cancelled": "was cancelled"}

#: Looks a job up; None: it was submitted and has not begun. Raises ConfigError where there is none.
Look: TypeAlias = Callable[[str], LedgerJob | None]


def wait_for_jobs(
    job_ids: Sequence[str],
    look: Look,
    *,
    on_wait: Callable[[str], None],
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Wait until jobs have ended.

    Args:
        job_ids: the jobs.
        look: looks one up.
        on_wait: gets a line whenever other jobs are waited for than before.
        sleep: waits so long, seconds.

    Raises:
        ConfigError: there is no such job.
        TaskError: one did not end well, so that the others need not be waited for.
    """
    left, told = list(job_ids), list[str]()
    while True:
        left = [job_id for job_id in left if not ended_well(job_id, look(job_id))]
        if not left:
            return
        if left != told:
            told = left
            on_wait(f"waiting for {', '.join(left)}")
        sleep(POLL_S)


def ended_well(job_id: str, job: LedgerJob | None) -> bool:
    """Whether a job has ended; False: not yet.

    Raises:
        TaskError: it has, and not well.
    """
    if job is None or job.state not in set(JobState) or not JobState(job.state).is_final:
        return False
    failed = (job.record or {}).get("tasks", {}).get("failed", 0)
    if job.state == JobState.DONE and not failed:
        return True
    how, again = f"it {_ENDED.get(job.state, job.state)}", ""
    if job.state == JobState.DONE:
        how, again = f"{failed} of its tasks failed", " --retry-failed"
    raise TaskError(
        f"not started: it was to run after job {job_id}, and {how}; go on with that one "
        f"(agentcloud resume {job_id}{again}), or leave --after out"
    )


@contextmanager
def looking(address: str | None, fleet: Path) -> Iterator[Look]:
    """How to look jobs up: on a running cluster, else in the ledger of this machine.

    Args:
        address: a cluster; None: RAY_ADDRESS, or the one that this process is connected to.
        fleet: its `store:` is where jobs of this machine are kept.

    Raises:
        ConfigError: neither is there.
    """
    if ray.is_initialized():
        yield lambda job_id: look_on_cluster(job_id, address)
    elif address or os.environ.get("RAY_ADDRESS"):
        connect_ray(address)
        try:
            yield lambda job_id: look_on_cluster(job_id, address)
        finally:
            ray.shutdown()
    else:
        with closing(Ledger(load_fleet(fleet).store)) as ledger:
            yield lambda job_id: _known(job_id, ledger.job(job_id), str(fleet))


def look_on_cluster(job_id: str, address: str | None = None) -> LedgerJob | None:
    """Look a job up on the cluster that this process is connected to.

    Raises:
        ConfigError: there is no such job.
        TaskError: it was cut off, or failed before it began.
    """
    job: LedgerJob | None = ray.get(find_ledger().job.remote(job_id), timeout=60)
    # Four cases: it began, and runs or has ended; it began, and nothing is left that could end
    # it; it was submitted and has not begun; it ended before it began, or never was.
    if job is not None:
        if job.state in (JobState.RUNNING, JobState.PAUSED) and not _has_supervisor(job_id):
            raise TaskError(
                f"not started: it was to run after job {job_id}, which was cut off; go on with "
                f"that one: agentcloud resume {job_id}"
            )
        return job
    submitted = Submissions(address).get(job_id)
    if submitted.is_final:
        raise TaskError(
            f"not started: it was to run after job {job_id}, which ended before it began "
            f"(agentcloud logs {job_id})"
        )
    return None


def _known(job_id: str, job: LedgerJob | None, where: str) -> LedgerJob:
    if job is None:
        raise ConfigError(
            f"no job {job_id!r} in its ledger; `agentcloud jobs` lists them", where=where
        )
    return job


def _has_supervisor(job_id: str) -> bool:
    try:
        ray.get_actor(f"job:{job_id}", namespace=RAY_NAMESPACE)
    except ValueError:
        return False
    return True
