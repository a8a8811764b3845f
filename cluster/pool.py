"""Pure: endpoints in classes of equals, each class with an index of its members by load."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from agentcloud.cluster.burden import Burden
from agentcloud.cluster.circuit import UP, Standing
from agentcloud.cluster.contracts import EndpointKind, EndpointSpec
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.limits import AccountLimits
from agentcloud.cluster.line import Line
from agentcloud.cluster.predict import Estimate, Predictor
from agentcloud.cluster.prefill import pairs_of
from agentcloud.cluster.prefix import PrefixIndex

if TYPE_CHECKING:
    from agentcloud.cluster.contracts import LeaseRequest
    from agentcloud.cluster.waiting import Group

#: How many of the least loaded members of a class a choice compares; more where the time to the
#: first token counts, which depends on the prompts queued and less on the calls in flight.
FEW: Final = 3
FEW_FOR_STREAMS: Final = 8
#: Of streams also so many that were given no call for the longest: they have read their prompts.
FEW_RESTED: Final = 8


class Pick:
    """A member that could start a call now, and what the call would take there.

    Attributes:
        felt_s: the time that its caller would wait for it (`felt`).
        others_s: the time that others would wait for it (burden.py).
    """

    __slots__ = ("cached_tokens", "estimate", "felt_s", "others_s", "state")

    def __init__(
        self,
        state: EndpointState,
        estimate: Estimate,
        cached_tokens: int,
        felt_s: float,
        others_s: float,
    ) -> None:
        self.state = state
        self.estimate = estimate
        self.cached_tokens = cached_tokens
        self.felt_s = felt_s
        self.others_s = others_s


def felt(estimate: Estimate, request: LeaseRequest) -> float:
    """Seconds that a caller waits: to the end of an answer, or for a stream to its first token."""
    return estimate.ttft_s if request.stream and estimate.ttft_known else estimate.total_s


ClassKey = tuple[object, ...]


def class_key(spec: EndpointSpec) -> ClassKey:
    """What endpoints must share to be equals: everything but the name.

    The room of the KV cache, too, is each one's own: on GPUs it is measured and comes out a few
    blocks apart.
    """
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
        "_line",
        "_lowest",
        "_rested",
        "backlog",
        "broken",
        "burden",
        "is_local",
        "limiter",
        "members",
        "predictor",
        "prefixes",
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
        self.prefixes = PrefixIndex()
        self.burden = Burden()
        self.members: dict[str, EndpointState] = {}
        self.slots = 0
        self.backlog = 0
        self.timer_s: float | None = None
        #: Local: how long a member takes to start where none runs; None: none can be started.
        self.start_s: float | None = None
        self.broken = ""
        #: Whether its calls cost GPU time and no money of their own.
        self.is_local = spec.kind is EndpointKind.LOCAL
        self.usd_per_s = float(spec.usd_per_hour or Decimal(0)) / 3600.0
        self._buckets: list[dict[str, EndpointState]] = []
        self._lowest = 0
        self._rested: dict[str, EndpointState] = {}
        self._line = Line()

    @property
    def name(self) -> str:
        """A member's name, to speak of the class by."""
        return next(iter(self.members), self.spec.name)

    def place(self, state: EndpointState, now_s: float) -> None:
        """Put a member where its load and health belong; call after every change of either."""
        name, buckets = state.spec.name, self._buckets
        member = self.members.get(name) is state
        if not member:
            self._rested.pop(name, None)
        elif name not in self._rested:
            self._rested[name] = state
        target = state.inflight if member and state.admits(now_s) else -1
        if target != state.bucket:
            if state.bucket >= 0:
                del buckets[state.bucket][name]
            while target >= len(buckets):
                buckets.append({})
            if target >= 0:
                buckets[target][name] = state
                if target < self._lowest:
                    self._lowest = target
                # So that nobody looks through them once a peak is over.
                while not buckets[-1]:
                    buckets.pop()
            state.bucket = target
        up = member and state.circuit.standing is UP
        slots = state.concurrency.limit if up else 0
        if slots != state.slots:
            self.slots += slots - state.slots
            state.slots = slots

    def was_given(self, state: EndpointState) -> None:
        """A member was given a call: all others have had more time to read their prompts."""
        name = state.spec.name
        if self._rested.pop(name, None) is not None:
            self._rested[name] = state

    def has_room(self) -> bool:
        """Whether some member admits a call (its account's limits are another question)."""
        buckets = self._buckets
        lowest = self._lowest
        while lowest < len(buckets) and not buckets[lowest]:
            lowest += 1
        self._lowest = lowest
        return lowest < len(buckets)

    def pick(
        self, request: LeaseRequest, output_tokens: float, avoid: frozenset[str], now_s: float
    ) -> Pick | None:
        """The best of the few least loaded members and of those that hold the longest prefix."""
        if not self.has_room():
            return None
        input_tokens, predictor = request.input_tokens, self.predictor
        weight = self.burden.weight(len(self.members), now_s)
        if len(self.members) == 1 and not (request.prefix or avoid):
            only = next(iter(self.members.values()))
            estimate = only.estimate(input_tokens, output_tokens, now_s)
            others_s = weight * only.squared_s(input_tokens, 0) if weight else 0.0
            return Pick(only, estimate, 0, felt(estimate, request), others_s)
        few = self._few(request, avoid, now_s)
        base_s, token_s, pair_s, running_s = predictor.line(output_tokens, ttft_only=request.stream)
        ttft, prefix = predictor.ttft, request.prefix
        best, best_s, others_s = None, float("inf"), 0.0
        for state in few:
            cached = state.cached_tokens(request, now_s) if prefix else 0
            own = float(input_tokens - cached)
            pairs = own * (cached + 0.5 * own)
            queue = state.queue
            if queue.tokens:
                queue.drain(ttft, now_s)
                own += queue.tokens
                pairs += queue.pairs
            running = (state.running(now_s) if state.foreign else state.inflight) + 1
            felt_s = state.slowness * (
                base_s + token_s * own + pair_s * pairs + running_s * running
            )
            burden_s = weight * state.squared_s(input_tokens, cached) if weight else 0.0
            if felt_s + burden_s < best_s:
                best, best_s, others_s = state, felt_s + burden_s, burden_s
                load = running, own, pairs, cached
        if best is None:
            return None
        running, own, pairs, cached = load
        estimate = predictor.estimate(running, own, output_tokens, best.slowness, pairs)
        return Pick(best, estimate, cached, felt(estimate, request), others_s)

    def _few(
        self, request: LeaseRequest, avoid: frozenset[str], now_s: float
    ) -> list[EndpointState]:
        """The few least loaded members, and those that hold the longest prefix."""
        few = FEW_FOR_STREAMS if request.stream else FEW
        least = self._buckets[self._lowest]
        if len(least) >= few and not (avoid or request.prefix or request.stream):
            return list(itertools.islice(least.values(), few))
        found: list[EndpointState] = []
        for bucket in itertools.islice(self._buckets, self._lowest, None):
            if bucket:
                members = iter(bucket.values())
                if avoid:
                    members = filter(lambda state: state.spec.name not in avoid, members)
                found.extend(itertools.islice(members, few - len(found)))
                if len(found) >= few:
                    break
        if request.stream:
            found.extend(self._most_rested(found, avoid, now_s))
        if request.prefix:
            for state in self.prefixes.longest(request.prefix)[1]:
                if state not in found and state.admits(now_s) and state.spec.name not in avoid:
                    found.append(state)
        return found

    def _most_rested(
        self, found: list[EndpointState], avoid: frozenset[str], now_s: float
    ) -> list[EndpointState]:
        """Of those not found yet the few that were given no call for the longest."""
        rested: list[EndpointState] = []
        for state in self._rested.values():
            if len(rested) >= FEW_RESTED:
                break
            if state not in found and state.admits(now_s) and state.spec.name not in avoid:
                rested.append(state)
        return rested

    def full_estimate(self, input_tokens: int, output_tokens: float) -> Estimate:
        """What a call would take on a member whose slots are all taken."""
        per_member = max(1, self.slots // max(1, len(self.members)))
        return self.predictor.estimate(per_member, float(input_tokens), output_tokens)

    def full_others_s(self, input_tokens: int, now_s: float) -> float:
        """As `Pick.others_s`, of a member whose slots are all taken."""
        work_s = self.predictor.ttft.work_s(float(input_tokens), pairs_of(input_tokens, 0.0))
        return self.burden.weight(max(1, len(self.members)), now_s) * 0.5 * work_s * work_s

    def join(self, group: Group) -> None:
        """Let a group wait here for room."""
        if self not in group.joined:
            group.joined.add(self)
            self.came_forward(group)

    def came_forward(self, group: Group) -> None:
        """A group that waits here stands further in front than before."""
        self._line.push(group)

    def front(self) -> Group | None:
        """The group whose first waiter is next here."""
        return self._line.front(self)

    def set_aside(self, group: Group) -> None:
        """Its front group would rather wait elsewhere: let the next one try."""
        self._line.drop(group)
        group.joined.discard(self)

    def forget_waiting(self) -> None:
        """Drop all waiting groups (they are about to be formed anew)."""
        self._line.clear()
        self.backlog = 0

    def tell(self, now_s: float) -> str:
        """Why it has no room, in words."""
        if self.slots:
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
