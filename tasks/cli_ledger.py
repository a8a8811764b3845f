"""Commands over the ledger: jobs, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from agentcloud.tasks.cli_options import (
    AddressOpt,
    BudgetOpt,
    FleetOpt,
    JobArg,
    JsonOpt,
    say,
    usd_option,
)
from agentcloud.tasks.cli_run import run_job
from agentcloud.tasks.render import ledger_table, stdout_console
from agentcloud.tasks.spec import OnUnknown


def resume_command(
    job_id: JobArg,
    fleet: Annotated[
        Path | None,
        typer.Option(help="As for run. (default: the one that it was started with)"),
    ] = None,
    address: AddressOpt = None,
    budget: BudgetOpt = None,
    on_unknown: Annotated[
        OnUnknown | None, typer.Option(help="As for run. (default: as it was started)")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do its failed tasks again.")
    ] = False,
    dashboard: Annotated[bool, typer.Option(help="Run Ray's dashboard too.")] = True,
    as_json: JsonOpt = False,
) -> None:
    """Go on with a job of `agentcloud run` that was cut off, whatever cut it off.

    What is recorded is used and not paid again. Calls that were under way stay charged; whether
    they are sent again is the job's --on-unknown. A --budget given here is over all runs together.

    Examples:
        agentcloud resume j1a2b3c4d

        agentcloud resume j1a2b3c4d --budget 20usd --retry-failed
    """
    from agentcloud.tasks.resume import find_job, is_complete, resumed_spec

    job = find_job(job_id, address=address, fleet=fleet or Path("fleet.yaml"))
    if is_complete(job) and not retry_failed:
        _complete(job.record, as_json)
        return
    spec = resumed_spec(
        job,
        budget_usd=usd_option(budget, "--budget"),
        on_unknown=on_unknown,
        retry_failed=retry_failed,
    )
    run_job(
        spec,
        fleet=fleet or Path(job.origin.get("fleet", "fleet.yaml")),
        address=address,
        dashboard=dashboard,
        as_json=as_json,
    )


def jobs_command(
    fleet: FleetOpt = Path("fleet.yaml"), address: AddressOpt = None, as_json: JsonOpt = False
) -> None:
    """List the jobs of the ledger, the newest first, those of `run` too.

    Example:
        agentcloud jobs --json
    """
    from agentcloud.tasks.resume import ask_anywhere

    jobs = ask_anywhere(
        address, fleet, lambda actor: actor.jobs.remote(), lambda ledger: ledger.jobs()
    )
    if as_json:
        typer.echo(json.dumps([job.to_dict() for job in jobs]))
    elif jobs:
        stdout_console().print(ledger_table(jobs))
    else:
        say("no jobs yet")


def _complete(record: dict[str, object] | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record))
    else:
        say("it is done; --retry-failed does its failed tasks again")
