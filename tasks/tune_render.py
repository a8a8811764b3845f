"""The cost/quality curve for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich.table import Table

from agentcloud.tasks.money import show_usd
from agentcloud.tasks.tune import Point, Rule, Trial, outcome

#: Thresholds shown, evenly over the curve; `--json` has all.
_ROWS = 12


def tune_table(
    points: Sequence[Point],
    dear: Point,
    chosen: Point,
    test: Sequence[Trial],
    tiers: tuple[str, str],
    signal: str,
) -> Table:
    """A row for each tier alone and for some thresholds, on both halves."""
    table = Table(
        title=f"{tiers[0]} -> {tiers[1]} by {signal}: {dear.tasks} tasks to choose on, "
        f"{len(test)} held out (quality with its 95% interval)",
        title_justify="left",
    )
    table.add_column("rule")
    for heading in ("threshold", "escalated", "per 1,000", "quality"):
        table.add_column(heading, justify="right")
    for heading in ("held out: escalated", "per 1,000", "quality"):
        table.add_column(heading, justify="right")
    names = {Rule.CHEAP: tiers[0], Rule.THRESHOLD: "threshold", Rule.DEAR: f"{tiers[1]} alone"}
    for point in (*_shown(points, chosen), dear):
        held_out = outcome(test, point.rule, point.threshold)
        is_chosen = point == chosen
        table.add_row(
            names[point.rule] + (" <- chosen" if is_chosen else ""),
            "" if point.threshold is None else f"{point.threshold:.4g}",
            *_cells(point),
            *_cells(held_out),
            style="bold green" if is_chosen else None,
        )
    return table


def verdict(report: Mapping[str, Any]) -> list[str]:
    """The choice in words, and what is to be known of it."""
    chosen, dear = report["chosen"]["held_out"], report["dear_alone"]["held_out"]
    cost, of_dear = Decimal(chosen["usd_per_task"]), Decimal(dear["usd_per_task"])
    share = f", {cost / of_dear:.1%} of {report['tiers'][1]} alone" if of_dear else ""
    lines = [
        f"held out: {chosen['quality']:.1%} right for {show_usd(cost * 1000)} per 1,000{share}, "
        f"which is {dear['quality']:.1%} right"
    ]
    low, high = chosen["quality_95"]
    aim = report["at_least_quality"] * dear["quality"]
    if low < aim:
        lines.append(
            f"unsure: the sample is too small to tell it from the {aim:.1%} asked for "
            f"({low:.1%} to {high:.1%}); give more labelled inputs"
        )
    if report["left_out"]:
        lines.append(f"left out: {report['left_out']} that failed: {report['why_left_out']}")
    return lines


def _shown(points: Sequence[Point], chosen: Point) -> list[Point]:
    if len(points) <= _ROWS:
        return list(points)
    step = (len(points) - 1) / (_ROWS - 1)
    picked = {round(step * row) for row in range(_ROWS)}
    picked |= {index for index, point in enumerate(points) if point == chosen}
    return [points[index] for index in sorted(picked)]


def _cells(point: Point) -> tuple[str, str, str]:
    interval = point.interval
    return (
        f"{point.escalated / point.tasks:.0%}",
        show_usd(point.usd_per_task * 1000),
        f"{point.quality:.1%} ({interval.low:.0%}-{interval.high:.0%})",
    )
