"""Going on with a job that was cut off: found in the ledger, started as its next run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import ray
from pydantic import ValidationError

from agentcloud.cluster.config import load_fleet
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.lifecycle import connect_ray
from agentcloud.tasks.jobs import fetch, find_supervisor
from agentcloud.tasks.ledger import Ledger
from agentcloud.tasks.ledger_client import find_ledger
from agentcloud.tasks.ledger_wire import LedgerJob
from agentcloud.tasks.spec import JobRecord, JobSpec, JobState, OnUnknown

T = TypeVar("T")


class Ask(Protocol):
    """Asks a ledger: what it is given runs where that is."""

    def __call__(self, ask: Callable[[Ledger], T], /) -> T:
        """What `ask` returns."""
        ...


@contextmanager
def asking(address: str | None, fleet: Path) -> Iterator[Ask]:
    """How to ask the ledger of a running cluster, or that of this machine.

    Args:
        address: a cluster; None: RAY_ADDRESS, else this machine's own.
        fleet: for the latter: its `store:` is where jobs of this machine are kept.

    Raises:
        ConfigError: neither is there.
    """
    if address or os.environ.get("RAY_ADDRESS"):
        connect_ray(address)
        try:
            ledger = find_ledger()
            yield lambda ask: fetch(ledger.read.remote(ask))
        finally:
            ray.shutdown()
    else:
        with closing(Ledger(load_fleet(fleet).store)) as here:
            yield lambda ask: ask(here)


def ask_anywhere(address: str | None, fleet: Path, read: Callable[[Ledger], T]) -> T:
    """Ask once, as `asking` does."""
    with asking(address, fleet) as ask:
        return ask(read)


def find_job(job_id: str, *, address: str | None, fleet: Path) -> LedgerJob:
    """A job of the ledger.

    Raises:
        ConfigError: there is no such job.
    """
    job: LedgerJob | None = ask_anywhere(address, fleet, methodcaller("job", job_id))
    if job is None:
        raise ConfigError(
            f"no job {job_id!r} in the ledger of {address or fleet}; `agentcloud jobs` lists them"
        )
    return job


def resumed_spec(
    job: LedgerJob,
    *,
    budget_usd: Decimal | None = None,
    on_unknown: OnUnknown | None = None,
    retry_failed: bool = False,
) -> JobSpec:
    """What the next run of a job is to do.

    Args:
        job: as the ledger knows it.
        budget_usd: a new cap over all its runs; None: the old one.
        on_unknown: None: as before.
        retry_failed: failed tasks are done again.

    Raises:
        ConfigError: it is of another version of agentcloud.
    """
    try:
        spec = JobSpec.model_validate_json(job.spec)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"was written by another version of agentcloud ({where}: {first['msg']}); resume it "
            f"with that one",
            where=f"job {job.job_id}",
        ) from None
    changes: dict[str, Any] = {"retry_failed": retry_failed}
    if budget_usd is not None:
        changes["budget_usd"] = budget_usd
    if on_unknown is not None:
        changes["on_unknown"] = on_unknown
    return spec.model_copy(update=changes)


def is_complete(job: LedgerJob) -> bool:
    """Whether nothing of a job is left to do, failed tasks aside."""
    return job.state == JobState.DONE.value


def unpaused(job_id: str, *, address: str | None) -> JobRecord | None:
    """Go on with a job that runs, paused or not.

    Args:
        job_id: the job.
        address: the cluster; None: RAY_ADDRESS, and without it no cluster is looked for.

    Returns:
        The job; None: it does not run there.
    """
    if not (address or os.environ.get("RAY_ADDRESS")):
        return None
    connect_ray(address)
    try:
        actor = find_supervisor(job_id)
        return None if actor is None else cast(JobRecord, fetch(actor.pause.remote(False)))
    finally:
        ray.shutdown()
