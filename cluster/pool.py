"""Pure: endpoints in classes of equals, each class with an index of its members by load."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from agentcloud.cluster.circuit import Circuit, Standing
from agentcloud.cluster.contracts import EndpointKind, EndpointSpec, LoadReport
from agentcloud.cluster.limits import AccountLimits, AdaptiveConcurrency
from agentcloud.cluster.line import Line
from agentcloud.cluster.predict import Estimate, Predictor
from agentcloud.cluster.prefill import PrefillQueue, pairs_of
from agentcloud.cluster.prefix import Holding, PrefixIndex

if TYPE_CHECKING:
    from agentcloud.cluster.contracts import LeaseRequest
    from agentcloud.cluster.waiting import Group

#: Looked up often: a member of an enumeration takes six times as long to get at.
_UP: Final = Standing.UP
#: A load report older than this says nothing.
STALE_S: Final = 5.0
#: How many of the least loaded members of a class a choice compares; more where the time to the
#: first token counts, which depends on the prompts queued and less on the calls in flight.
FEW: Final = 3
FEW_FOR_STREAMS: Final = 8
#: A replica whose calls are expected to need this share of its KV cache gets no more: beyond it the
#: engine would queue them itself, or preempt and compute them again.
_KV_FULL: Final = 0.95
#: Chunks remembered of an endpoint that does not tell its cache's size: 4 million tokens.
_CHUNKS: Final = 16_384
#: How long hosted models keep a prefix after its last use.
HOSTED_TTL_S: Final = 300.0
#: Tokens a chunk stands for when a cache's size is turned into chunks.
_CHUNK_TOKENS: Final = 256


class EndpointState:
    """One endpoint: what is in flight there, how it is doing, how slow it is among its equals."""

    __slots__ = (
        "bucket",
        "circuit",
        "cls",
        "concurrency",
        "foreign",
        "holding",
        "inflight",
        "kv_held",
        "load",
        "queue",
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
        self.queue = PrefillQueue()
        self.holding = Holding(
            (spec.kv_tokens or _CHUNKS * _CHUNK_TOKENS) // _CHUNK_TOKENS,
            None if cls.is_local else HOSTED_TTL_S,
        )
        self.kv_held = 0.0
        self.bucket = -1
        self.slots = 0

    def report(self, load: LoadReport) -> None:
        """Take a load report in; calls it runs that we did not lease count as foreign."""
        self.load = load
        self.foreign = max(0, load.running + load.waiting - self.inflight)
        self.queue.correct(load.prompt_tokens_queued, load.at_s)

    def admits(self, now_s: float) -> bool:
        """Whether one more call may be granted here."""
        kv_tokens = self.spec.kv_tokens
        if kv_tokens is not None and self.kv_held >= _KV_FULL * kv_tokens and self.inflight:
            return False
        inflight, limit, circuit = self.inflight, self.concurrency.limit, self.circuit
        if circuit.standing is _UP:  # As `circuit.admits` has it: nearly always, and often.
            return inflight < limit
        return circuit.admits(inflight, limit, now_s)

    def running(self, now_s: float) -> int:
        """Calls it works on: ours, and others' by its last report if that is fresh."""
        if self.foreign and self.load is not None and now_s - self.load.at_s < STALE_S:
            return self.inflight + self.foreign
        return self.inflight

    def estimate(
        self, input_tokens: int, output_tokens: float, now_s: float, cached_tokens: int = 0
    ) -> Estimate:
        """What one more call would take here, `cached_tokens` of its prompt being in the cache."""
        queue, predictor = self.queue, self.cls.predictor
        own = float(input_tokens - cached_tokens)
        pairs = own * (cached_tokens + 0.5 * own)
        if queue.tokens:
            queue.drain(predictor.ttft, now_s)
        return predictor.estimate(
            self.running(now_s) + 1,
            own + queue.tokens,
            output_tokens,
            self.slowness,
            pairs + queue.pairs,
        )

    def held_chunks(self, request: LeaseRequest, now_s: float) -> int:
        """Chunks of a request's prefix that were used here and are not forgotten."""
        if not request.prefix:
            return 0
        if self.holding.ttl_s is not None:
            self.cls.prefixes.forget_old(self, now_s)
        return PrefixIndex.depth(self, request.prefix)

    def cached_tokens(self, request: LeaseRequest, now_s: float) -> int:
        """Prompt tokens of a request that its cache is taken to hold; never all of them."""
        depth = self.held_chunks(request, now_s)
        return min(request.prefix_tokens[depth - 1], request.input_tokens - 1) if depth else 0

    def taken(self, request: LeaseRequest, cached_tokens: int, now_s: float) -> float:
        """A call was granted here: its prompt is queued, its prefix will be cached.

        Returns:
            Tokens of KV cache that it is expected to hold, to be given back at its end.
        """
        self.inflight += 1
        own = float(request.input_tokens - cached_tokens)
        cls = self.cls
        if cls.is_local:
            self.queue.drain(cls.predictor.ttft, now_s)
            # The step under way is on average half over.
            step_s = cls.predictor.per_token.at(self.inflight) * self.slowness
            self.queue.add(own, pairs_of(own, cached_tokens), now_s + 0.5 * step_s)
        if request.prefix:
            cls.prefixes.insert(self, request.prefix, now_s)
        kv = own + cls.predictor.output_tokens(request.max_output_tokens)
        self.kv_held += kv
        return kv

    def adopted(self, request: LeaseRequest) -> float:
        """A call that has been under way here is counted; as `taken`, its prompt being read."""
        self.inflight += 1
        kv = request.input_tokens + self.cls.predictor.output_tokens(request.max_output_tokens)
        self.kv_held += kv
        return kv

    def given_back(self, kv: float) -> None:
        """A call ended here."""
        self.inflight -= 1
        self.kv_held = max(0.0, self.kv_held - kv) if self.inflight else 0.0

    def __repr__(self) -> str:
        return (
            f"<Endpoint {self.spec.name} {self.circuit.standing} "
            f"{self.inflight}/{self.concurrency.limit}>"
        )


@dataclass(slots=True)
class Pick:
    """A member that could start a call now, and what the call would take there.

    Attributes:
        felt_s: the time that its caller would wait for it (`felt`).
    """

    state: EndpointState
    estimate: Estimate
    cached_tokens: int
    felt_s: float


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
        "backlog",
        "broken",
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
        self._line = Line()

    @property
    def name(self) -> str:
        """A member's name, to speak of the class by."""
        return next(iter(self.members), self.spec.name)

    def place(self, state: EndpointState, now_s: float) -> None:
        """Put a member where its load and health belong; call after every change of either."""
        name, buckets = state.spec.name, self._buckets
        member = self.members.get(name) is state
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
        up = member and state.circuit.standing is _UP
        slots = state.concurrency.limit if up else 0
        if slots != state.slots:
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
        self, request: LeaseRequest, output_tokens: float, avoid: frozenset[str], now_s: float
    ) -> Pick | None:
        """The best of the few least loaded members and of those that hold the longest prefix."""
        if not self.has_room():
            return None
        input_tokens, predictor = request.input_tokens, self.predictor
        if len(self.members) == 1 and not (request.prefix or avoid):
            only = next(iter(self.members.values()))
            estimate = only.estimate(input_tokens, output_tokens, now_s)
            return Pick(only, estimate, 0, felt(estimate, request))
        few = self._few(request, avoid, now_s)
        base_s, token_s, pair_s, running_s = predictor.line(output_tokens, ttft_only=request.stream)
        ttft, prefix = predictor.ttft, request.prefix
        best, best_s = None, float("inf")
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
            if felt_s < best_s:
                best, best_s = state, felt_s
                load = running, own, pairs, cached
        if best is None:
            return None
        running, own, pairs, cached = load
        estimate = predictor.estimate(running, own, output_tokens, best.slowness, pairs)
        return Pick(best, estimate, cached, felt(estimate, request))

    def _few(
        self, request: LeaseRequest, avoid: frozenset[str], now_s: float
    ) -> list[EndpointState]:
        """The few least loaded members, and those that hold the longest prefix."""
        few = FEW_FOR_STREAMS if request.stream else FEW
        least = self._buckets[self._lowest]
        if len(least) >= few and not (avoid or request.prefix):
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
        if request.prefix:
            for state in self.prefixes.longest(request.prefix)[1]:
                if state not in found and state.admits(now_s) and state.spec.name not in avoid:
                    found.append(state)
        return found

    def full_estimate(self, input_tokens: int, output_tokens: float) -> Estimate:
        """What a call would take on a member whose slots are all taken."""
        per_member = max(1, self.slots // max(1, len(self.members)))
        return self.predictor.estimate(per_member, float(input_tokens), output_tokens)

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
        if group is self.front():
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
