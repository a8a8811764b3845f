"""Our scheduler's own core against what users have today, on public traces, simulated.

`python -m bench.simulate [--trace FILE ...] [--loads ...] [--fleets ...] [--quick] [--json]`.
Replicas are `sim_replica.py`'s, the hosted model, its limits and prices `sim_world.py`'s; time is
simulated, so the figures do not depend on the machine. Load is the share of the requests a second
that the fleet ends when all of the trace comes at once, sent to the least busy replica. A fleet is
paid for as long as requests come. Every other policy runs with the replicas alone and with the
hosted model as one more deployment; ours runs at several values of an hour waited, which draw its
line of cost and time.

At 64 and 1,000 replicas shifted copies of the trace are superposed and the first `_MOST` requests
are played: at 1,000 that is some twenty a replica, which start with an empty fleet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agentcloud.cluster.contracts import Policy
from bench import report
from bench.sim_plot import plot
from bench.sim_policies import OTHERS
from bench.sim_run import BASE, OURS, Job, bound, run
from bench.sim_traces import TraceError, read_trace

LOADS: Final = (0.5, 0.8, 0.95, 1.1)
AT: Final = 0.8
FLEETS: Final = (1, 64, 1000)
#: USD for an hour waited; the three policies are 0.05, 1 and 100 of these.
SWEEP: Final = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 40.0)
TRACES: Final = ("azure_llm_2023_conv.csv", "mooncake_conversation.jsonl")
PROCESSES: Final = 2
_MOST: Final = 20_000
_QUICK_MOST: Final = 3_000
_HALVINGS: Final = 4

Run = dict[str, Any]


def jobs_at(trace: Path, replicas: int, rate: float, most: int | None) -> list[Job]:
    """Every policy at one load."""
    base = Job(trace, replicas, rate, OURS, most=most)
    others = [
        replace(base, policy=name, hosted=hosted) for name in OTHERS for hosted in (False, True)
    ]
    # With one class of equal replicas there is nothing to trade money for: the three are one.
    return [*others, base, *(replace(base, hosted=True, ours=policy) for policy in Policy)]


def measure(
    trace: Path, loads: Sequence[float], fleets: Sequence[int], quick: bool, pool: Executor
) -> dict[str, Any]:
    """All runs of one trace, by load at `BASE` replicas, by fleet at 80% load."""
    most = _QUICK_MOST if quick else None
    at_once = [Job(trace, BASE, None, name, most=most) for name in (*OTHERS, OURS)]
    if quick:
        at_once = [job for job in at_once if job.policy in ("least_busy", OURS)]
    saturated = {found["policy"]: found["requests_per_s"] for found in pool.map(run, at_once)}
    capacity = saturated["least_busy"] / BASE
    plan: dict[str, list[Job]] = {
        f"load {load:g}": jobs_at(trace, BASE, load * capacity * BASE, most)
        for load in sorted({AT, *loads})
    }
    base = Job(trace, BASE, AT * capacity * BASE, OURS, True, most=most)
    plan["sweep"] = [replace(base, usd_per_hour_waited=value) for value in SWEEP]
    plan["deadlines"] = [replace(base, deadline=True)]
    for replicas in fleets:
        part = None if replicas <= BASE else _MOST
        plan[f"fleet {replicas}"] = jobs_at(trace, replicas, AT * capacity * replicas, part)
    futures = {name: [pool.submit(run, job) for job in jobs] for name, jobs in plan.items()}
    runs = {name: [each.result() for each in found] for name, found in futures.items()}
    best = min(others(runs[f"load {AT:g}"]), key=lambda each: each["ttft_p99_s"])
    runs["sweep"] += _halve(base, runs, best["usd"], pool)
    return {
        "requests": len(read_trace(trace)[:most]),
        "capacity_requests_per_s": capacity,
        "throughput_at_saturation": saturated,
        "runs": runs,
        **compare(trace, runs, best, most),
    }


def _halve(base: Job, runs: dict[str, list[Run]], usd: float, pool: Executor) -> list[Run]:
    """Runs of ours between the dearest below a cost and the cheapest above it."""
    known = sorted(
        [(1.0, next(each for each in ours(runs[f"load {AT:g}"]) if each["hosted"])["usd"])]
        + [(value, each["usd"]) for value, each in zip(SWEEP, runs["sweep"], strict=True)]
    )
    below = [value for value, cost in known if cost <= usd]
    above = [value for value, cost in known if cost > usd]
    if not below or not above:
        return []
    low, high, found = max(below), min(above), []
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        each = pool.submit(run, replace(base, usd_per_hour_waited=round(middle, 3))).result()
        found.append(each)
        low, high = (middle, high) if each["usd"] <= usd else (low, middle)
    return found


def ours(runs: Sequence[Run]) -> list[Run]:
    """Ours among the runs of a load."""
    return [each for each in runs if each["policy"] == OURS]


def others(runs: Sequence[Run]) -> list[Run]:
    """The others among them."""
    return [each for each in runs if each["policy"] != OURS]


def compare(trace: Path, runs: dict[str, list[Run]], best: Run, most: int | None) -> dict[str, Any]:
    """Our best run at the best other's cost or below; the bound; who beats us at both."""
    mine = [*ours(runs[f"load {AT:g}"]), *runs["sweep"]]
    chosen = min(
        (each for each in mine if each["usd"] <= best["usd"] + 1e-9),
        key=lambda each: each["ttft_p99_s"],
    )
    floor_s = bound(trace, BASE, most, chosen["hosted_usd"])
    beaten = [
        {"at": name, "other": other["label"], "ours": each["label"]}
        for name, found in runs.items()
        if name.startswith("load")
        for other in others(found)
        for each in ours(found)
        if other["usd"] < each["usd"] and other["ttft_p99_s"] < each["ttft_p99_s"]
    ]
    return {
        "best_other": best,
        "ours_at_its_cost": chosen,
        "bound_p99_ttft_s": floor_s,
        "bound_local_p99_ttft_s": bound(trace, BASE, most, 0.0),
        "vs_best": best["ttft_p99_s"] / chosen["ttft_p99_s"],
        "vs_bound": chosen["ttft_p99_s"] / floor_s,
        "dominated": beaten,
    }


def ratios(stem: str, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, float]]]:
    """The bounded figures: either of the first two is to hold, so the one that holds is bounded."""
    errors = ours(found["runs"][f"load {AT:g}"])[-1]["errors"]["all"]
    values = {
        f"{stem}.p99_ttft_vs_best_80": found["vs_best"],
        f"{stem}.vs_bound": found["vs_bound"],
        f"{stem}.dominated": len({(each["at"], each["other"]) for each in found["dominated"]}),
        f"{stem}.ttft_error_p50": errors["ttft_ours_p50"],
        f"{stem}.ttft_error_vs_average": errors["ttft_ours_p50"] / errors["ttft_average_p50"],
        f"{stem}.per_token_error_p50": errors["per_token_ours_p50"],
        f"{stem}.per_token_error_vs_average": (
            errors["per_token_ours_p50"] / errors["per_token_average_p50"]
        ),
    }
    best, floor = found["vs_best"] >= 2.0, found["vs_bound"] <= 1.2
    bounds = {
        f"{stem}.dominated": ("<=", 0.0),
        f"{stem}.ttft_error_p50": ("<=", 0.25),
        f"{stem}.ttft_error_vs_average": ("<=", 1.0),
        f"{stem}.per_token_error_p50": ("<=", 0.25),
        f"{stem}.per_token_error_vs_average": ("<=", 1.0),
    }
    if best or not floor:
        bounds[f"{stem}.p99_ttft_vs_best_80"] = (">=", 2.0)
    if floor or not best:
        bounds[f"{stem}.vs_bound"] = ("<=", 1.2)
    return values, bounds


def show(stem: str, found: dict[str, Any]) -> None:
    """Tables of one trace."""
    columns = ("ttft p50 s", "p95", "p99", "total p50 s", "p99", "in time", "USD", "hosted", "hits")
    keys = ("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "total_p50_s", "total_p99_s")
    for name, runs in found["runs"].items():
        rows = [
            (
                each["label"],
                *(each[key] for key in keys),
                f"{each['deadlines_met']:.1%}",
                f"{each['usd']:.2f}",
                f"{each['hosted_usd']:.2f}",
                f"{each['prefix_hit_rate']:.1%}",
            )
            for each in sorted(runs, key=lambda each: each["usd"])
        ]
        report.table(f"{stem}, {name}", ("policy", *columns), rows)
    throughput = found["throughput_at_saturation"].items()
    report.table(f"{stem}, all at once on {BASE} replicas", ("policy", "requests/s"), [*throughput])
    errors = ours(found["runs"][f"load {AT:g}"])[-1]["errors"]
    names = [f"{what}_{who}" for what in ("ttft", "per_token") for who in ("ours", "average")]
    report.table(
        f"{stem}, relative errors of predictions at 80% load, latency (median / p90)",
        ("endpoints", "calls", *names),
        [
            (kind, row["calls"], *(_pair(row[f"{name}_p50"], row[f"{name}_p90"]) for name in names))
            for kind, row in errors.items()
        ],
    )
    for each in found["dominated"]:
        print(f"{stem}, {each['at']}: {each['other']} beats {each['ours']} at cost and at p99")


def _pair(median: float | None, p90: float | None) -> str:
    return "-" if median is None or p90 is None else f"{median:.2f} / {p90:.2f}"


def find_traces(named: Sequence[Path]) -> list[Path]:
    """The traces to play.

    Raises:
        TraceError: one is not there, or cannot be read.
    """
    if not named:
        beside = Path(__file__).resolve().parents[2] / "shared" / "traces"
        folder = Path(os.environ.get("AGENTCLOUD_TRACES", beside))
        named = [folder / name for name in TRACES]
        if not all(path.exists() for path in named):
            raise TraceError(
                f"{folder}: {' or '.join(TRACES)} is not there; set AGENTCLOUD_TRACES to the "
                "folder that holds them, or name files with --trace"
            )
    for path in named:
        if len(read_trace(path)) < 2:
            raise TraceError(f"{path}: one request makes no load; a trace needs two at least")
    return list(named)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print, write, plot; 1 when a bound is missed, 2 when there is no trace."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.simulate",
        description="Simulate routing policies on request traces.",
        epilog="example: python -m bench.simulate --trace my.jsonl --quick",
    )
    parser.add_argument("--trace", action="append", type=Path, default=[], metavar="FILE")
    parser.add_argument("--loads", nargs="*", type=float, default=LOADS, metavar="SHARE")
    parser.add_argument("--fleets", nargs="*", type=int, default=FLEETS, metavar="REPLICAS")
    parser.add_argument("--quick", action="store_true", help="a part, at 80%% load, in a minute")
    parser.add_argument("--json", action="store_true", help="figures as JSON, no tables")
    told = parser.parse_args(arguments)
    try:
        traces = find_traces(told.trace)
    except TraceError as error:
        print(error, file=sys.stderr)
        return 2
    loads, fleets = ((AT,), ()) if told.quick else (told.loads, told.fleets)
    figures: dict[str, Any] = {}
    values: dict[str, Any] = {}
    bounds: dict[str, tuple[str, float]] = {}
    with ProcessPoolExecutor(PROCESSES) as pool:
        for trace in traces:
            found = figures[trace.stem] = measure(trace, loads, fleets, told.quick, pool)
            more, limits = ratios(trace.stem, found)
            values |= more
            bounds |= limits
            if not told.json:
                show(trace.stem, found)
    name = "simulate_quick" if told.quick else "simulate"
    path = report.write(name, figures, values, bounds)
    image = plot(figures, f"load {AT:g}", path.with_suffix(".png"))
    if told.json:
        print(json.dumps({"figures": figures, "ratios": values, "bounds": bounds}))
        return 0
    kept = report.ratios_table(values, bounds)
    print(path, image, sep="\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
