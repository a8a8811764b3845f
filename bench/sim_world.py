"""The simulated cluster: replicas, a hosted model with limits, arrivals, and what a router sees."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

from agentcloud.cluster.buckets import TokenBucket
from agentcloud.cluster.contracts import TokenUsage
from bench.sim_replica import Replica, Speed
from bench.sim_traces import BLOCK_TOKENS, Arrival

HOSTED: Final = "hosted"


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A hosted endpoint: latencies with noise, limits a minute, prices.

    The latencies are assumed, of the order of what Anthropic's small models show; the prices are
    the catalogue's of claude-haiku-5-5 up to 100,000 prompt tokens.

    Attributes:
        ttft_s: median time to first token of a short prompt.
        ttft_sigma: of its logarithm.
        prompt_s: more per prompt token.
        token_s: median time per output token.
    """

    ttft_s: float = 0.55
    ttft_sigma: float = 0.35
    prompt_s: float = 20e-6
    token_s: float = 0.009
    token_sigma: float = 0.2
    requests_per_minute: int = 4_000
    input_tokens_per_minute: int = 4_000_000
    output_tokens_per_minute: int = 800_000

    def cost_usd(self, arrival: Arrival) -> float:
        """What a call costs, as the catalogue prices it."""
        dear = 5.0 if arrival.prompt_tokens > 100_000 else 1.0
        return dear * (arrival.prompt_tokens * 0.10e-6 + arrival.output_tokens * 0.50e-6)

    def times_s(self, key: int, arrival: Arrival, seed: int) -> tuple[float, float]:
        """Time to first token and per token of a request: its own noise, alike for every router."""
        noise = random.Random(seed * 1_000_003 + key)
        ttft_s = self.ttft_s * noise.lognormvariate(0.0, self.ttft_sigma)
        token_s = self.token_s * noise.lognormvariate(0.0, self.token_sigma)
        return ttft_s + arrival.prompt_tokens * self.prompt_s, token_s


@dataclass(slots=True)
class Done:
    """How one request ended.

    Attributes:
        sent_s: when its router sent it to an endpoint.
        first_s: its first token.
        cached_tokens: prompt tokens that the endpoint's cache held.
    """

    key: int
    endpoint: str
    arrived_s: float
    sent_s: float
    first_s: float
    end_s: float
    cost_usd: float
    cached_tokens: int
    usage: TokenUsage


class Router(Protocol):
    """A routing policy; it calls `world.send` for every request, at once or later."""

    def arrive(self, key: int, arrival: Arrival) -> None:
        """A request came."""
        ...

    def done(self, done: Done) -> None:
        """A request's answer is whole."""
        ...

    def refused(self, key: int, retry_after_s: float) -> None:
        """The hosted endpoint answered 429."""
        ...

    def wake_s(self) -> float | None:
        """When `wake` should be called without any other event."""
        ...

    def wake(self) -> None:
        """Its time has come, or something has happened."""
        ...


class World:
    """Time, replicas, the hosted model."""

    def __init__(
        self,
        arrivals: Rows[Arrival],
        replicas: int,
        speed: Speed,
        hosted: HostedModel | None,
        rate: float,
        seed: int,
        report_s: float = 1.0,
    ) -> None:
        """Lay out a run.

        Args:
            arrivals: the trace.
            replicas: how many.
            speed: of each.
            hosted: the hosted model; None: there is none.
            rate: arrivals come so many times faster than in the trace.
            seed: of the hosted model's noise, alike for every router.
            report_s: how often replicas report their load.
        """
        self.now_s = 0.0
        self.arrivals = arrivals
        self.rate = rate
        self.replicas = {
            f"replica:{index}": Replica(f"replica:{index}", speed) for index in range(replicas)
        }
        self.hosted = hosted
        self.report_s = report_s
        self.results: list[Done] = []
        self.unanswered: list[int] = []
        self.refusals = 0
        self.hosted_calls = 0
        self._sent: dict[int, float] = {}
        self._first: dict[int, float] = {}
        self._events: list[tuple[float, int, str, Any]] = []
        self._count = 0
        self._seed = seed
        self._buckets: list[TokenBucket] = []
        if hosted is not None:
            self._buckets = [
                TokenBucket(float(limit), 0.0)
                for limit in (
                    hosted.requests_per_minute,
                    hosted.input_tokens_per_minute,
                    hosted.output_tokens_per_minute,
                )
            ]

    def now(self) -> float:
        """The clock, seconds (what the core's `Clock` asks)."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Nobody sleeps here."""
        raise NotImplementedError

    def push(self, at_s: float, kind: str, what: Any) -> None:
        """Let something happen later."""
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, kind, what))

    def send(self, key: int, endpoint: str) -> None:
        """Send a request to an endpoint now."""
        self._sent[key] = self.now_s
        if endpoint == HOSTED:
            self._send_hosted(key)
            return
        replica = self.replicas[endpoint]
        replica.advance(self.now_s)
        replica.add(key, self.arrivals[key], self.now_s)
        self._collect(replica)

    def give_up(self, key: int) -> None:
        """A router has told a request's caller that it will not be answered."""
        self.unanswered.append(key)

    def run(self, router: Router, reporter: Any = None) -> None:
        """Play the whole trace."""
        for key, arrival in enumerate(self.arrivals):
            self.push(arrival.at_s / self.rate, "arrive", key)
        if reporter is not None:
            self.push(self.report_s, "report", reporter)
        total = len(self.arrivals)
        woken_s: float | None = None
        while len(self.results) + len(self.unanswered) < total:
            if not self._events:
                raise RuntimeError(f"{total - len(self.results)} requests were never sent")
            self.now_s, _, kind, what = heapq.heappop(self._events)
            if kind == "arrive":
                router.arrive(what, self.arrivals[what])
            elif kind == "replica":
                if what.next_s is None or what.next_s > self.now_s:
                    continue
                what.advance(self.now_s)
                self._collect(what)
            elif kind == "hosted":
                self._finish(what)
            elif kind == "refused":
                router.refused(*what)
            elif kind == "report":
                what(self)
                self.push(self.now_s + self.report_s, "report", what)
            elif kind == "finish":
                self.results.append(what)
                router.done(what)
            else:
                woken_s = None
            router.wake()
            wake_s = router.wake_s()
            if wake_s is not None and (woken_s is None or wake_s < woken_s):
                woken_s = max(wake_s, self.now_s + 1e-4)
                self.push(woken_s, "wake", None)

    def look(self, replica: Replica) -> None:
        """Bring a replica up to now."""
        replica.advance(self.now_s)
        self._collect(replica)

    def _collect(self, replica: Replica) -> None:
        for sequence, at_s in replica.finished:
            arrival = sequence.arrival
            first_s = sequence.first_token_s
            assert first_s is not None
            cached = sequence.cached_tokens
            usage = TokenUsage(
                arrival.prompt_tokens - min(cached, arrival.prompt_tokens),
                0,
                cached,
                arrival.output_tokens,
            )
            done = Done(
                sequence.key,
                replica.name,
                arrival.at_s / self.rate,
                self._sent[sequence.key],
                first_s,
                at_s,
                0.0,
                cached,
                usage,
            )
            self.push(max(at_s, self.now_s), "finish", done)
        replica.finished.clear()
        if replica.next_s is not None:
            self.push(max(replica.next_s, self.now_s), "replica", replica)

    def _send_hosted(self, key: int) -> None:
        hosted, arrival = self.hosted, self.arrivals[key]
        assert hosted is not None
        amounts = (1.0, float(arrival.prompt_tokens), float(arrival.output_tokens))
        waits = [
            bucket.wait_s(amount, self.now_s)
            for bucket, amount in zip(self._buckets, amounts, strict=True)
        ]
        if max(waits) > 0.0:
            self.refusals += 1
            self.push(self.now_s + 0.05, "refused", (key, max(waits)))
            return
        for bucket, amount in zip(self._buckets, amounts, strict=True):
            bucket.settle(0.0, bucket.clamp(amount))
        self.hosted_calls += 1
        ttft_s, token_s = hosted.times_s(key, arrival, self._seed)
        first_s = self.now_s + ttft_s
        done = Done(
            key,
            HOSTED,
            arrival.at_s / self.rate,
            self.now_s,
            first_s,
            first_s + (arrival.output_tokens - 1) * token_s,
            hosted.cost_usd(arrival),
            0,
            TokenUsage(arrival.prompt_tokens, 0, 0, arrival.output_tokens),
        )
        self.push(done.end_s, "hosted", done)

    def _finish(self, done: Done) -> None:
        self.push(self.now_s, "finish", done)


def usd(amount: float) -> Decimal:
    """Dollars of the simulation as the core counts them."""
    return Decimal(str(round(amount, 9)))


def blocks_upto(arrival: Arrival) -> tuple[int, ...]:
    """Cumulative tokens at the end of each whole block."""
    whole = arrival.prompt_tokens // BLOCK_TOKENS
    return tuple((index + 1) * BLOCK_TOKENS for index in range(whole))
