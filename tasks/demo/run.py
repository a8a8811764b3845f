"""The demo: a real job from nothing, with answers that a person can check."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import datetime
from pathlib import Path

import typer

from agentcloud.cluster.endpoints import hosted_name, replica_name
from agentcloud.cluster.errors import ConfigError
from agentcloud.cluster.sandbox.process import SandboxProcess
from agentcloud.tasks.cli_run import follow_job
from agentcloud.tasks.demo.accuracy import accuracy_table, expectations, scores
from agentcloud.tasks.demo.fleet import (
    ACCOUNT,
    HOSTED_MODEL,
    LOCAL_MODEL,
    SANDBOX_MODEL,
    has_key,
    write_demo_fleet,
)
from agentcloud.tasks.demo.tickets import generate
from agentcloud.tasks.jobs import start_job
from agentcloud.tasks.render import ProgressView, stdout_console, summary_table
from agentcloud.tasks.results import read_results
from agentcloud.tasks.session import cluster_for_run, graceful_interrupts, terminate_as_interrupt
from agentcloud.tasks.spec import JobRecord, JobSpec, new_job_id

#: Tickets of the held-out wording, from a seed that training never saw.
HELD_OUT_SEED = 20_261_124


def run_demo(
    *, tasks: int, folder: Path, concurrency: int, dashboard: bool, stay: bool, as_json: bool
) -> int:
    """Run the demo as the command line's options say; returns the exit status.

    Raises:
        ConfigError: something is not there, or did not start.
    """
    started_s = time.monotonic()
    run_folder = _run_folder(folder)
    spec = _spec(run_folder, tasks, concurrency)
    with contextlib.ExitStack() as stack:
        view = stack.enter_context(ProgressView())
        stack.enter_context(terminate_as_interrupt())
        sandbox = None
        if not has_key():
            view.note(
                "no ANTHROPIC_API_KEY: a sandbox stands in for Anthropic; a local model "
                f"({SANDBOX_MODEL}) answers there at {HOSTED_MODEL}'s prices, nothing is paid"
            )
            sandbox = stack.enter_context(SandboxProcess(model=SANDBOX_MODEL))
        fleet = run_folder / "fleet.yaml"
        write_demo_fleet(fleet, sandbox.url if sandbox else None)
        info = stack.enter_context(
            cluster_for_run(address=None, fleet=fleet, dashboard=dashboard, on_progress=view.note)
        )
        if sandbox is not None:
            sandbox.wait()
        view.note(f"up after {time.monotonic() - started_s:.0f} s; dashboard: {info.dashboard_url}")
        interrupts = stack.enter_context(graceful_interrupts())
        job = start_job(spec, total=tasks)
        stack.callback(job.close)
        record = follow_job(job, view, interrupts)
        stack.callback(_print, record, spec, info.dashboard_url, as_json)
        if stay and not interrupts.count:
            view.note(f"up until Ctrl-C; dashboard: {info.dashboard_url}")
            while not interrupts.count:
                time.sleep(0.2)
    return 0 if record.done == tasks else 130 if interrupts.count else 1


def _run_folder(folder: Path) -> Path:
    path = folder / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot make it ({error.strerror})", where=str(path)) from None
    return path.absolute()


def _spec(run_folder: Path, tasks: int, concurrency: int) -> JobSpec:
    tickets = run_folder / "tickets.jsonl"
    with tickets.open("w") as file:
        for ticket in generate(tasks, seed=HELD_OUT_SEED, wording="held-out"):
            file.write(json.dumps(ticket.to_dict(), ensure_ascii=False) + "\n")
    return JobSpec(
        job_id=new_job_id(),
        agent="agentcloud.tasks.demo.second_opinion:second_opinion",
        input=tickets,
        output=run_folder / "results.jsonl",
        concurrency=concurrency,
    )


def _print(record: JobRecord, spec: JobSpec, dashboard_url: str | None, as_json: bool) -> None:
    """Endpoints, accuracy, and where everything lies."""
    results = list(read_results(spec.output)) if spec.output.exists() else []
    rows = scores(
        results,
        expectations(spec.input),
        {
            "small": replica_name(LOCAL_MODEL, 0),
            "large": hosted_name(ACCOUNT, HOSTED_MODEL),
        },
    )
    if as_json:
        report = record.to_dict() | {
            "accuracy": [row.to_dict() for row in rows],
            "results": str(spec.output),
            "dashboard_url": dashboard_url,
        }
        typer.echo(json.dumps(report, indent=2))
        return
    console = stdout_console()
    console.print(summary_table(record))
    if rows:
        console.print(accuracy_table(rows))
    console.print(f"results:   {spec.output}", soft_wrap=True, highlight=False)
    console.print(f"dashboard: {dashboard_url} (while it ran)", soft_wrap=True, highlight=False)
