"""`agentcloud alerts`: what has become worse, with its evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.cli_options import GcsAddressOpt, JsonOpt
from agentcloud.tasks.render import show_duration, show_ms, stdout_console

_TIMEOUT_S = 30.0
_EVERY_S = 2.0


def alerts_command(
    address: GcsAddressOpt = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing, until Ctrl-C.")] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Show what is normal for every series, too.")
    ] = False,
    fail: Annotated[
        bool, typer.Option("--fail", help="Exit status 1 while an alarm is active.")
    ] = False,
    as_json: JsonOpt = False,
) -> None:
    """Show what has become slower, dearer or less reliable: active alarms and recent ones.

    A series is an endpoint, an agent and a measure; docs/alarms.md says how it is tested. Examples:

        agentcloud alerts

        agentcloud alerts --watch

        agentcloud alerts --json --fail
    """
    import ray

    from agentcloud.cluster import lifecycle
    from agentcloud.cluster.contracts import RAY_NAMESPACE, SCHEDULER_NAME

    lifecycle.connect_ray(address)
    try:
        scheduler = ray.get_actor(SCHEDULER_NAME, namespace=RAY_NAMESPACE)

        def report() -> dict[str, Any]:
            told: dict[str, Any] = ray.get(
                scheduler.alarms.remote(baselines=baselines), timeout=_TIMEOUT_S
            )
            return told

        told = report()
        if watch and not as_json:
            told = _watch(report, told)
        while watch and as_json:
            typer.echo(json.dumps(told))
            time.sleep(_EVERY_S)
            told = report()
    except ValueError:
        raise ConfigError("no fleet is up on this cluster; `agentcloud up` starts one") from None
    except KeyboardInterrupt:
        pass
    finally:
        ray.shutdown()
    if as_json and not watch:
        typer.echo(json.dumps(told))
    elif not watch:
        stdout_console().print(alerts_view(told, time.time()))
    raise typer.Exit(1 if fail and told["active"] else 0)


def _watch(report: Any, told: dict[str, Any]) -> dict[str, Any]:
    from rich.live import Live

    with Live(alerts_view(told, time.time()), console=stdout_console()) as live:
        try:
            while True:
                time.sleep(_EVERY_S)
                told = report()
                live.update(alerts_view(told, time.time()))
        except KeyboardInterrupt:
            return told


def alerts_view(told: Mapping[str, Any], now_s: float) -> RenderableType:
    """Alarms as a person reads them."""
    shown: list[RenderableType] = []
    alarms = [*told["active"], *told["recent"]]
    if not told["enabled"]:
        shown.append(Text("alarms are switched off: fleet.yaml, `alarms: {enabled: false}`"))
    elif not alarms:
        shown.append(Text(f"no alarm, {told['windows']:,} windows looked at"))
    if alarms:
        shown.append(_alarms_table(alarms, now_s))
    if "baselines" in told:
        shown.append(_baselines_table(told["baselines"]))
    webhook = told["webhook"]
    if webhook is not None and webhook["lost"]:
        shown.append(Text(f"{webhook['lost']} did not reach the webhook at {webhook['host']}"))
    return Group(*shown)


def _alarms_table(alarms: Sequence[Mapping[str, Any]], now_s: float) -> Table:
    table = Table()
    table.add_column("alarm")
    table.add_column("endpoint", overflow="fold")
    table.add_column("agent", overflow="fold")
    table.add_column("measure")
    for heading in ("normal", "now", "worse", "seen in", "for"):
        table.add_column(heading, justify="right")
    for alarm in alarms:
        evidence, measure = alarm["evidence"], alarm["measure"]
        end_s = alarm["ended"] or now_s
        table.add_row(
            "[bold red]active[/]" if alarm["active"] else alarm["how_it_ended"],
            alarm["endpoint"],
            alarm["kind"] or "-",
            measure,
            f"{show_value(measure, evidence['baseline'])} {_spread(measure, evidence['spread'])}",
            show_value(measure, evidence["observed"]),
            f"{evidence['ratio']:.2f}x",
            f"{evidence['windows']} windows, {evidence['calls']:,} calls",
            show_duration(max(0.0, end_s - alarm["since"])),
        )
    return table


def _baselines_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="what is normal")
    table.add_column("endpoint", overflow="fold")
    table.add_column("agent", overflow="fold")
    table.add_column("measure")
    table.add_column("normal", justify="right")
    table.add_column("windows", justify="right")
    for row in sorted(rows, key=lambda row: (row["endpoint"], row["kind"], row["measure"])):
        measure, normal = row["measure"], row["baseline"]
        known = normal is not None
        table.add_row(
            row["endpoint"],
            row["kind"] or "-",
            measure,
            f"{show_value(measure, normal)} {_spread(measure, row['spread'])}"
            if known
            else "learning",
            f"{row['windows']:,}",
        )
    return table


def show_value(measure: str, value: float) -> str:
    """A value in its measure's unit."""
    if measure.endswith("_rate"):
        return f"{value:.2%}"
    if measure.endswith("_usd"):
        return f"${value:.4g}"
    return show_ms(value) if measure == "ttft_s" else f"{value:,.4g}"


def _spread(measure: str, spread: float) -> str:
    return f"± {spread:.2%}" if measure.endswith("_rate") else f"×/÷ {spread:.2f}"
