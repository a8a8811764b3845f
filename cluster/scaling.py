"""Pure: how many replicas each model should have, by what waiting costs and what replicas cost.

Requests that wait are a fluid: they come at a rate, a replica takes calls at another, and what is
left over stands in a queue; the hours stood there, at `usd_per_hour_waited`, are what a further
replica is weighed against, and so are the calls that went to a hosted model meanwhile.

A replica is added as soon as it is worth its price while it starts and for `keep_s` after. One goes
only after one fewer had been enough at every look of a whole `keep_s` without any change: so there
is at most one step down in that time, and load that comes and goes faster moves nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentcloud.cluster.clock import Clock
from agentcloud.cluster.config import FleetConfig
from agentcloud.cluster.demand import Demand
from agentcloud.cluster.model_load import Load, LoadMeter
from agentcloud.cluster.policy import TIME_WEIGHT

#: A replica goes only if those that stay would have this share of their pace to do.
HEADROOM: Final = 0.8


@dataclass(frozen=True, slots=True)
class Crew:
    """A model's replicas as the fleet has them.

    Attributes:
        least: as many at least.
        most: as many at most; what there is room for, where no more was found lately.
        ready: replicas that serve.
        start_s: how long a start lasts.
        start_left_s: how long until those that start now will serve.
        usd_per_hour: price of a replica; None: not priced, weighed as if it cost nothing.
    """

    least: int
    most: int
    ready: int
    start_s: float
    start_left_s: float
    usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Target:
    """How many replicas a model should have, and why."""

    replicas: int
    reason: str
    wait_s: float = 0.0


@dataclass(slots=True)
class _Record:
    target: int | None = None
    reason: str = "not looked at yet"
    since_s: float = 0.0
    enough: deque[tuple[float, int]] = field(default_factory=deque)


class Scaler:
    """Targets of all models; told the load every few seconds."""

    def __init__(self, clock: Clock, config: FleetConfig) -> None:
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._meter = LoadMeter()
        self.configure(config)

    def configure(self, config: FleetConfig) -> None:
        """Take another fleet.yaml."""
        self._keep_s = config.scaling.keep_s
        self._usd_per_s = float(config.usd_per_hour_waited) * TIME_WEIGHT[config.policy] / 3600.0

    def resume(self, model: str, replicas: int) -> Target:
        """Begin with so many replicas, which were there before us: as a target of our own."""
        reason = f"{replicas} were there when the fleet was restarted"
        self._records[model] = _Record(replicas, reason, self._clock.now())
        return Target(replicas, reason)

    def decide(self, demand: Demand, crews: Mapping[str, Crew]) -> dict[str, Target]:
        """The target of every model, each time from all there is to know.

        Args:
            demand: the scheduler's.
            crews: every local model's replicas.
        """
        now_s = self._clock.now()
        grows = {
            model: (self._record(model, now_s).target or 0) < crew.most
            for model, crew in crews.items()
        }
        loads = self._meter.read(demand, grows, now_s)
        return {
            model: self._target(self._record(model, now_s), crew, loads[model], now_s)
            for model, crew in crews.items()
        }

    def _record(self, model: str, now_s: float) -> _Record:
        return self._records.setdefault(model, _Record(since_s=now_s))

    def _target(self, record: _Record, crew: Crew, load: Load, now_s: float) -> Target:
        first = record.target is None
        most = max(crew.least, crew.most)
        base = min(max(record.target or 0, crew.least), most)
        after, reason = base, ""
        if base == 0 and load.stranded and most:
            after, reason = 1, f"{_calls(load.stranded)} waiting and no replica runs"
        elif (grown := self._grown(base, most, crew, load)) > base:
            after, reason = grown, self._why_more(base, grown, crew, load)
        else:
            after, reason = self._shrunk(record, base, crew, load, now_s)
        if first or base != record.target:
            least, most = crew.least, crew.most
            reason = reason or (f"set to {most}" if least == most else f"from {least} to {most}")
        if after != record.target:
            record.since_s = now_s
            record.enough.clear()
        record.target = after
        record.reason = reason or record.reason
        return Target(after, record.reason, wait_s(crew, load))

    def _grown(self, base: int, most: int, crew: Crew, load: Load) -> int:
        # Of a model that was never measured, one at a time: its pace is a guess.
        most = most if load.is_measured else min(most, base + 1)
        replicas = base
        while replicas < most:
            saved = self._saved_usd(replicas, crew, load)
            if saved <= 0.0 or saved <= self._price_usd(crew):
                break
            replicas += 1
        return replicas

    def _saved_usd(self, replicas: int, crew: Crew, load: Load) -> float:
        """What one more than `replicas` saves while it starts and for `keep_s` after."""
        pace, end_s = load.calls_per_s, crew.start_s + self._keep_s
        until = [(min(crew.start_left_s, crew.start_s), crew.ready * pace)]
        until.append((crew.start_s, replicas * pace))
        without = waited_s(load.waiting, load.arrivals_per_s, [*until, (end_s, replicas * pace)])
        more = (replicas + 1) * pace
        waiting_s = without - waited_s(load.waiting, load.arrivals_per_s, [*until, (end_s, more)])
        spilled_usd = _taken_back_usd(more, load) - _taken_back_usd(replicas * pace, load)
        saved_usd = waiting_s * self._usd_per_s + spilled_usd * self._keep_s
        if load.hosted_usd is None:
            return saved_usd
        # No call costs more than the hosted one does, there or in waiting for less: as `_spares`
        # has it, or one would be started for what it is then not worth keeping for.
        calls = (load.arrivals_per_s + load.spilled_per_s) * end_s
        return min(saved_usd, max(float(load.waiting), calls) * load.hosted_usd)

    def _price_usd(self, crew: Crew) -> float:
        return (crew.usd_per_hour or 0.0) / 3600.0 * (crew.start_s + self._keep_s)

    def _shrunk(
        self, record: _Record, base: int, crew: Crew, load: Load, now_s: float
    ) -> tuple[int, str]:
        enough = base
        while enough > crew.least and self._spares(enough - 1, crew, load):
            enough -= 1
        looks = record.enough
        looks.append((now_s, enough))
        while looks[0][0] < now_s - self._keep_s:
            looks.popleft()
        if now_s - record.since_s < self._keep_s:
            return base, ""
        after = min(base, max(count for _, count in looks))
        if after == base:
            return base, ""
        if after == 0 and load.is_quiet:
            return after, f"nothing came for {self._keep_s:.0f} s"
        return after, (
            f"for {self._keep_s:.0f} s fewer were enough: {load.arrivals_per_s:.3g} calls/s come, "
            f"one takes {load.calls_per_s:.3g}"
        )

    def _spares(self, fewer: int, crew: Crew, load: Load) -> bool:
        """Whether the last of `fewer` + 1 replicas is not worth its price."""
        price_usd = (crew.usd_per_hour or 0.0) / 3600.0 * self._keep_s
        pace, calls_per_s = load.calls_per_s, load.arrivals_per_s
        if load.is_quiet:
            return True
        if fewer == 0 or calls_per_s > HEADROOM * fewer * pace:
            # Too much for those that stay: every call then costs what the hosted one does, there
            # or in waiting for less; without a hosted model the queue would grow for ever.
            if load.hosted_usd is None:
                return False
            return calls_per_s * load.hosted_usd * self._keep_s <= price_usd
        end = self._keep_s
        more_s = waited_s(load.waiting, calls_per_s, [(end, fewer * pace)])
        more_s -= waited_s(load.waiting, calls_per_s, [(end, (fewer + 1) * pace)])
        return more_s * self._usd_per_s <= price_usd

    def _why_more(self, base: int, grown: int, crew: Crew, load: Load) -> str:
        saved, price = self._saved_usd(base, crew, load), self._price_usd(crew)
        costs = "its price is unknown" if crew.usd_per_hour is None else f"costs ${price:.3g}"
        spilled = f", {load.spilled_per_s:.3g} spilled" if load.spilled_usd_per_s else ""
        waiting = (
            f"{_calls(load.waiting)} waiting, predicted {wait_s(crew, load):.3g} s, "
            if load.waiting
            else ""
        )
        return (
            f"{waiting}{load.arrivals_per_s:.3g} calls/s come{spilled}, {base} take "
            f"{base * load.calls_per_s:.3g}: one more saves ${saved:.3g}, {costs}"
            + (f" (so for {grown - base})" if grown - base > 1 else "")
        )

    def __repr__(self) -> str:
        shown = ", ".join(f"{model}={each.target}" for model, each in self._records.items())
        return f"<Scaler {shown}>"


def waited_s(waiting: float, arrivals_per_s: float, until: Sequence[tuple[float, float]]) -> float:
    """Seconds that all requests together stand in the queue.

    Args:
        waiting: how many stand there now.
        arrivals_per_s: how many come.
        until: (seconds from now, calls a second taken until then), in order; what stands there at
            the end is served at the last pace.
    """
    total_s, at_s, queue, pace = 0.0, 0.0, float(waiting), 0.0
    for end_s, pace in until:
        span_s = end_s - at_s
        if span_s <= 0.0:
            continue
        at_s = end_s
        net = arrivals_per_s - pace
        if net < 0.0 and (empty_s := queue / -net) < span_s:
            total_s += queue * empty_s / 2.0
            queue = 0.0
        else:
            after = queue + net * span_s
            total_s += (queue + after) / 2.0 * span_s
            queue = after
    return total_s + (queue * queue / 2.0 / pace if pace > 0.0 else 0.0)


def wait_s(crew: Crew, load: Load) -> float:
    """How long the last of those that wait now is predicted to wait."""
    if not load.waiting:
        return 0.0
    if not crew.ready:
        return crew.start_left_s + load.waiting / load.calls_per_s
    return load.waiting / (crew.ready * load.calls_per_s)


def _taken_back_usd(pace: float, load: Load) -> float:
    """Hosted spending a second that replicas of this pace take over, beside their own calls."""
    if load.spilled_per_s <= 0.0:
        return 0.0
    spare = max(0.0, pace - load.arrivals_per_s)
    return min(1.0, spare / load.spilled_per_s) * load.spilled_usd_per_s


def _calls(count: int) -> str:
    return f"{count} call{'' if count == 1 else 's'}"
