"""What users have today, as routers of the simulator: each sends a request the moment it comes.

None of them holds requests back, and none knows prices. The hosted model, where there is one, is
one more deployment to them, as in LiteLLM; a 429 cools it down for as long as it asked, and the
request goes to the next best.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final

from bench.sim_traces import Arrival
from bench.sim_world import HOSTED, Done, World


class Immediate:
    """Common part: who is up, how many calls each has."""

    name = "immediate"

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.names = list(world.replicas)
        if world.hosted is not None:
            self.names.append(HOSTED)
        self.inflight = dict.fromkeys(self.names, 0)
        self._cooled_s = 0.0

    def arrive(self, key: int, arrival: Arrival) -> None:
        """Choose and send."""
        up = self.names
        if self.world.hosted is not None and self.world.now_s < self._cooled_s:
            up = self.names[:-1]
        chosen = self.choose(up, arrival)
        self.inflight[chosen] += 1
        self.world.send(key, chosen)

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """Pick one of those that are up."""
        raise NotImplementedError

    def done(self, done: Done) -> None:
        """One call less there."""
        self.inflight[done.endpoint] -= 1

    def refused(self, key: int, retry_after_s: float) -> None:
        """Cool the hosted model down, choose again."""
        self.inflight[HOSTED] -= 1
        self._cooled_s = max(self._cooled_s, self.world.now_s + retry_after_s)
        self.arrive(key, self.world.arrivals[key])

    def wake_s(self) -> float | None:
        """Nothing is ever held back."""
        return None

    def wake(self) -> None:
        """Nothing is ever held back."""


class RoundRobin(Immediate):
    """One after the other."""

    _turn = -1

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """The next."""
        self._turn += 1
        return up[self._turn % len(up)]


class Random(Immediate):
    """Any (LiteLLM's simple-shuffle without weights)."""

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """Any."""
        return self.rng.choice(up)


class LeastBusy(Immediate):
    """The fewest calls in flight (LiteLLM's least-busy)."""

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """The fewest; ties at random."""
        inflight = self.inflight
        fewest = min(inflight[name] for name in up)
        return self.rng.choice([name for name in up if inflight[name] == fewest])


class PowerOfTwo(Immediate):
    """The less busy of two random ones (Ray Serve's default)."""

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """The less busy of two."""
        two = self.rng.sample(up, min(2, len(up)))
        return min(two, key=lambda name: self.inflight[name])


class LatencyBased(Immediate):
    """The least mean time per output token of the last calls (LiteLLM's latency-based routing)."""

    _KEPT: Final = 10

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self._recent: dict[str, deque[float]] = {
            name: deque(maxlen=self._KEPT) for name in self.names
        }
        self._means = dict.fromkeys(self.names, 0.0)

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """The fastest so far; one that nobody has tried counts as the fastest."""
        means = self._means
        least = min(means[name] for name in up)
        return self.rng.choice([name for name in up if means[name] <= least])

    def done(self, done: Done) -> None:
        """Take a call in."""
        super().done(done)
        took_s = (done.end_s - done.sent_s) / done.usage.output_tokens
        recent = self._recent[done.endpoint]
        recent.append(took_s)
        self._means[done.endpoint] = sum(recent) / len(recent)


class PrefixAware(Immediate):
    """Ray Serve LLM's PrefixCacheAffinityRouter, with its defaults.

    The best match of at least 10% of the prompt, else the one whose tree is smallest; the less busy
    of those alike. `imbalanced` is the difference in calls from which it is power of two choices.
    """

    imbalanced = float("inf")
    _LEAST_MATCH: Final = 0.1

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(world, seed)
        self._holders: dict[int, set[str]] = {}
        self._sizes = dict.fromkeys(self.names, 0)

    def choose(self, up: list[str], arrival: Arrival) -> str:
        """Prefix first, while calls are balanced."""
        loads = [self.inflight[name] for name in up]
        if max(loads) - min(loads) > self.imbalanced:
            two = self.rng.sample(up, min(2, len(up)))
            chosen = min(two, key=lambda name: self.inflight[name])
        else:
            matched, best = 0, list(up)
            for block in arrival.blocks:
                held = self._holders.get(block)
                further = [name for name in best if held and name in held]
                if not further:
                    break
                matched, best = matched + 1, further
            if not arrival.blocks or matched / len(arrival.blocks) < self._LEAST_MATCH:
                least = min(self._sizes[name] for name in up)
                best = [name for name in up if self._sizes[name] == least]
            fewest = min(self.inflight[name] for name in best)
            chosen = self.rng.choice([name for name in best if self.inflight[name] == fewest])
        # Its tree counts characters; a trace without blocks has prompts that share nothing.
        self._sizes[chosen] += 0 if arrival.blocks else arrival.prompt_tokens
        for block in arrival.blocks:
            held = self._holders.setdefault(block, set())
            if chosen not in held:
                held.add(chosen)
                self._sizes[chosen] += 1
        return chosen


class PrefixAware10(PrefixAware):
    """The same, balanced within ten calls: its best case, not its default."""

    imbalanced = 10.0


OTHERS: Final[dict[str, Callable[[World, int], Immediate]]] = {
    "round_robin": RoundRobin,
    "random": Random,
    "least_busy": LeastBusy,
    "power_of_two": PowerOfTwo,
    "latency_based": LatencyBased,
    "prefix_aware": PrefixAware,
    "prefix_aware_10": PrefixAware10,
}
