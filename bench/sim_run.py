"""One run of the simulator: which trace, fleet, load and policy -> its figures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from agentcloud.cluster.contracts import Policy
from bench.sim_bound import bound_s, rank
from bench.sim_core import Core, deadline_s
from bench.sim_errors import prediction_errors
from bench.sim_policies import OTHERS
from bench.sim_replica import H100_8B
from bench.sim_traces import Arrival, read_trace
from bench.sim_world import HostedModel, World

USD_PER_GPU_HOUR: Final = Decimal("2.5")
OURS: Final = "ours"
SEED: Final = 1
#: Fleet whose hosted account has the limits of `HostedModel`; they grow with the fleet.
BASE: Final = 8
#: Keeps the block ids of superposed copies of a trace apart.
_APART: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Job:
    """One run.

    Attributes:
        rate: arrivals a second, all together; None: all at once.
        policy: a name of `OTHERS`, or `OURS` with `ours`.
        most: of the trace's requests; None: all.
        hosted: whether the hosted model is there.
    """

    trace: Path
    replicas: int
    rate: float | None
    policy: str
    hosted: bool = False
    ours: Policy = Policy.BALANCED
    usd_per_hour_waited: float = 1.0
    deadline: bool = False
    most: int | None = None

    @property
    def label(self) -> str:
        """Its name in tables and plots."""
        name = self.policy
        if name == OURS:
            name = f"ours {self.ours}"
            if self.usd_per_hour_waited != 1.0:
                name = f"ours ${self.usd_per_hour_waited:g}/h"
            name += " deadlines" if self.deadline else ""
        return name + (" + hosted" if self.hosted else "")


def run(job: Job) -> dict[str, Any]:
    """Simulate it."""
    arrivals = load(job.trace, job.replicas, job.most)
    if job.rate is None:
        arrivals = [replace(each, at_s=0.0) for each in arrivals]
        speedup = 1.0
    else:
        speedup = job.rate * arrivals[-1].at_s / len(arrivals)
    hosted = hosted_for(job.replicas) if job.hosted else None
    world = World(arrivals, job.replicas, H100_8B, hosted, speedup, SEED)
    errors = None
    if job.policy == OURS:
        core = Core(
            world, job.ours, USD_PER_GPU_HOUR, job.usd_per_hour_waited, deadline=job.deadline
        )
        world.run(core, core.report)
        errors = prediction_errors(world.results, core.predicted)
    else:
        world.run(OTHERS[job.policy](world, SEED))
    found = figures(world)
    if errors is not None:
        found["errors"] = errors
    return {"label": job.label, "policy": job.policy, "hosted": job.hosted, **found}


def figures(world: World) -> dict[str, Any]:
    """What came of a run.

    The fleet is paid for from the first arrival to the last, which is alike for every policy. Only
    ours with deadlines leaves requests unanswered: those count as out of time, and in no time.
    """
    results = world.results
    ttft = sorted(done.first_s - done.arrived_s for done in results)
    total = sorted(done.end_s - done.arrived_s for done in results)
    met = sum(
        done.end_s - done.arrived_s <= deadline_s(world.arrivals[done.key]) for done in results
    )
    replicas = list(world.replicas.values())
    hours = world.arrivals[-1].at_s / world.rate / 3600.0
    gpu_usd = len(replicas) * float(USD_PER_GPU_HOUR) * hours
    hosted_usd = sum(done.cost_usd for done in results)
    prompt = sum(each.prompt_tokens for each in replicas)
    found: dict[str, Any] = {"requests": len(results)}
    for name, values in (("ttft", ttft), ("total", total)):
        for percent in (50, 95, 99):
            found[f"{name}_p{percent}_s"] = values[rank(len(values), percent / 100)]
    return {
        **found,
        "deadlines_met": met / len(world.arrivals),
        "unanswered": len(world.unanswered),
        "gpu_usd": gpu_usd,
        "hosted_usd": hosted_usd,
        "usd": gpu_usd + hosted_usd,
        "hosted_calls": world.hosted_calls,
        "refusals": world.refusals,
        "prefix_hit_rate": sum(each.hit_tokens for each in replicas) / prompt if prompt else 0.0,
        "requests_per_s": len(results) / max(done.end_s for done in results),
    }


def bound(trace: Path, replicas: int, most: int | None, hosted_usd: float) -> float:
    """The lower bound of p99 time to first token that goes with a run."""
    arrivals = load(trace, replicas, most)
    return bound_s(arrivals, H100_8B, 0.99, hosted_for(replicas), SEED, hosted_usd)


def hosted_for(replicas: int) -> HostedModel:
    """The hosted model with an account that suits the fleet."""
    base = HostedModel()
    return replace(
        base,
        requests_per_minute=max(1, base.requests_per_minute * replicas // BASE),
        input_tokens_per_minute=base.input_tokens_per_minute * replicas // BASE,
        output_tokens_per_minute=base.output_tokens_per_minute * replicas // BASE,
    )


@functools.lru_cache(maxsize=2)
def load(trace: Path, replicas: int, most: int | None) -> Sequence[Arrival]:
    """A trace for a fleet: as it is up to `BASE` replicas, above them in shifted copies.

    Each copy starts elsewhere in the trace, goes around its end, and has prefixes of its own.
    """
    arrivals = read_trace(trace)
    copies = max(1, replicas // BASE)
    if copies > 1:
        length_s = arrivals[-1].at_s
        arrivals = [
            Arrival(
                (each.at_s + copy * length_s / copies) % length_s,
                each.prompt_tokens,
                each.output_tokens,
                tuple(block + copy * _APART for block in each.blocks),
            )
            for copy in range(copies)
            for each in _within(arrivals, copy / copies, copies, most)
        ]
        arrivals.sort(key=lambda each: each.at_s)
    return arrivals[:most]


def _within(
    arrivals: Sequence[Arrival], shift: float, copies: int, most: int | None
) -> Sequence[Arrival]:
    """Of one copy, what can be among the first `most` requests (twice that, to be safe)."""
    length_s = arrivals[-1].at_s
    if most is None or 2 * most >= len(arrivals) * copies:
        return arrivals
    share = 2 * most / (len(arrivals) * copies)
    return [each for each in arrivals if (each.at_s / length_s + shift) % 1.0 <= share]
