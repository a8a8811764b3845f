"""The scheduler's core against the sandbox's own buckets, on a clock that jumps.

Everything but HTTP and Ray: far more callers than the limits allow, time on the wire, answers
that take their time, and settlements that come long after the headers they carry.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any

from agentcloud.cluster.catalog import load_catalog
from agentcloud.cluster.clock import FakeClock
from agentcloud.cluster.contracts import (
    Lease,
    LeaseRequest,
    Outcome,
    Settlement,
    Timings,
    TokenUsage,
)
from agentcloud.cluster.decisions import Granted
from agentcloud.cluster.sandbox.buckets import AccountLimits
from agentcloud.cluster.sandbox.settings import RateLimits
from agentcloud.cluster.scheduler import SchedulerCore
from tests.cluster.scheduling import HAIKU, fleet, hosted

WALL_S = 1.8e9


@dataclass
class Traffic:
    """What calls are like; each is drawn anew.

    Attributes:
        cached: share of the prompt that the server reads from its cache.
    """

    input_tokens: Callable[[random.Random], int] = lambda _rng: 400
    estimate: float = 1.3
    max_tokens: int = 4096
    output_tokens: Callable[[random.Random], int] = lambda rng: rng.randrange(20, 180)
    ttft_s: float = 0.4
    per_token_s: float = 0.02
    cached: float = 0.0


@dataclass
class Seen:
    """What the server saw."""

    admitted: list[tuple[float, int, int]] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    first_answer_s: float = float("inf")

    def used(self, column: int, since_s: float) -> float:
        """Requests (0), input (1) or output tokens (2) of calls that came after a time."""
        mine = [row for row in self.admitted if row[0] >= since_s]
        return len(mine) if column == 0 else float(sum(row[column] for row in mine))


class LimitWorld:
    """Callers that never stop asking, one account, one server."""

    def __init__(
        self,
        limits: RateLimits,
        traffic: Traffic,
        *,
        configured: dict[str, Any] | None = None,
        callers: int = 400,
        seed: int = 1,
    ) -> None:
        self.rng = random.Random(seed)
        self.clock = FakeClock(1000.0)
        self.limits = AccountLimits(limits, self.clock.now())
        self.traffic = traffic
        account = {"main": {"limits": {"*": configured}}} if configured else {"main": {}}
        self.core = SchedulerCore(
            fleet(accounts=account),
            load_catalog(),
            self.clock,
            random.Random(seed),
            lambda: WALL_S + self.clock.now(),
        )
        self.core.register([hosted(slots=200)])
        self.seen = Seen()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._sizes: dict[str, int] = {}
        for _ in range(callers):
            self._ask()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end_s = self.clock.now() + seconds
        self._poll()
        while True:
            wake_s = self.core.next_wake_s()
            event_s = self._events[0][0] if self._events else end_s
            next_s = min(event_s, end_s if wake_s is None else wake_s)
            if next_s >= end_s:
                self.clock.advance(end_s - self.clock.now())
                return
            self.clock.advance(max(0.0, next_s - self.clock.now()))
            while self._events and self._events[0][0] <= self.clock.now():
                heapq.heappop(self._events)[2]()
            self._poll()

    def _at(self, delay_s: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.clock.now() + delay_s, self._count, what))

    def _ask(self) -> None:
        self._count += 1
        call_id, tokens = f"c{self._count}", self.traffic.input_tokens(self.rng)
        self._sizes[call_id] = tokens
        prefix = (7,) if self.traffic.cached else ()
        self.core.submit(
            LeaseRequest(
                call_id,
                HAIKU,
                int(tokens * self.traffic.estimate),
                self.traffic.max_tokens,
                prefix=prefix,
                prefix_tokens=prefix and (tokens // 2,),
            )
        )

    def _poll(self) -> None:
        for decision in self.core.poll():
            assert isinstance(decision, Granted)
            lease = decision.lease
            self._at(self.rng.uniform(0.001, 0.05), partial(self._arrive, lease))

    def _arrive(self, lease: Lease) -> None:
        now_s, traffic = self.clock.now(), self.traffic
        tokens = self._sizes.pop(lease.call_id)
        cached = int(tokens * traffic.cached)
        refusal = self.limits.admit(tokens - cached, now_s)
        if refusal is not None:
            self.seen.refused_s.append(now_s)
            headers = self.limits.headers(now_s, WALL_S + now_s)
            after_s = float(refusal.retry_after_s)
            self._end(
                Settlement(
                    lease.lease_id,
                    Outcome.FAILED,
                    cost_usd=Decimal(0),
                    error_kind="rate_limit_error",
                    retry_after_s=after_s,
                    limit_headers=headers,
                )
            )
            return
        output = min(traffic.max_tokens, traffic.output_tokens(self.rng))
        self.seen.admitted.append((now_s, tokens - cached, output))
        generation_s = traffic.per_token_s * output
        usage = TokenUsage(tokens - cached, 0, cached, output)

        def begin() -> None:
            headers = self.limits.headers(self.clock.now(), WALL_S + self.clock.now())
            self.seen.first_answer_s = min(self.seen.first_answer_s, self.clock.now())
            settlement = Settlement(
                lease.lease_id,
                Outcome.OK,
                usage,
                Decimal("0.0001"),
                Timings(0.0, traffic.ttft_s, generation_s, traffic.ttft_s + generation_s),
                limit_headers=headers,
            )
            self._at(generation_s, lambda: self._end(settlement))
            # Tokens are counted as they are made: here in ten steps.
            for step in range(10):
                made = output * (step + 1) // 10 - output * step // 10
                self._at(generation_s * (step + 1) / 10, partial(self._made, made))

        self._at(traffic.ttft_s, begin)

    def _made(self, tokens: int) -> None:
        self.limits.take_output(tokens, self.clock.now())

    def _end(self, settlement: Settlement) -> None:
        self.core.settle(settlement)
        self._ask()
