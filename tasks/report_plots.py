"""The plots of a job's report, as SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from agentcloud.cluster.errors import ConfigError
from agentcloud.tasks.report_data import ReportData

_INK, _LINE = "#222222", "#2563eb"
_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#0891b2", "#ca8a04")
#: Models and errors that have a bar of their own.
_BARS = 8


def progress(data: ReportData) -> str:
    """Tasks ended over time."""

    def draw(axis: Any) -> None:
        ends = sorted(data.ends_unix_s.values)
        # A sample stands for all of them.
        scale = data.ends_unix_s.seen / len(ends)
        axis.step(
            [each - ends[0] for each in ends],
            [(n + 1) * scale for n in range(len(ends))],
            where="post",
            color=_LINE,
        )
        axis.set_xlabel("seconds since the first task ended")
        axis.set_ylabel("tasks ended")
        axis.set_ylim(bottom=0)

    return _svg(draw) if data.ends_unix_s.values else ""


def latency(data: ReportData) -> str:
    """Shares of calls by time to first token (dashed) and in all, a colour for each model."""
    models = [item for item in sorted(data.models.items()) if item[1].total_s.values][:_BARS]

    def draw(axis: Any) -> None:
        for number, (name, sums) in enumerate(models):
            colour = _COLOURS[number % len(_COLOURS)]
            for values, style, what in (
                (sums.ttft_s.values, "--", "first token"),
                (sums.total_s.values, "-", "whole call"),
            ):
                if values:
                    axis.ecdf(values, color=colour, linestyle=style, label=f"{name}: {what}")
        axis.set_xscale("log")
        for pick in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            pick("{x:g}")
        axis.set_xlabel("seconds")
        axis.set_ylabel("share of calls at most so long")
        axis.legend(fontsize=8)

    return _svg(draw) if models else ""


def cost(data: ReportData) -> str:
    """USD by model."""
    paid = sorted(
        ((name, float(sums.usd)) for name, sums in data.models.items()), key=lambda each: each[1]
    )[-_BARS:]

    def draw(axis: Any) -> None:
        bars = _bars(axis, [name for name, _ in paid], [usd for _, usd in paid], _LINE)
        axis.bar_label(bars, fmt="$%.4g", padding=3, fontsize=8)
        axis.margins(x=0.2)
        axis.set_xlabel("USD")

    return _svg(draw) if paid else ""


def errors(data: ReportData) -> str:
    """Failed tasks by kind of error."""
    found = data.errors.most_common(_BARS)[::-1]

    def draw(axis: Any) -> None:
        names, counts = [name for name, _ in found], [count for _, count in found]
        bars = _bars(axis, names, counts, "#dc2626")
        axis.bar_label(bars, padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.set_xlabel("failed tasks")

    return _svg(draw) if found else ""


def _bars(axis: Any, names: Sequence[str], values: Sequence[float], colour: str) -> Any:
    # Few bars stay as slim as many.
    axis.set_ylim(-1.0, max(len(names), 4))
    return axis.barh(names, values, height=0.6, color=colour)


def _svg(draw: Callable[[Any], None]) -> str:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("a report is drawn with matplotlib: install agentcloud[report]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "text.color": _INK}
    with matplotlib.rc_context(settings):
        sketch, axis = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
        try:
            draw(axis)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            text = io.StringIO()
            sketch.savefig(text, format="svg", metadata={"Date": None})
        finally:
            pyplot.close(sketch)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
