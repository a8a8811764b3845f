"""`agentcloud status` without a job: each model's replicas, their target and its reason."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.render import show_duration, stdout_console

if TYPE_CHECKING:
    from agentcloud.cluster.fleet_status import FleetStatus


def show_fleet(address: str | None, as_json: bool) -> None:
    """Print the fleet's models and replicas.

    Raises:
        ConfigError: no fleet is up, or the address is a dashboard's.
    """
    import ray

    from agentcloud.cluster import lifecycle

    if address is not None and address.startswith("http"):
        raise ConfigError(
            "the fleet's status is asked of the GCS: --address HOST:6379, or name a JOB",
            where=address,
        )
    lifecycle.connect_ray(address)
    try:
        status = lifecycle.fleet_status()
    finally:
        ray.shutdown()
    if as_json:
        typer.echo(json.dumps(fleet_json(status)))
        return
    console = stdout_console()
    console.print(models_table(status))
    for replica in status.replicas:
        note = f" ({replica.note})" if replica.note else ""
        old = "" if replica.is_current else ", former settings"
        console.print(f"{replica.name}: {replica.state}{old}{note}", highlight=False, markup=False)


def fleet_json(status: FleetStatus) -> dict[str, Any]:
    """The status as JSON has it."""
    return {
        "models": [asdict(each) for each in status.models],
        "replicas": [asdict(each) for each in status.replicas],
        "failure": status.failure,
    }


def models_table(status: FleetStatus) -> Table:
    """A row per model."""
    table = Table()
    table.add_column("model", overflow="fold")
    for heading in ("bounds", "target", "running", "starting", "pending", "draining"):
        table.add_column(heading, justify="right")
    table.add_column("since", justify="right")
    table.add_column("why", overflow="fold")
    for each in status.models:
        table.add_row(
            each.model,
            str(each.most) if each.least == each.most else f"{each.least} to {each.most}",
            *(
                str(count)
                for count in (
                    *(each.target, each.running, each.starting, each.pending),
                    each.draining,
                )
            ),
            show_duration(each.changed_s),
            f"cannot start: {each.problem}" if each.problem else each.reason,
        )
    return table
