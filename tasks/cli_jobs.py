"""Commands of submitted jobs: submit, status, logs, results, cancel, list.

Ray is imported inside the commands: `--help` and shell completion answer at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cascade_file import load_cascade
from agentcloud.tasks.cli_fleet import show_fleet
from agentcloud.tasks.cli_options import (
    AddressOpt,
    AfterOpt,
    AgentArg,
    AttemptsOpt,
    BadInputOpt,
    BudgetOpt,
    CascadeOpt,
    ConcurrencyOpt,
    DeadlineOpt,
    ExtraAttemptsOpt,
    InputOpt,
    JobArg,
    JsonOpt,
    KeyOpt,
    LabelOpt,
    OnUnknownOpt,
    PriorityOpt,
    TaskBudgetOpt,
    TimeoutOpt,
    WorkersOpt,
    duration_option,
    labels_option,
    say,
    usd_option,
)
from agentcloud.tasks.render import jobs_table, show_duration, stdout_console
from agentcloud.tasks.spec import EXTRA_ATTEMPTS, JobSpec, OnBadInput, OnUnknown, new_job_id

if TYPE_CHECKING:
    from agentcloud.tasks.submission import SubmittedJob


def submit_command(
    agent: AgentArg,
    input_file: InputOpt,
    address: AddressOpt = None,
    budget: BudgetOpt = None,
    task_budget: TaskBudgetOpt = None,
    working_dir: Annotated[
        Path,
        typer.Option(
            help="Folder to send; .gitignore, .rayignore and keys stay out.", file_okay=False
        ),
    ] = Path("."),
    concurrency: ConcurrencyOpt = 128,
    workers: WorkersOpt = 1,
    attempts: AttemptsOpt = 3,
    extra_attempts: ExtraAttemptsOpt = EXTRA_ATTEMPTS,
    task_timeout: TimeoutOpt = None,
    deadline: DeadlineOpt = None,
    on_bad_input: BadInputOpt = OnBadInput.STOP,
    on_unknown: OnUnknownOpt = OnUnknown.RESEND,
    cascade: CascadeOpt = None,
    key: KeyOpt = None,
    label: LabelOpt = None,
    priority: PriorityOpt = 0,
    after: AfterOpt = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --wait: fetch the results.", dir_okay=False),
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Send a job to a running cluster; it goes on when this machine is switched off.

    The folder and the input travel with it; keys never do. Examples:

        agentcloud submit agent.py:main --input tickets.jsonl --address http://head:8265

        agentcloud submit agent.py:main -i tickets.jsonl --budget $20 --wait -o results.jsonl

        agentcloud submit agent.py:main -i tickets.jsonl --deadline 6h   # half-price batches
    """
    from agentcloud.tasks.sources import survey
    from agentcloud.tasks.submission import Submissions

    if output is not None and not wait:
        raise ConfigError(
            "needs --wait; without it fetch them later: agentcloud results JOB", where="--output"
        )
    spec = JobSpec(
        job_id=new_job_id(key),
        agent=agent,
        input=input_file.absolute(),
        output=Path("results.jsonl"),
        source=str(input_file),
        budget_usd=usd_option(budget, "--budget"),
        task_budget_usd=usd_option(task_budget, "--task-budget"),
        concurrency=concurrency,
        workers=workers,
        attempts=attempts,
        extra_attempts=extra_attempts,
        task_timeout_s=task_timeout,
        deadline_s=duration_option(deadline, "--deadline"),
        on_bad_input=on_bad_input,
        on_unknown=on_unknown,
        priority=priority,
        labels=labels_option(label),
        cascade=load_cascade(cascade) if cascade is not None else None,
        after=tuple(after or ()),
    )
    survey(spec.input, on_bad=on_bad_input, source=spec.source)
    _check_agent_file(agent, working_dir)
    submissions = Submissions(address)
    if key is not None and not submissions.clear_for(spec.job_id):
        say(f"key {key!r} is job {spec.job_id}, which was submitted before")
    else:
        submissions.submit(spec, folder=working_dir.absolute())
    if wait:
        job = submissions.wait(spec.job_id)
        if output is not None:
            _write_results(submissions.results(spec.job_id), output)
        _print_job(job, as_json)
        raise typer.Exit(0 if job.status == "SUCCEEDED" else 1)
    if as_json:
        typer.echo(json.dumps({"job_id": spec.job_id, "dashboard_url": submissions.dashboard_url}))
        return
    typer.echo(spec.job_id)
    say(f"submitted; agentcloud status {spec.job_id}, agentcloud results {spec.job_id} -o FILE")
    say(f"dashboard: {submissions.dashboard_url}")


def status_command(
    job_id: Annotated[str | None, typer.Argument(help="A job's id; none: the fleet.")] = None,
    address: AddressOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Show how far a submitted job is, or how many replicas each model has and why.

    Examples:
        agentcloud status j1a2b3c4d --address http://head:8265

        agentcloud status --address head:6379
    """
    if job_id is None:
        show_fleet(address, as_json)
        return
    from agentcloud.tasks.submission import Submissions

    _print_job(Submissions(address).get(job_id), as_json)


def logs_command(
    job_id: JobArg,
    address: AddressOpt = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until its end.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Print what a submitted job's driver said.

    Example:
        agentcloud logs j1a2b3c4d --follow
    """
    from agentcloud.tasks.submission import Submissions

    submissions = Submissions(address)
    if follow:
        asyncio.run(_follow_logs(submissions.follow_logs(job_id), as_json))
    else:
        text = submissions.logs(job_id)
        typer.echo(json.dumps({"job_id": job_id, "logs": text}) if as_json else text, nl=as_json)


def results_command(
    job_id: JobArg,
    address: AddressOpt = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; (default: stdout).", dir_okay=False)
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Fetch a submitted job's results, during the job or after it (JSON lines either way).

    Example:
        agentcloud results j1a2b3c4d --output results.jsonl
    """
    from agentcloud.tasks.submission import Submissions

    lines = Submissions(address).results(job_id)
    if output is None:
        for line in lines:
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return
    count = _write_results(lines, output)
    if as_json:
        typer.echo(json.dumps({"job_id": job_id, "results": count, "output": str(output)}))
    else:
        say(f"{count} results in {output}")


def cancel_command(job_id: JobArg, address: AddressOpt = None, as_json: JsonOpt = False) -> None:
    """Stop a submitted job: calls in flight are cancelled, what is done is kept.

    Example:
        agentcloud cancel j1a2b3c4d
    """
    from agentcloud.tasks.submission import Submissions

    submissions = Submissions(address)
    was_running = submissions.cancel(job_id)
    job = submissions.wait(job_id, timeout_s=30.0)
    if as_json:
        typer.echo(json.dumps({"was_running": was_running, **job.to_dict()}))
    else:
        say(f"{job_id} is {job.state}" + ("" if was_running else " already"))


def list_command(address: AddressOpt = None, as_json: JsonOpt = False) -> None:
    """List the cluster's submitted jobs, the newest first.

    Example:
        agentcloud list --json
    """
    from agentcloud.tasks.submission import Submissions

    jobs = Submissions(address).list()
    if as_json:
        typer.echo(json.dumps([job.to_dict() for job in jobs]))
    elif jobs:
        stdout_console().print(jobs_table(jobs))
    else:
        say("no jobs yet")


def _print_job(job: SubmittedJob, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(job.to_dict()))
        return
    typer.echo(f"{job.job_id}: {job.state}")
    if job.record is not None:
        tasks = job.record["tasks"]
        typer.echo(
            f"{tasks['done']} of {tasks['total']} done, {tasks['failed']} failed, "
            f"{tasks['running']} running, ${job.record['cost_usd']}, "
            f"{show_duration(job.record['elapsed_s'])}"
        )
        if job.record["detail"]:
            typer.echo(job.record["detail"])
    elif job.status == "FAILED" and job.message:
        typer.echo(job.message)


async def _follow_logs(chunks: Any, as_json: bool) -> None:
    async for chunk in chunks:
        typer.echo(json.dumps({"logs": chunk}) if as_json else chunk, nl=as_json)


def _write_results(lines: Any, output: Path) -> int:
    count = 0
    beside = output.with_name(output.name + ".new")
    try:
        with beside.open("wb") as file:
            for line in lines:
                file.write(line)
                count += 1
        beside.replace(output)
    except OSError as error:
        raise ConfigError(f"cannot write it ({error.strerror})", where=str(output)) from None
    return count


def _check_agent_file(agent: str, working_dir: Path) -> None:
    # Only looked at: what it imports may be installed on the cluster alone.
    file, _, name = agent.rpartition(":")
    if not name or not file:
        raise ConfigError("write path/to/file.py:name", where=agent)
    if file.endswith(".py") and not (working_dir / file).is_file():
        raise ConfigError(
            f"no such file below {working_dir.absolute()}; see --working-dir", where=file
        )
