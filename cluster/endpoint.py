"""Pure: one endpoint: what is in flight there, how it is doing, what one more call would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agentcloud.cluster.circuit import UP, Circuit
from agentcloud.cluster.contracts import EndpointSpec, LoadReport
from agentcloud.cluster.limits import AdaptiveConcurrency
from agentcloud.cluster.predict import Estimate
from agentcloud.cluster.prefill import PrefillQueue, pairs_of
from agentcloud.cluster.prefix import Holding, PrefixIndex

if TYPE_CHECKING:
    from agentcloud.cluster.contracts import LeaseRequest
    from agentcloud.cluster.pool import EndpointClass

#: A load report older than this says nothing.
STALE_S: Final = 5.0
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
        self.queue.drain(self.cls.predictor.ttft, load.at_s)
        self.queue.correct(load.prompt_tokens_queued, load.at_s, foreign=self.foreign > 0)

    def admits(self, now_s: float) -> bool:
        """Whether one more call may be granted here."""
        kv_tokens = self.spec.kv_tokens
        if kv_tokens is not None and self.kv_held >= _KV_FULL * kv_tokens and self.inflight:
            return False
        inflight, limit, circuit = self.inflight, self.concurrency.limit, self.circuit
        if circuit.standing is UP:  # As `circuit.admits` has it: nearly always, and often.
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

    def work_s(self, input_tokens: int, cached_tokens: int) -> float:
        """Seconds that it computes for a prompt, of which it holds so much."""
        own = float(input_tokens - cached_tokens)
        return self.slowness * self.cls.predictor.ttft.work_s(own, pairs_of(own, cached_tokens))

    def squared_s(self, input_tokens: int, cached_tokens: int) -> float:
        """A prompt's work times what waits for it (burden.py), s2; the queue must be drained."""
        queue, work_s = self.queue, self.work_s(input_tokens, cached_tokens)
        ahead_s = self.slowness * self.cls.predictor.ttft.work_s(queue.tokens, queue.pairs)
        return work_s * (ahead_s + 0.5 * work_s)

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
        cls.was_given(self)
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
