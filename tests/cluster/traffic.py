"""Seeded traffic for alarms: steady shapes, and what goes wrong in them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from agentcloud.cluster.alarms import Alarms, Settings

ENDPOINT, KIND = "replica:m:0", "triage"
DAY_S = 86_400.0


@dataclass
class Harm:
    """What is wrong from some moment on, as factors and rates; the default is nothing."""

    ttft: float = 1.0
    token: float = 1.0
    cost: float = 1.0
    errors: float | None = None
    invalid: float | None = None


@dataclass
class Shape:
    """Steady traffic.

    Attributes:
        per_s: calls a second.
        tail: standard deviation of log times (lognormal), or `pareto`'s index.
        slow_share: bimodal: this share of calls takes ten times as long.
        drift: standard deviation of a slow noise that all calls share, on the logarithm.
        drift_s: its time constant.
        day: load follows the day: running calls from a few to a hundred, times with it.
        errors: share of failed sends.
        burst: errors come in bursts of about so many.
    """

    per_s: float = 2.0
    tail: float = 0.8
    pareto: float | None = None
    slow_share: float = 0.0
    drift: float = 0.0
    drift_s: float = 60.0
    day: bool = False
    errors: float = 0.01
    burst: int = 1
    invalid: float = 0.05
    tasks_every: int = 4


SHAPES: dict[str, Shape] = {
    "lognormal": Shape(),
    "heavy tail": Shape(pareto=1.3),
    "bimodal": Shape(slow_share=0.45, tail=0.2),
    "busy, shared noise": Shape(per_s=6.0, tail=0.5, drift=0.15, drift_s=60.0),
    "slow shared noise": Shape(tail=0.4, drift=0.15, drift_s=600.0),
    "day and night": Shape(per_s=2.0, tail=0.5, day=True),
    "low volume": Shape(per_s=1 / 60, tail=0.8, drift=0.1, drift_s=3600.0),
    "bursts of errors": Shape(errors=0.02, burst=8),
}


@dataclass
class Traffic:
    """Runs a shape against alarms, on a clock of its own."""

    shape: Shape
    seed: int
    alarms: Alarms = field(default_factory=lambda: Alarms(Settings()))
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._shared = 0.0
        self._burst_left = 0
        self._calls = 0
        self._checked = 0
        self._invalid = 0

    def run(self, until: Callable[[Alarms], bool], harm: Harm | None = None) -> None:
        """Go on until something holds of the alarms."""
        harm = harm or Harm()
        while not until(self.alarms):
            self._call(harm)

    def windows(self, count: int, harm: Harm | None = None) -> None:
        """Go on for so many windows of all series together."""
        end = self.alarms.windows + count
        self.run(lambda alarms: alarms.windows >= end, harm)

    def _load(self) -> float:
        if not self.shape.day:
            return 8.0
        return 60.0 * (1.0 - 0.93 * math.cos(2.0 * math.pi * self.now_s / DAY_S))

    def _call(self, harm: Harm) -> None:
        shape, rng = self.shape, self.rng
        load = self._load()
        gap_s = rng.expovariate(shape.per_s * (load / 60.0 if shape.day else 1.0))
        self.now_s += gap_s
        keep = math.exp(-gap_s / shape.drift_s)
        self._shared = keep * self._shared + shape.drift * math.sqrt(1 - keep * keep) * rng.gauss()
        running = max(1, round(rng.gauss(load, math.sqrt(load))))
        prompt = int(rng.lognormvariate(5.5, 0.7))
        # First token: prompts and load; later ones: load, where there is a day.
        ttft_s = 0.05 + 0.0002 * prompt
        token_s = 0.02
        if shape.day:
            ttft_s *= 1.0 + running / 20.0
            token_s *= 1.0 + running / 40.0
        failed = self._fails(harm.errors if harm.errors is not None else shape.errors)
        self.alarms.called(
            ENDPOINT,
            KIND,
            self.now_s,
            failed=failed,
            ttft_s=None if failed else ttft_s * self._noise() * harm.ttft,
            token_s=None if failed else token_s * self._noise() * harm.token,
            running=running,
            prompt_tokens=prompt,
        )
        self._calls += 1
        self._checked += 1
        invalid = harm.invalid if harm.invalid is not None else shape.invalid
        self._invalid += rng.random() < invalid
        if self._calls % shape.tasks_every == 0:
            cost = Decimal(repr(0.002 * rng.lognormvariate(0.0, 0.5) * harm.cost))
            checked = {ENDPOINT: (self._checked, self._invalid)}
            self.alarms.task_ended(KIND, {ENDPOINT: cost}, checked, self.now_s)
            self._checked = self._invalid = 0

    def _noise(self) -> float:
        shape, rng = self.shape, self.rng
        if shape.pareto is not None:
            noise = rng.paretovariate(shape.pareto)
        else:
            noise = rng.lognormvariate(0.0, shape.tail)
        if rng.random() < shape.slow_share:
            noise *= 10.0
        return noise * math.exp(self._shared)

    def _fails(self, rate: float) -> bool:
        burst = self.shape.burst
        if self._burst_left:
            self._burst_left -= 1
            return True
        if self.rng.random() < rate / burst:
            # Of geometric length with the mean `burst`.
            while burst > 1 and self.rng.random() < 1 - 1 / burst:
                self._burst_left += 1
            return True
        return False
