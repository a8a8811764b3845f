"""`agentcloud run`: a job from start to end in one command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentcloud.tasks.cascade_file import load_cascade
from agentcloud.tasks.cli_options import (
    AfterOpt,
    AgentArg,
    AttemptsOpt,
    BadInputOpt,
    BudgetOpt,
    CascadeOpt,
    ConcurrencyOpt,
    DeadlineOpt,
    ExtraAttemptsOpt,
    FleetOpt,
    InputOpt,
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
from agentcloud.tasks.render import ProgressView, stdout_console, summary_table
from agentcloud.tasks.spec import (
    EXTRA_ATTEMPTS,
    JobRecord,
    JobSpec,
    JobState,
    OnBadInput,
    OnUnknown,
    new_job_id,
)

if TYPE_CHECKING:
    from agentcloud.tasks.jobs import Job
    from agentcloud.tasks.session import Interrupts


def run_command(
    agent: AgentArg,
    input_file: InputOpt,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Results: JSONL, or for *.parquet a folder of Parquet files; tasks already in it "
            "are not done again. (default: INPUT.results.jsonl)",
        ),
    ] = None,
    budget: BudgetOpt = None,
    task_budget: TaskBudgetOpt = None,
    fleet: FleetOpt = Path("fleet.yaml"),
    address: Annotated[
        str | None,
        typer.Option(
            help="Use the fleet of a running cluster instead of one of this run's own: HOST:PORT "
            "or auto. (default: RAY_ADDRESS)"
        ),
    ] = None,
    concurrency: ConcurrencyOpt = 128,
    workers: WorkersOpt = 1,
    attempts: AttemptsOpt = 3,
    extra_attempts: ExtraAttemptsOpt = EXTRA_ATTEMPTS,
    task_timeout: TimeoutOpt = None,
    deadline: DeadlineOpt = None,
    on_bad_input: BadInputOpt = OnBadInput.STOP,
    cascade: CascadeOpt = None,
    after: AfterOpt = None,
    on_unknown: OnUnknownOpt = OnUnknown.RESEND,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed tasks of the results file again.")
    ] = False,
    key: KeyOpt = None,
    label: LabelOpt = None,
    priority: PriorityOpt = 0,
    dashboard: Annotated[bool, typer.Option(help="Run Ray's dashboard too.")] = True,
    as_json: JsonOpt = False,
) -> None:
    """Run an agent on every line of a file, on this machine or on a cluster it belongs to.

    Ctrl-C stops cleanly: what is done is kept, and the same command goes on from there. After a
    crash, `agentcloud resume JOB` does not even ask again what was answered. Examples:

        agentcloud run examples/triage.py:triage --input tickets.jsonl --budget 2usd

        agentcloud run agent.py:main -i rows.csv -o out.jsonl --concurrency 512 --workers 4

        agentcloud run agent.py:main -i tickets.jsonl --address auto --json

        agentcloud run agent.py:main -i tickets.jsonl --deadline 6h

        agentcloud run examples/triage.py:triage -i tickets.jsonl --cascade cascade.json

        agentcloud run agent.py:main -i tickets.jsonl --key nightly-2026-11-28   # safe to repeat

        agentcloud run agent.py:second -i first.results.jsonl --after j1a2b3c4d
    """
    spec = JobSpec(
        job_id=new_job_id(key),
        agent=agent,
        input=input_file.absolute(),
        output=(output or input_file.with_suffix(".results.jsonl")).absolute(),
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
        retry_failed=retry_failed,
        priority=priority,
        labels=labels_option(label),
        folder=Path.cwd(),
        cascade=load_cascade(cascade) if cascade is not None else None,
        after=tuple(after or ()),
    )
    run_job(spec, fleet=fleet, address=address, dashboard=dashboard, as_json=as_json)


def run_job(
    spec: JobSpec, *, fleet: Path, address: str | None, dashboard: bool, as_json: bool
) -> None:
    """Run a job from start to end, or go on with one; ends the command with its exit status.

    Raises:
        ConfigError: anything that a user can mend, before anything starts.
    """
    from agentcloud.tasks.after import looking, wait_for_jobs
    from agentcloud.tasks.jobs import preflight, start_job
    from agentcloud.tasks.session import (
        cluster_for_run,
        graceful_interrupts,
        terminate_as_interrupt,
    )

    if spec.after:  # first: their results may be this one's input
        check_agent(spec.agent, spec.folder)
        with terminate_as_interrupt(), looking(address, fleet) as look:
            wait_for_jobs(spec.after, look, on_wait=say)
    found = preflight(spec)
    check_agent(spec.agent, spec.folder)
    if found.nothing_to_do:
        _nothing_to_do(spec, found.total, as_json)
        return
    with ProgressView() as view, terminate_as_interrupt():
        if found.already_done:
            view.note(f"{found.already_done} of {found.total} are done already; going on")
        with cluster_for_run(
            address=address, fleet=fleet, dashboard=dashboard, on_progress=view.note
        ) as info:
            if info.dashboard_url:
                view.note(f"dashboard while it runs: {info.dashboard_url}")
            with graceful_interrupts() as interrupts:
                origin = {"command": "run", "fleet": str(fleet.absolute())}
                job = start_job(spec, total=found.total, origin=origin)
                view.note(f"after a crash: agentcloud resume {spec.job_id}")
                try:
                    record = follow_job(job, view, interrupts)
                finally:
                    job.close()
    _print_summary(record, as_json, dashboard_url=info.dashboard_url if address else None)
    if interrupts.count:
        raise typer.Exit(130)
    raise typer.Exit(job_exit_status(record))


def job_exit_status(record: JobRecord) -> int:
    """0: every input has a result that is done."""
    return 0 if record.state is JobState.DONE and record.failed == 0 else 1


def follow_job(job: Job, view: ProgressView, interrupts: Interrupts) -> JobRecord:
    """Show a job until it has ended; the first Ctrl-C cancels it."""
    asked = False

    def on_progress(record: JobRecord) -> None:
        nonlocal asked
        view.update(record)
        if interrupts.count and not asked:
            asked = True
            view.note("stopping: calls in flight are cancelled, what is done is kept")
            job.cancel()

    return job.wait(on_progress)


def check_agent(agent: str, folder: Path | None) -> None:
    """Load the agent here once too: a wrong name or a broken file costs no start of an engine."""
    from agentcloud.agents.agent import load_agent

    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    load_agent(agent)


def _nothing_to_do(spec: JobSpec, total: int, as_json: bool) -> None:
    record = JobRecord(
        job_id=spec.job_id,
        agent=spec.agent,
        state=JobState.DONE,
        output=str(spec.output),
        total=total,
        already_done=total,
    )
    if as_json:
        typer.echo(json.dumps(record.to_dict()))
    else:
        say(f"nothing to do: all {total} are in {spec.output} (--retry-failed redoes failed ones)")


def _print_summary(record: JobRecord, as_json: bool, *, dashboard_url: str | None) -> None:
    if as_json:
        typer.echo(json.dumps(record.to_dict()))
        return
    console = stdout_console()
    console.print(summary_table(record))
    if record.detail:
        console.print(f"{record.label}: {record.detail}", style="yellow", markup=False)
    console.print(f"results: {record.output}", markup=False, soft_wrap=True, highlight=False)
    if dashboard_url:
        console.print(f"dashboard: {dashboard_url}", markup=False, highlight=False)
