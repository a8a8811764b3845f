"""Pure: the scheduler's totals, looked at every few seconds -> what each local model has to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agentcloud.cluster.demand import Demand, ModelDemand

#: Time constant of the rates, seconds.
_RATE_S: Final = 30.0
#: Hosted calls are an alternative to a model's own if so many of these could have been one.
_REPLACEABLE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What one model has to do.

    Attributes:
        waiting: requests that wait for it.
        stranded: those of them that nothing else could serve now.
        arrivals_per_s: calls that come to it.
        calls_per_s: what one replica takes.
        hosted_usd: price of such a call at a hosted model; None: there is none that could.
        spilled_per_s: calls that went to a hosted model though it was able.
        spilled_usd_per_s: what they cost.
        is_quiet: nothing came since the last look, nothing waits or runs.
    """

    waiting: int
    stranded: int
    arrivals_per_s: float
    calls_per_s: float
    is_measured: bool
    hosted_usd: float | None
    spilled_per_s: float
    spilled_usd_per_s: float
    is_quiet: bool


class Rate:
    """Events a second, lately, from a total that is looked at now and then."""

    __slots__ = ("_seen_s", "_total", "per_s")

    def __init__(self) -> None:
        self.per_s = 0.0
        self._total: float | None = None
        self._seen_s = 0.0

    def see(self, total: float, now_s: float) -> float:
        """Take the total in; returns what was added. One that fell was started anew."""
        before, since_s = self._total, now_s - self._seen_s
        self._total, self._seen_s = total, now_s
        if before is None or since_s <= 0.0:
            return 0.0
        added = total - before
        weight = -math.expm1(-since_s / _RATE_S)
        self.per_s += weight * (added / since_s - self.per_s)
        return added


class LoadMeter:
    """Turns totals into rates; what several models could do is counted for one of them."""

    def __init__(self) -> None:
        self._granted: dict[str, Rate] = {}
        self._queued: dict[tuple[str, ...], Rate] = {}
        self._spilled: dict[tuple[str, ...], Rate] = {}
        self._spent: dict[tuple[str, ...], Rate] = {}

    def read(self, demand: Demand, grows: Mapping[str, bool], now_s: float) -> dict[str, Load]:
        """The load of each model.

        Args:
            demand: the scheduler's.
            grows: every local model, and whether it may get further replicas: what several could
                do is counted for the cheapest of those that may.
            now_s: on a clock that never goes back.
        """
        waiting, stranded = dict.fromkeys(grows, 0), dict.fromkeys(grows, 0)
        growth, spilled, spent = (dict.fromkeys(grows, 0.0) for _ in range(3))
        queues: dict[tuple[str, ...], int] = dict.fromkeys(self._queued, 0)
        for each in demand.backlogs:
            queues[each.models] = queues.get(each.models, 0) + each.waiting
            if (model := _share(each.models, grows)) in grows:
                waiting[model] += each.waiting
                stranded[model] += each.waiting if each.stranded else 0
        for models, queue in queues.items():
            rate = self._queued.setdefault(models, Rate())
            rate.see(queue, now_s)
            if (model := _share(models, grows)) in grows:
                growth[model] += rate.per_s
        for models, calls in demand.spilled.items():
            self._spilled.setdefault(models, Rate()).see(calls.calls, now_s)
            self._spent.setdefault(models, Rate()).see(calls.usd, now_s)
            if (model := _share(models, grows)) in grows:
                spilled[model] += self._spilled[models].per_s
                spent[model] += self._spent[models].per_s
        loads = {}
        for model in grows:
            own = demand.models.get(model, ModelDemand())
            rate = self._granted.setdefault(model, Rate())
            came = rate.see(own.granted, now_s)
            loads[model] = Load(
                waiting[model],
                stranded[model],
                max(0.0, rate.per_s + growth[model]),
                own.calls_per_s,
                own.known,
                own.hosted_usd / own.replaceable
                if own.replaceable and own.replaceable >= _REPLACEABLE * own.granted
                else None,
                max(0.0, spilled[model]),
                max(0.0, spent[model]),
                not (came or waiting[model] or own.inflight),
            )
        return loads


def _share(models: Sequence[str], grows: Mapping[str, bool]) -> str:
    """The model that a load of several is counted for: the cheapest that may grow, else is."""
    return next((model for model in models if grows.get(model)), models[0])
