"""The plot of the simulation: cost against p99 time to first token, one panel a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot, ticker

_COLOURS: Final = {
    "round_robin": "#7f7f7f",
    "random": "#bcbd22",
    "least_busy": "#1f77b4",
    "power_of_two": "#17becf",
    "latency_based": "#9467bd",
    "prefix_aware": "#ff7f0e",
    "prefix_aware_10": "#8c564b",
}
_OURS: Final = "#d62728"


def plot(figures: dict[str, Any], load: str, path: Path) -> Path:
    """Draw it.

    Args:
        figures: trace -> what `simulate.measure` found.
        load: which load's runs.
        path: of the image.
    """
    sketch, axes = pyplot.subplots(
        1, len(figures), figsize=(7.5 * len(figures), 6.0), squeeze=False, layout="constrained"
    )
    for axis, (stem, found) in zip(axes[0], figures.items(), strict=True):
        _panel(axis, stem, found, load)
    sketch.savefig(path, dpi=110)
    pyplot.close(sketch)
    return path


def _panel(axis: Any, stem: str, found: dict[str, Any], load: str) -> None:
    runs = found["runs"][load]
    for name, colour in _COLOURS.items():
        for each in runs:
            if each["policy"] == name:
                axis.plot(
                    each["usd"],
                    each["ttft_p99_s"],
                    "o",
                    color=colour,
                    markersize=9,
                    markerfacecolor=colour if each["hosted"] else "white",
                    markeredgewidth=2,
                    label=None if each["hosted"] else name.replace("_", " "),
                )
    mine = [each for each in [*runs, *found["runs"]["sweep"]] if each["policy"] == "ours"]
    mine.sort(key=lambda each: (each["usd"], -each["ttft_p99_s"]))
    costs, times = [each["usd"] for each in mine], [each["ttft_p99_s"] for each in mine]
    axis.plot(costs, times, "s-", color=_OURS, markersize=5, label="ours, by value of an hour")
    _name_policies(axis, [each for each in runs if each["policy"] == "ours"])
    floor_s = found["bound_local_p99_ttft_s"]
    axis.axhline(floor_s, color="black", linestyle=":", label="bound, no hosted money spent")
    axis.plot([], [], "o", color="black", label="filled: with the hosted model")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.4, high)
    share = float(load.split()[1])
    axis.set_title(f"{stem}: {share:.0%} of saturation, 8 replicas")
    axis.set_xlabel("cost of the trace, USD (replicas and hosted model)")
    axis.set_ylabel("p99 time to first token, s")
    axis.grid(visible=True, which="both", alpha=0.25)
    # Plain figures: the range is often less than a power of ten.
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(ticker.FuncFormatter(minor))
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)


def minor(value: float, place: int) -> str:
    """A label for 2 and 5 of each power of ten."""
    first = f"{value:e}"[0]
    return f"{value:g}" if first in "25" else ""


def _name_policies(axis: Any, runs: list[dict[str, Any]]) -> None:
    """Name the three policies; those at one point share a label."""
    places: dict[tuple[float, float], list[str]] = {}
    for each in runs:
        if each["hosted"]:
            word = each["label"].split()[1]
            place = (round(each["usd"], 2), round(each["ttft_p99_s"], 2))
            places.setdefault(place, []).append(word)
    for (usd, time_s), words in places.items():
        axis.annotate(
            ", ".join(words),
            (usd, time_s),
            xytext=(-4, -28),
            textcoords="offset points",
            color=_OURS,
            fontsize=10,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": _OURS},
        )
