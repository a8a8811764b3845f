"""The command that takes ended jobs out of the ledger."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cli_options import (
    AddressOpt,
    FleetOpt,
    JsonOpt,
    duration_option,
    say,
)
from agentcloud.tasks.render import stdout_console

if TYPE_CHECKING:
    from agentcloud.tasks.forget import ForgottenJob
    from agentcloud.tasks.ledger_wire import Forgotten

_MB = 1e6


def forget_command(
    jobs: Annotated[
        list[str] | None, typer.Argument(help="Ids of jobs that have ended.", metavar="JOB")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="All that ended so long ago: 30d, 12h.", metavar="TIME"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, delete nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="A named job may go that was cut off and that nothing will go on with. If it "
            "does run somewhere, out of this command's sight, it fails.",
        ),
    ] = False,
    fleet: FleetOpt = Path("fleet.yaml"),
    address: AddressOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Delete ended jobs from the ledger, with all that is recorded of them.

    Their results files stay. They cannot be resumed, replayed or reported on any more, and what
    other jobs recorded stays whole. An interrupted one goes on when the command is repeated.

    Examples:
        agentcloud forget j1a2b3c4d j5e6f7a8b

        agentcloud forget --older-than 30d --dry-run
    """
    from agentcloud.tasks.forget import forget_jobs

    if bool(jobs) == (older_than is not None):
        raise ConfigError("name jobs, or say --older-than 30d (`agentcloud jobs` lists them)")
    if force and not jobs:
        raise ConfigError("is for jobs that are named", where="--force")
    with Console(stderr=True).status("looking") as status:

        def show(job_id: str, counts: Forgotten) -> None:
            status.update(f"{job_id}: {counts.steps} steps, {counts.tasks} tasks")

        found = forget_jobs(
            jobs or [],
            address=address,
            fleet=fleet,
            older_than_s=duration_option(older_than, "--older-than"),
            dry_run=dry_run,
            force=force,
            on_page=show,
        )
    gone = sorted({*(jobs or [])} - {each.job.job_id for each in found})
    if as_json:
        told = {"jobs": [each.to_dict() for each in found], "not_there": gone, "dry_run": dry_run}
        typer.echo(json.dumps(told))
        return
    for job_id in gone:
        say(f"{job_id} is not in the ledger")
    if not found:
        say("no job ended so long ago")
        return
    stdout_console().print(_table(found, dry_run=dry_run))
    if dry_run:
        say("nothing was deleted")
    else:
        say(
            "the next jobs use this space again; to give SQLite's back to the disk, run "
            "VACUUM on the ledger's file while no job runs"
        )


def _table(found: Sequence[ForgottenJob], *, dry_run: bool) -> Table:
    """Jobs, one a row, and their sums."""
    headings = ["job", "state", "tasks", "steps", *([] if dry_run else ["freed MB"])]
    table = Table(show_footer=len(found) > 1)
    tasks, steps = (
        sum(getattr(each.counts, name) for each in found) for name in ("tasks", "steps")
    )
    freed = sum(each.counts.freed_bytes or 0 for each in found)
    feet = [f"{len(found)} jobs", "", str(tasks), str(steps), _megabytes(freed)]
    for heading, foot in zip(headings, feet, strict=False):
        justify: Literal["left", "right"] = "left" if heading in ("job", "state") else "right"
        table.add_column(heading, foot, justify=justify, overflow="fold")
    for each in found:
        counts = each.counts
        row = [each.job.job_id, each.job.state, str(counts.tasks), str(counts.steps)]
        table.add_row(*row, *([] if dry_run else [_megabytes(counts.freed_bytes or 0)]))
    return table


def _megabytes(count: int) -> str:
    return f"{count / _MB:.1f}"
