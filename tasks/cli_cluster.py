"""Cluster commands: up, down, endpoints, doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cli_options import FleetOpt, GcsAddressOpt, JsonOpt, say
from agentcloud.tasks.money import show_usd
from agentcloud.tasks.render import show_cached, show_duration, show_ms, stdout_console

if TYPE_CHECKING:
    from agentcloud.tasks.doctor import Check

_VERDICT_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def up_command(
    fleet: FleetOpt = Path("fleet.yaml"), address: GcsAddressOpt = None, as_json: JsonOpt = False
) -> None:
    """Start the scheduler and the fleet's replicas on a running Ray, and wait until they serve.

    They stay until `agentcloud down`. Examples:

        agentcloud up

        agentcloud up --fleet big.yaml --address 10.0.0.1:6379
    """
    import ray

    from agentcloud.cluster import lifecycle
    from agentcloud.cluster.config import load_fleet
    from agentcloud.tasks import fleet_up

    config = load_fleet(fleet)
    info = lifecycle.connect_ray(address)
    try:
        started = fleet_up.up(config, where=str(fleet), on_progress=say)
    finally:
        ray.shutdown()
    names = [spec.name for spec in started.endpoints]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "address": info.address,
                    "dashboard_url": info.dashboard_url,
                    "endpoints": names,
                    "seconds": round(started.seconds, 3),
                }
            )
        )
    else:
        say(f"up after {show_duration(started.seconds)}: {', '.join(names)}")
        if info.dashboard_url:
            say(f"dashboard: {info.dashboard_url}")


def down_command(address: GcsAddressOpt = None, as_json: JsonOpt = False) -> None:
    """Stop the fleet and the scheduler; the Ray cluster itself stays.

    Example:
        agentcloud down
    """
    import ray

    from agentcloud.cluster import lifecycle
    from agentcloud.tasks import fleet_up

    lifecycle.connect_ray(address)
    try:
        was_up = fleet_up.down()
    finally:
        ray.shutdown()
    if as_json:
        typer.echo(json.dumps({"was_up": was_up}))
    else:
        say("down" if was_up else "no fleet was up")


def endpoints_command(address: GcsAddressOpt = None, as_json: JsonOpt = False) -> None:
    """Show every endpoint: state, load, calls, tokens, speed, cost; and the response cache.

    Example:
        agentcloud endpoints --json
    """
    import ray

    from agentcloud.cluster import lifecycle
    from agentcloud.cluster.cache_port import find_cache
    from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME

    lifecycle.connect_ray(address)
    try:
        scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)
        snapshot = ray.get(scheduler.snapshot.remote(), timeout=30)
        cache = find_cache()
        snapshot["cache"] = None if cache is None else ray.get(cache.snapshot.remote(), timeout=30)
    except ValueError:
        raise ConfigError("no fleet is up on this cluster; `agentcloud up` starts one") from None
    finally:
        ray.shutdown()
    if as_json:
        typer.echo(json.dumps(snapshot, default=str))
    else:
        console = stdout_console()
        console.print(endpoints_table(snapshot["endpoints"]))
        if snapshot["cache"] is not None:
            console.print(cache_line(snapshot["cache"]))


def cache_line(shown: Mapping[str, Any]) -> str:
    """What the response cache did since it started, of its snapshot."""
    answered = shown["hits"] + shown["shared"]
    line = f"response cache: answered {answered:,} of {answered + shown['misses']:,} calls"
    if shown["hit_rate"] is not None:
        line += f" ({shown['hit_rate']:.0%})"
    line += f", saved {show_usd(Decimal(shown['saved_usd']))}"
    if shown["answers"] is not None:
        line += f"; keeps {shown['answers']:,} answers, {shown['bytes'] / 1e6:,.1f} MB"
    return line


def endpoints_table(endpoints: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per endpoint of the scheduler's snapshot."""
    table = Table()
    table.add_column("endpoint", overflow="fold")
    table.add_column("state")
    headings = (
        "load",
        "calls",
        "tokens in",
        "cached",
        "tokens out",
        "TTFT p50",
        "p95",
        "tokens/s",
        "cost",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in endpoints.items():
        totals = row["totals"]
        table.add_row(
            name,
            row["standing"]
            if row["why"] == row["standing"]
            else f"{row['standing']}: {row['why']}",
            f"{row['inflight']}/{row['concurrency']}",
            f"{totals['calls']:,}",
            f"{_prompt_tokens(totals):,}",
            show_cached(
                totals["cache_read_tokens"], _prompt_tokens(totals), Decimal(totals["saved_usd"])
            ),
            f"{totals['output_tokens']:,}",
            show_ms(totals["ttft_p50_s"]) + _off_by(totals.get("ttft_error_p50")),
            show_ms(totals["ttft_p95_s"]),
            f"{totals['tokens_per_s']:,.1f}",
            show_usd(Decimal(totals["cost_usd"]))
            + (f" + {totals['unknown_costs']} unknown" if totals["unknown_costs"] else ""),
        )
    return table


def _off_by(error: float | None) -> str:
    """Median error of the predicted time to first token."""
    return "" if error is None else f" ±{error:.0%}"


def _prompt_tokens(totals: Mapping[str, int]) -> int:
    kinds = ("input_tokens", "cache_write_tokens", "cache_read_tokens")
    return sum(totals[kind] for kind in kinds)


def doctor_command(
    fleet: FleetOpt = Path("fleet.yaml"), address: GcsAddressOpt = None, as_json: JsonOpt = False
) -> None:
    """Find what is wrong with this machine, this fleet file, these keys and the cluster.

    Exit status 1 when a check fails; a warning alone is 0. Examples:

        agentcloud doctor

        agentcloud doctor --address auto --json
    """
    from agentcloud.tasks.doctor import Verdict, check_fleet_file, check_machine
    from agentcloud.tasks.doctor_cluster import check_cluster

    checks = check_machine()
    of_fleet, config = check_fleet_file(fleet)
    checks += of_fleet
    checks += check_cluster(address, config)
    if as_json:
        typer.echo(json.dumps([check.to_dict() for check in checks]))
    else:
        stdout_console().print(_checks_table(checks))
    failed = any(check.verdict is Verdict.FAIL for check in checks)
    raise typer.Exit(1 if failed else 0)


def _checks_table(checks: Sequence[Check]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for check in checks:
        style = _VERDICT_STYLES[check.verdict]
        text = check.saw if check.remedy is None else f"{check.saw}\n-> {check.remedy}"
        table.add_row(f"[{style}]{check.verdict}[/]", check.name, text)
    return table
