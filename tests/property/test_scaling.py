"""Scaling against a simulated plant: it settles, it does not flap, it starts what is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.demand import Backlog, Demand, ModelDemand, Spilled
from agentcloud.cluster.scaling import Crew, Scaler, Target, waited_s
from tests.cluster.scheduling import fleet

TICK_S, START_S, KEEP_S = 2.0, 20.0, 60.0


@dataclass
class Plant:
    """Replicas that take `pace` calls a second each; hosted, if there is a price, past a wait."""

    pace: float = 2.0
    least: int = 0
    most: int = 8
    usd_per_hour: float | None = 2.0
    hosted_usd: float | None = None
    usd_per_hour_waited: str = "1"
    is_measured: bool = True
    queue: float = 0.0
    granted: float = 0.0
    inflight: int = 0
    spilled: float = 0.0
    starts: list[float] = field(default_factory=list)
    ready: int = 0
    history: list[tuple[float, Target]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = FakeClock(1000.0)
        config = fleet(usd_per_hour_waited=self.usd_per_hour_waited, scaling={"keep_s": KEEP_S})
        self.scaler = Scaler(self.clock, config)
        self.ready = self.least

    @property
    def target(self) -> int:
        return self.history[-1][1].replicas

    def look(self) -> Target:
        now_s = self.clock.now()
        crew = Crew(
            self.least,
            self.most,
            self.ready,
            START_S,
            max((at_s - now_s for at_s in self.starts), default=START_S),
            self.usd_per_hour,
        )
        own = ModelDemand(
            granted=int(self.granted),
            replaceable=int(self.granted) if self.hosted_usd is not None else 0,
            hosted_usd=int(self.granted) * (self.hosted_usd or 0.0),
            inflight=self.inflight,
            calls_per_s=self.pace,
            known=self.is_measured,
        )
        waiting = int(self.queue)
        backlogs = [Backlog(("m",), waiting, stranded=not self.ready)] if waiting else []
        spent = Spilled(int(self.spilled), int(self.spilled) * (self.hosted_usd or 0.0))
        demand = Demand({"m": own}, backlogs, {("m",): spent} if spent.calls else {})
        target = self.scaler.decide(demand, {"m": crew})["m"]
        self.history.append((now_s, target))
        return target

    def run(self, calls_per_s: float, seconds: float) -> None:
        """Let calls come for a while and do what the scaler says."""
        for _ in range(int(seconds / TICK_S)):
            target = self.look().replicas
            while self.ready + len(self.starts) < target:
                self.starts.append(self.clock.now() + START_S)
            while self.ready + len(self.starts) > target:
                if self.starts:
                    self.starts.pop()
                else:
                    self.ready -= 1
            self.clock.advance(TICK_S)
            self.ready += sum(at_s <= self.clock.now() for at_s in self.starts)
            self.starts = [at_s for at_s in self.starts if at_s > self.clock.now()]
            taken = min(self.queue + calls_per_s * TICK_S, self.ready * self.pace * TICK_S)
            self.queue += calls_per_s * TICK_S - taken
            self.granted += taken
            self.inflight = int(taken > 0)
            if self.hosted_usd is not None:
                # As choosing does: a call waits no longer than the hosted one is worth.
                patience_s = self.hosted_usd / float(self.usd_per_hour_waited) * 3600.0
                over = max(0.0, self.queue - patience_s * self.ready * self.pace)
                self.queue -= over
                self.spilled += over

    def changes(self, from_s: float = 0.0) -> int:
        """How often the target changed."""
        seen = [target.replicas for at_s, target in self.history if at_s >= from_s]
        return sum(one != other for one, other in pairwise(seen))


PRICES = st.sampled_from([None, 0.5, 2.0, 30.0])
HOSTED = st.sampled_from([None, 0.0001, 0.01])


@settings(max_examples=80, deadline=None)
@given(st.floats(0.5, 40), st.floats(0.5, 10), st.integers(0, 3), st.integers(0, 7), PRICES, HOSTED)
@example(1.25, 1.125, 1, 1, 0.5, 0.0001)
def test_under_constant_load_the_target_settles(
    calls_per_s: float,
    pace: float,
    least: int,
    more: int,
    usd_per_hour: float | None,
    hosted_usd: float | None,
) -> None:
    plant = Plant(pace, least, max(1, least + more), usd_per_hour, hosted_usd)
    plant.run(calls_per_s, 20 * KEEP_S)
    assert plant.changes(plant.clock.now() - 6 * KEEP_S) == 0, [
        each for each in plant.history if each[1].replicas
    ][-3:]
    if hosted_usd is None:
        # Without an alternative the queue does not grow for ever, unless the bound is reached.
        assert plant.target == plant.most or calls_per_s <= plant.target * pace * 1.01


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.5, 40),
    st.floats(0, 40),
    st.sampled_from([4.0, 20.0, 60.0, 200.0, 600.0]),
    st.integers(1, 8),
    PRICES,
    HOSTED,
)
def test_under_alternating_load_changes_are_bounded(
    high: float,
    low: float,
    half_s: float,
    most: int,
    usd_per_hour: float | None,
    hosted_usd: float | None,
) -> None:
    plant = Plant(most=most, usd_per_hour=usd_per_hour, hosted_usd=hosted_usd)
    seconds = 1500.0
    while plant.clock.now() < 1000.0 + seconds:
        plant.run(high, half_s)
        plant.run(low, half_s)
    steps_down = [
        at_s for (_, one), (at_s, two) in pairwise(plant.history) if two.replicas < one.replicas
    ]
    assert all(later - sooner >= KEEP_S for sooner, later in pairwise(steps_down)), (
        "a step down needs a whole window without any change"
    )
    assert plant.changes() <= (1 + most) * (1 + seconds / KEEP_S)
    if half_s <= 20.0 and high <= 2.0 * most:
        assert plant.changes(1000.0 + seconds / 2) == 0, "load that comes and goes moves nothing"


@given(
    st.floats(0, 1000),
    st.floats(0, 50),
    st.lists(st.tuples(st.floats(0.1, 300), st.floats(0, 50)), min_size=1, max_size=4),
)
def test_waiting_is_the_area_under_the_queue(
    waiting: float, arrivals: float, spans: list[tuple[float, float]]
) -> None:
    until, at_s = [], 0.0
    for span_s, pace in spans:
        at_s += span_s
        until.append((at_s, pace))
    queue, area, steps = waiting, 0.0, 4000
    now_s = 0.0
    for _ in range(steps):
        pace = next(pace for end_s, pace in until if now_s < end_s or end_s == at_s)
        after = max(0.0, queue + (arrivals - pace) * at_s / steps)
        area += (queue + after) / 2.0 * at_s / steps
        queue, now_s = after, now_s + at_s / steps
    scale = (waiting + 50 * at_s) * at_s
    if until[-1][1] > 0.0:
        area += queue * queue / 2.0 / until[-1][1]
        scale += scale / at_s * (waiting + 50 * at_s) / until[-1][1]
    assert waited_s(waiting, arrivals, until) == pytest.approx(area, abs=2e-3 * scale)


def test_a_waiting_request_starts_a_model_that_rests() -> None:
    plant = Plant(usd_per_hour=1000.0)
    assert plant.look().replicas == 0
    plant.queue = 1.0
    target = plant.look()
    assert target.replicas == 1
    assert target.reason == "1 call waiting and no replica runs"
    assert target.wait_s == pytest.approx(START_S + 1 / 2.0)


def test_a_model_that_nothing_comes_to_rests_after_the_window_and_not_before() -> None:
    plant = Plant()
    plant.run(1.0, 60)
    assert plant.target == 1
    began_s = plant.clock.now()
    plant.run(0.0, 1000)
    rested_s = next(
        at_s for at_s, target in plant.history if at_s > began_s and not target.replicas
    )
    assert KEEP_S - TICK_S <= rested_s - began_s <= KEEP_S + 2 * TICK_S
    assert plant.history[-1][1].reason == "nothing came for 60 s"


def test_replicas_that_were_there_before_go_only_after_the_window() -> None:
    plant = Plant()
    plant.ready = plant.scaler.resume("m", 3).replicas
    plant.run(0.0, KEEP_S - TICK_S)
    assert plant.ready == 3
    assert plant.history[-1][1].reason == "3 were there when the fleet was restarted"
    plant.run(0.0, 3 * KEEP_S)
    assert plant.ready == 0


@pytest.mark.parametrize(("usd_per_hour", "more"), [(2.0, True), (5000.0, False)])
def test_one_more_comes_when_the_waiting_it_saves_is_worth_its_price(
    usd_per_hour: float, more: bool
) -> None:
    plant = Plant(least=1, usd_per_hour=usd_per_hour)
    plant.run(1.0, 60)
    plant.queue = 1000.0
    plant.look()
    assert (plant.target > 1) is more
    # 1,000 calls at 2 a second: some 250,000 s of waiting in all, at an hour a dollar $69.


@pytest.mark.parametrize(("hosted_usd", "replicas"), [(0.0000001, 0), (0.01, 1)])
def test_hosted_spending_starts_a_replica_only_if_it_is_cheaper(
    hosted_usd: float, replicas: int
) -> None:
    plant = Plant(hosted_usd=hosted_usd, usd_per_hour_waited="0.0000001")
    for _ in range(100):
        plant.look()
        plant.spilled += 2.0
        plant.clock.advance(TICK_S)
    assert plant.target == replicas
    if replicas:
        assert "0.998 spilled" in plant.history[-1][1].reason


def test_a_model_never_measured_grows_one_at_a_time() -> None:
    plant = Plant(least=1, is_measured=False)
    plant.queue = 100_000.0
    plant.look()
    assert plant.target == 2


def test_without_room_the_target_stays_at_what_there_is() -> None:
    plant = Plant(least=1, most=1)
    plant.queue = 100_000.0
    plant.look()
    assert plant.target == 1


def test_of_two_models_the_cheaper_grows_first_and_the_other_when_it_cannot() -> None:
    clock = FakeClock(0.0)
    scaler = Scaler(clock, fleet())
    crew: dict[str, Any] = {
        "least": 0, "ready": 0, "start_s": 30.0, "start_left_s": 30.0, "usd_per_hour": 1.0
    }  # fmt: skip
    demand = Demand({}, [Backlog(("cheap", "dear"), 1, stranded=True)])
    both = {"dear": Crew(most=2, **crew), "cheap": Crew(most=2, **crew)}
    targets = scaler.decide(demand, both)
    assert (targets["cheap"].replicas, targets["dear"].replicas) == (1, 0)
    full = {"dear": Crew(most=2, **crew), "cheap": Crew(most=0, **crew)}
    targets = Scaler(clock, fleet()).decide(demand, full)
    assert (targets["cheap"].replicas, targets["dear"].replicas) == (0, 1)
