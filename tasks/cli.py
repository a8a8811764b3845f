"""The `agentcloud` command.

Exit status: 0 success (every task done); 1 the job ended otherwise (tasks failed, stopped by its
budget, cancelled), or a cluster failed under it; 2 something the user can mend (an option, a file,
a key, a cluster that is not there); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from agentcloud.cluster.errors import AgentCloudError, AgentError, ConfigError
from agentcloud.cluster.logs import configure_logs
from agentcloud.cluster.plan_cli import plan_command
from agentcloud.tasks import (
    cli_alerts,
    cli_cluster,
    cli_demo,
    cli_explain,
    cli_forget,
    cli_jobs,
    cli_ledger,
    cli_metrics,
    cli_run,
    cli_tune,
)

app = typer.Typer(
    name="agentcloud",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors.", envvar="AGENTCLOUD_DEBUG")
    ] = False,
) -> None:
    """Run very many LLM agent tasks on your own vLLM replicas and Anthropic's API at once."""
    configure_logs("info" if debug else "warning")
    if debug:
        os.environ["AGENTCLOUD_DEBUG"] = "1"


app.command("run")(cli_run.run_command)
app.command("resume")(cli_ledger.resume_command)
app.command("pause")(cli_ledger.pause_command)
app.command("approvals")(cli_ledger.approvals_command)
app.command("approve")(cli_ledger.approve_command)
app.command("replay")(cli_ledger.replay_command)
app.command("report")(cli_ledger.report_command)
app.command("jobs")(cli_ledger.jobs_command)
app.command("forget")(cli_forget.forget_command)
app.command("submit")(cli_jobs.submit_command)
app.command("status")(cli_jobs.status_command)
app.command("logs")(cli_jobs.logs_command)
app.command("results")(cli_jobs.results_command)
app.command("cancel")(cli_jobs.cancel_command)
app.command("list")(cli_jobs.list_command)
app.command("up")(cli_cluster.up_command)
app.command("down")(cli_cluster.down_command)
app.command("endpoints")(cli_cluster.endpoints_command)
app.command("explain")(cli_explain.explain_command)
app.command("alerts")(cli_alerts.alerts_command)
app.command("metrics")(cli_metrics.metrics_command)
app.command("doctor")(cli_cluster.doctor_command)
app.command("tune")(cli_tune.tune_command)
app.command("plan")(plan_command)
app.command("demo")(cli_demo.demo_command)
app.command("sandbox")(cli_demo.sandbox_command)


def main() -> None:
    """Entry point: an error is one line on stderr, a traceback only with --debug."""
    try:
        app()
    except AgentCloudError as error:
        if os.environ.get("AGENTCLOUD_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


def exit_status(error: AgentCloudError) -> int:
    """2 for what a user can mend, 1 for the rest."""
    return 2 if isinstance(error, (ConfigError, AgentError)) else 1
