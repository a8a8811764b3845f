"""Commands over the ledger: jobs, resume."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Annotated

import typer

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cli_options import (
    AddressOpt,
    BudgetOpt,
    FleetOpt,
    GcsAddressOpt,
    JobArg,
    JsonOpt,
    say,
    usd_option,
)
from agentcloud.tasks.cli_run import run_job
from agentcloud.tasks.render import approvals_table, ledger_table, stdout_console
from agentcloud.tasks.spec import JobRecord, OnUnknown


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
    """Go on with a job that was paused, or one of `agentcloud run` that was cut off by anything.

    What is recorded is used and not paid again. Calls that were under way stay charged; whether
    they are sent again is the job's --on-unknown. A --budget given here is over all runs together.

    Examples:
        agentcloud resume j1a2b3c4d

        agentcloud resume j1a2b3c4d --budget 20usd --retry-failed
    """
    from agentcloud.tasks.resume import find_job, is_complete, resumed_spec, unpaused

    running = unpaused(job_id, address=address)
    if running is not None:
        _say_state(running, as_json)
        return
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


def pause_command(job_id: JobArg, address: GcsAddressOpt = None, as_json: JsonOpt = False) -> None:
    """Start no more tasks of a running job; those that run go on. `agentcloud resume` goes on.

    Example:
        agentcloud pause j1a2b3c4d --address auto
    """
    from agentcloud.tasks.jobs import ask_supervisor

    _say_state(ask_supervisor(job_id, address, lambda actor: actor.pause.remote(True)), as_json)


def approvals_command(
    job_id: JobArg, address: GcsAddressOpt = None, as_json: JsonOpt = False
) -> None:
    """List what the tasks of a running job ask a person (`ctx.approve`).

    Example:
        agentcloud approvals j1a2b3c4d
    """
    from agentcloud.tasks.jobs import ask_supervisor

    asked = ask_supervisor(job_id, address, lambda actor: actor.parked.remote())
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in asked]))
    elif asked:
        stdout_console().print(approvals_table(asked))
    else:
        say("nothing is asked")


def approve_command(
    job_id: JobArg,
    task_id: Annotated[str, typer.Argument(help="The task that asks.")],
    deny: Annotated[bool, typer.Option("--deny", help="Say no.")] = False,
    comment: Annotated[str, typer.Option(help="What the agent is told with it.")] = "",
    address: GcsAddressOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Answer what a task asks; it goes on where it was.

    Examples:
        agentcloud approve j1a2b3c4d refund-17

        agentcloud approve j1a2b3c4d refund-18 --deny --comment "over the limit"
    """
    from agentcloud.agents.approval import APPROVAL, Approval
    from agentcloud.tasks.jobs import ask_supervisor

    answer = APPROVAL.dump_json(Approval(not deny, comment, getpass.getuser()))
    if not ask_supervisor(job_id, address, lambda actor: actor.answer.remote(task_id, answer)):
        raise ConfigError(
            f"task {task_id!r} of job {job_id} asks nothing; `agentcloud approvals {job_id}` lists "
            f"what is asked"
        )
    if as_json:
        typer.echo(json.dumps({"job_id": job_id, "task_id": task_id, "approved": not deny}))
    else:
        say(f"{task_id}: {'denied' if deny else 'approved'}")


def jobs_command(
    fleet: FleetOpt = Path("fleet.yaml"), address: AddressOpt = None, as_json: JsonOpt = False
) -> None:
    """List the jobs of the ledger, the newest first, those of `run` too.

    Example:
        agentcloud jobs --json
    """
    from agentcloud.tasks.resume import ask_anywhere

    jobs = ask_anywhere(address, fleet, methodcaller("jobs"))
    if as_json:
        typer.echo(json.dumps([job.to_dict() for job in jobs]))
    elif jobs:
        stdout_console().print(ledger_table(jobs))
    else:
        say("no jobs yet")


def replay_command(
    job_id: JobArg,
    task_id: Annotated[str, typer.Argument(help="The task: its input's id.")],
    fleet: FleetOpt = Path("fleet.yaml"),
    address: AddressOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Run a task's agent again from its record: no call is made, nothing is paid.

    Exit status: 0 it came to the same; 1 it did not, or a step is not on record. Examples:

        agentcloud replay j1a2b3c4d ticket-17

        agentcloud replay j1a2b3c4d ticket-17 --json
    """
    from agentcloud.cluster.config import load_fleet
    from agentcloud.tasks.replay import find_task, replay
    from agentcloud.tasks.resume import ask_anywhere

    found = ask_anywhere(address, fleet, partial(find_task, job_id=job_id, task_id=task_id))
    if isinstance(found, str):
        raise ConfigError(found)
    done = replay(found, load_fleet(fleet) if fleet.exists() else None)
    if as_json:
        typer.echo(json.dumps(done.to_dict()))
    else:
        typer.echo(done.error if done.error is not None else json.dumps(done.output, indent=2))
        verdict = {True: "the same as recorded", False: "not what is recorded", None: "not ended"}
        say(f"{done.steps} of {done.on_record} recorded steps used; {verdict[done.is_same]}")
    raise typer.Exit(0 if done.is_same is not False else 1)


def report_command(
    job_id: JobArg,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file. (default: JOB.html)", dir_okay=False),
    ] = None,
    fleet: FleetOpt = Path("fleet.yaml"),
    address: AddressOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Write a job's report, running or ended: progress, latency, cost, errors, slowest tasks.

    Example:
        agentcloud report j1a2b3c4d -o report.html
    """
    from agentcloud.tasks.report import report_html
    from agentcloud.tasks.report_data import report_data
    from agentcloud.tasks.resume import ask_anywhere

    data = ask_anywhere(address, fleet, partial(report_data, job_id=job_id))
    if data is None:
        raise ConfigError(f"no job {job_id!r} in the ledger; `agentcloud jobs` lists them")
    path = output or Path(f"{job_id}.html")
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_text(report_html(data))
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"cannot write it ({error.strerror})", where=str(path)) from None
    if as_json:
        typer.echo(json.dumps({**data.job.to_dict(), "report": str(path)}))
    else:
        say(f"{data.done} done, {data.failed} failed: {path}")


def _say_state(record: JobRecord, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record.to_dict()))
    else:
        say(f"{record.job_id} is {record.label}: {record.done} of {record.total} done")


def _complete(record: dict[str, object] | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record))
    else:
        say("it is done; --retry-failed does its failed tasks again")
