"""Pure: endpoints in classes of equals, each class with an index of its members by load."""

from __future__ import annotations

import heapq
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from agentcloud.cluster.circuit import Circuit, Standing
from agentcloud.cluster.contracts import EndpointKind, EndpointSpec, LoadReport
from agentcloud.cluster.limits import AccountLimits, AdaptiveConcurrency
from agentcloud.cluster.predict import Estimate, Predictor

if TYPE_CHECKING:
    from agentcloud.cluster.waiting import Group

#: A load report older than this says nothing.
STALE_S: Final = 5.0
#: How many of the least loaded members of a class a choice compares.
FEW: Final = 3


class EndpointState:
    """One endpoint: what is in flight there, how it is doing, how slow it is among its equals."""

    __slots__ = (
        "bucket",
        "circuit",
        "cls",
        "concurrency",
        "foreign",
        "inflight",
        "load",
        "prompt_tokens_since",
        "slots",
        "slowness",
        "spec",
    )

    def __init__(self, spec: EndpointSpec, cls: EndpointClass) -> None:
        self.spec = spec
        self.cls = cls
        self.circuit = Circuit()
        self.concurrency = AdaptiveConcurrency(spec.max_concurrency)
        self.inflight = 0
        self.slowness = 1.0
        self.load: LoadReport | None = None
        self.foreign = 0
        self.prompt_tokens_since = 0
        self.bucket = -1
        self.slots = 0

    def report(self, load: LoadReport) -> None:
        """Take a load report in; calls it runs that we did not lease count as foreign."""
        self.load = load
        self.foreign = max(0, load.running + load.waiting - self.inflight)
        self.prompt_tokens_since = 0

    def admits(self, now_s: float) -> bool:
        """Whether one more call may be granted here."""
        return self.circuit.admits(self.inflight, self.concurrency.limit, now_s)

    def running(self, now_s: float) -> int:
        """Calls it works on: ours, and others' by its last report if that is fresh."""
        if self.foreign and self.load is not None and now_s - self.load.at_s < STALE_S:
            return self.inflight + self.foreign
        return self.inflight

    def queued_prompt_tokens(self, now_s: float) -> int:
        """Prompt tokens waiting to be read there: reported, and granted since."""
        if self.load is None or now_s - self.load.at_s >= STALE_S:
            return 0
        return self.load.prompt_tokens_queued + self.prompt_tokens_since

    def estimate(self, input_tokens: int, output_tokens: float, now_s: float) -> Estimate:
        """What one more call would take here."""
        if self.load is None:
            return self.cls.predictor.estimate(
                self.inflight + 1, float(input_tokens), output_tokens, self.slowness
            )
        return self.cls.predictor.estimate(
            self.running(now_s) + 1,
            float(input_tokens + self.queued_prompt_tokens(now_s)),
            output_tokens,
            self.slowness,
        )

    def __repr__(self) -> str:
        return (
            f"<Endpoint {self.spec.name} {self.circuit.standing} "
            f"{self.inflight}/{self.concurrency.limit}>"
        )


ClassKey = tuple[object, ...]


def class_key(spec: EndpointSpec) -> ClassKey:
    """What endpoints must share to be equals: everything but the name."""
    return (
        spec.kind,
        spec.model,
        spec.tier,
        spec.account,
        spec.family,
        spec.features,
        spec.context_tokens,
        spec.max_output_tokens,
        spec.max_concurrency,
        spec.usd_per_hour,
    )


class EndpointClass:
    """Endpoints of equal model, price and account.

    `_buckets[n]` holds the members that admit a call and have n in flight, in the order they got
    there; so the least loaded one is found without looking at the others.
    """

    __slots__ = (
        "_buckets",
        "_lowest",
        "_waiting",
        "backlog",
        "broken",
        "limiter",
        "members",
        "predictor",
        "slots",
        "spec",
        "start_s",
        "timer_s",
        "usd_per_s",
    )

    def __init__(self, spec: EndpointSpec, limiter: AccountLimits | None) -> None:
        self.spec = spec
        self.limiter = limiter
        self.predictor = Predictor()
        self.members: dict[str, EndpointState] = {}
        self.slots = 0
        self.backlog = 0
        self.timer_s: float | None = None
        #: Local: how long a member takes to start where none runs; None: none can be started.
        self.start_s: float | None = None
        self.broken = ""
        self.usd_per_s = float(spec.usd_per_hour or Decimal(0)) / 3600.0
        self._buckets: list[dict[str, EndpointState]] = []
        self._lowest = 0
        self._waiting: list[tuple[int, int, int, Group]] = []

    @property
    def name(self) -> str:
        """A member's name, to speak of the class by."""
        return next(iter(self.members), self.spec.name)

    @property
    def is_local(self) -> bool:
        """Whether its calls cost GPU time and no money of their own."""
        return self.spec.kind is EndpointKind.LOCAL

    def place(self, state: EndpointState, now_s: float) -> None:
        """Put a member where its load and health belong; call after every change of either."""
        member = self.members.get(state.spec.name) is state
        target = state.inflight if member and state.admits(now_s) else -1
        if target != state.bucket:
            if state.bucket >= 0:
                del self._buckets[state.bucket][state.spec.name]
            while target >= len(self._buckets):
                self._buckets.append({})
            if target >= 0:
                self._buckets[target][state.spec.name] = state
                self._lowest = min(self._lowest, target)
            state.bucket = target
        slots = state.concurrency.limit if member and state.circuit.is_answering else 0
        self.slots += slots - state.slots
        state.slots = slots

    def has_room(self) -> bool:
        """Whether some member admits a call (its account's limits are another question)."""
        buckets = self._buckets
        lowest = self._lowest
        while lowest < len(buckets) and not buckets[lowest]:
            lowest += 1
        self._lowest = lowest
        return lowest < len(buckets)

    def pick(
        self, input_tokens: int, output_tokens: float, avoid: frozenset[str], now_s: float
    ) -> tuple[EndpointState, Estimate] | None:
        """The best of the few least loaded members that are not avoided, and its estimate."""
        if not self.has_room():
            return None
        best: tuple[EndpointState, Estimate] | None = None
        seen = 0
        buckets = self._buckets
        for inflight in range(self._lowest, len(buckets)):
            for state in buckets[inflight].values():
                if avoid and state.spec.name in avoid:
                    continue
                estimate = state.estimate(input_tokens, output_tokens, now_s)
                if best is None or estimate.total_s < best[1].total_s:
                    best = state, estimate
                seen += 1
                if seen == FEW:
                    return best
        return best

    def full_estimate(self, input_tokens: int, output_tokens: float) -> Estimate:
        """What a call would take on a member whose slots are all taken."""
        per_member = max(1, self.slots // max(1, len(self.members)))
        return self.predictor.estimate(per_member, float(input_tokens), output_tokens)

    def join(self, group: Group) -> None:
        """Let a group wait here for room."""
        if self not in group.joined:
            group.joined.add(self)
            priority, seq = group.front()
            heapq.heappush(self._waiting, (priority, seq, id(group), group))

    def front(self) -> Group | None:
        """The group whose first waiter is next here; outdated entries are mended on the way."""
        waiting = self._waiting
        while waiting:
            priority, seq, _, group = waiting[0]
            if self not in group.joined:
                heapq.heappop(waiting)
            elif not group.live:
                group.joined.discard(self)
                heapq.heappop(waiting)
            elif (key := group.front()) != (priority, seq):
                heapq.heapreplace(waiting, (*key, id(group), group))
            else:
                return group
        return None

    def set_aside(self, group: Group) -> None:
        """Its front group would rather wait elsewhere: let the next one try."""
        group.joined.discard(self)
        if self._waiting and self._waiting[0][3] is group:
            heapq.heappop(self._waiting)

    def forget_waiting(self) -> None:
        """Drop all waiting groups (they are about to be formed anew)."""
        self._waiting.clear()
        self.backlog = 0

    def tell(self, now_s: float) -> str:
        """Why it has no room, in words."""
        if any(state.circuit.is_answering for state in self.members.values()):
            return "busy"
        first = next(iter(self.members.values()), None)
        return first.circuit.tell(now_s) if first else "gone"

    def opens_in_s(self, now_s: float) -> float | None:
        """Seconds until its first cooling member may be probed; None if none is cooling."""
        waits = [
            max(0.0, state.circuit.until_s - now_s)
            for state in self.members.values()
            if state.circuit.standing is Standing.COOLING
        ]
        return min(waits) if waits else None

    @property
    def is_resting(self) -> bool:
        """Whether it has no member now and will have one if somebody waits for it."""
        return not self.members and self.start_s is not None

    def is_usable(self) -> bool:
        """Whether some member is not out for good, or one can be started."""
        return self.is_resting or any(
            state.circuit.standing is not Standing.UNUSABLE for state in self.members.values()
        )

    def __repr__(self) -> str:
        inflight = sum(state.inflight for state in self.members.values())
        return (
            f"<EndpointClass {self.spec.model} x{len(self.members)} "
            f"inflight={inflight}/{self.slots} backlog={self.backlog}>"
        )
