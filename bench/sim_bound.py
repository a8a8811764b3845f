"""What no policy can beat: a lower bound of the percentile of the time to first token.

Relaxed: every request meets an idle replica, at any number of them, whose cache holds whatever an
earlier request of the trace could have left there; its time is then what its own uncached prompt
takes, and a real replica, that also works for others, cannot need less. Clairvoyant: the hosted
model's noise is known beforehand, its limits do not bind, and as many requests as the hosted money
allows go there where that is sooner. What is left over the threshold is made as small as it gets,
so for the same or less hosted money no policy has a smaller percentile.

The bound looks at no queue: at a load that fills the fleet it lies below what can be reached.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.sim_replica import Speed
from bench.sim_traces import BLOCK_TOKENS, Arrival
from bench.sim_world import HostedModel


def alone(arrivals: Sequence[Arrival], speed: Speed) -> list[float]:
    """Each request's time to first token on an idle replica with the best of caches, seconds."""
    seen: set[int] = set()
    times = []
    for arrival in arrivals:
        hits = 0
        for block in arrival.blocks:
            if block not in seen:
                break
            hits += 1
        whole = arrival.prompt_tokens // BLOCK_TOKENS
        cached = min(hits * BLOCK_TOKENS, arrival.prompt_tokens - 1)
        times.append(speed.alone_s(arrival.prompt_tokens, cached))
        seen.update(arrival.blocks[:whole])
    return times


def bound_s(
    arrivals: Sequence[Arrival],
    speed: Speed,
    fraction: float,
    hosted: HostedModel | None = None,
    seed: int = 1,
    hosted_usd: float = 0.0,
) -> float:
    """The bound of one percentile.

    Args:
        arrivals: the trace.
        speed: of a replica.
        fraction: 0.99 for p99.
        hosted: the hosted model; None: there is none.
        seed: of its noise, the run's own.
        hosted_usd: what may be spent on it.
    """
    local = alone(arrivals, speed)
    late = len(local) - 1 - rank(len(local), fraction)
    if hosted is None or hosted_usd <= 0.0:
        return sorted(local)[len(local) - 1 - late]
    there = [
        (hosted.times_s(key, arrival, seed)[0], hosted.cost_usd(arrival))
        for key, arrival in enumerate(arrivals)
    ]
    times = sorted({*local, *(first_s for first_s, _ in there)})
    low, high = 0, len(times) - 1
    while low < high:
        middle = (low + high) // 2
        if _too_slow(local, there, times[middle], hosted_usd) <= late:
            high = middle
        else:
            low = middle + 1
    return times[low]


def rank(count: int, fraction: float) -> int:
    """Index of a percentile among `count` sorted values (nearest rank)."""
    return min(count - 1, max(0, math.ceil(fraction * count) - 1))


def _too_slow(
    local: Sequence[float],
    there: Sequence[tuple[float, float]],
    limit_s: float,
    hosted_usd: float,
) -> int:
    """How many stay over a limit when the money goes to those cheapest to bring below it."""
    over, prices = 0, []
    for own_s, (first_s, usd) in zip(local, there, strict=True):
        if own_s > limit_s:
            over += 1
            if first_s <= limit_s:
                prices.append(usd)
    left_usd = hosted_usd
    for usd in sorted(prices):
        left_usd -= usd
        if left_usd < 0.0:
            break
        over -= 1
    return over
