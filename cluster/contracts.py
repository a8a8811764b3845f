"""Frozen data and Protocols that cross modules.

One currency: a request is the Anthropic Messages API's parameters (`Params`), an answer is
`anthropic.types.Message`, a stream is its raw events, for local models too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from anthropic.types import Message

#: Parameters of `POST /v1/messages`, JSON-able, without `stream`.
Params = Mapping[str, Any]

#: Ray namespace of everything long-lived.
RAY_NAMESPACE = "agentcloud"
SCHEDULER_NAME = "scheduler"
BATCHER_NAME = "batcher"
FLEET_NAME = "fleet"
CACHE_NAME = "cache"


class EndpointKind(StrEnum):
    """Where an endpoint's tokens are made."""

    LOCAL = "local"
    HOSTED = "hosted"


class Feature(StrEnum):
    """What a request may need and an endpoint may lack."""

    IMAGES = "images"
    DOCUMENTS = "documents"
    TOOLS = "tools"
    FORCED_TOOLS = "forced_tools"
    THINKING = "thinking"
    SERVER_TOOLS = "server_tools"
    JSON_SCHEMA = "json_schema"
    STRICT_TOOLS = "strict_tools"
    #: `temperature`, `top_p` or `top_k` other than the default: the newest models refuse them.
    SAMPLING = "sampling"
    #: A last message of the assistant's, to be continued.
    PREFILL = "prefill"
    THINKING_BUDGET = "thinking_budget"
    THINKING_DISABLED = "thinking_disabled"
    #: The answer's mean log-probability: local models tell it, the Messages API has no such thing.
    MEAN_LOGPROB = "mean_logprob"


class Policy(StrEnum):
    """How money and time are weighed when choosing."""

    COST = "cost"
    BALANCED = "balanced"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One place that serves calls: a replica, or a hosted model at one account.

    Attributes:
        name: unique, e.g. `replica:triage-small:0` or `anthropic/claude-haiku-5-5`.
        kind: local or hosted.
        model: the model's name at that endpoint.
        tier: `small`, `large`, or another tier of fleet.yaml.
        account: hosted: the account whose limits and key it uses.
        family: hosted: model family whose limits pool within the account.
        features: what it can do.
        context_tokens: prompt and answer together.
        max_output_tokens: the most it generates in one answer.
        max_concurrency: calls it takes at once; more wait at the scheduler.
        usd_per_hour: local: price of its GPUs an hour; None when unknown or unpriced.
        batch: hosted: calls go there by Message Batches, at the catalogue's discount.
        min_deadline_s: only calls that may take so long are for it, and no streams.
        timeout_s: the longest one send there may take; None: fleet.yaml's `retry.timeout_s`.
        prior_s: what a call there is taken to need before any was measured; None: as others.
        kv_tokens: local: tokens that its KV cache holds; None when unknown.
        min_cache_tokens: hosted: the shortest prompt that it caches; None: it has no cache.
    """

    name: str
    kind: EndpointKind
    model: str
    tier: str
    context_tokens: int
    max_output_tokens: int
    max_concurrency: int
    account: str | None = None
    family: str | None = None
    features: frozenset[Feature] = frozenset()
    usd_per_hour: Decimal | None = None
    batch: bool = False
    min_deadline_s: float = 0.0
    timeout_s: float | None = None
    prior_s: float | None = None
    kv_tokens: int | None = None
    min_cache_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A replica's load as it last said; `at_s` is the receiver's clock."""

    running: int = 0
    waiting: int = 0
    kv_used_fraction: float = 0.0
    tokens_done: int = 0
    prompt_tokens_queued: int = 0
    progress_age_s: float = 0.0
    at_s: float = 0.0


class ExtraSends(Protocol):
    """Sends after a call's first one, out of what several calls share (a task's attempts)."""

    def take(self) -> bool:
        """Take one; False when none is left."""
        ...


@dataclass(frozen=True, slots=True)
class Routing:
    """What agentcloud adds to a Messages request.

    Attributes:
        tier: tier or model name to use in place of the request's `model`.
        deadline_s: seconds from now by which the answer should be whole.
        priority: smaller is sooner; 0 is normal.
        policy: overrides the fleet's policy.
        budget: path of budget scopes, outermost first, e.g. `("job:j1", "task:j1/7")`;
            the fleet's own budget is always above it.
        cache: whether the response cache may answer; None: at temperature 0, where no tool runs at
            the server. A sampled call that says True gets one and the same answer every time, also
            in a task's next attempt. Not for streams; nothing without fleet.yaml's `cache:`.
        endpoint: a single endpoint by name (tests, conversations that must stay).
        max_attempts: the most sends of this call over all endpoints; None: fleet.yaml's.
        timeout_s: the longest one send may take; None: fleet.yaml's.
        extra_sends: what every send after the first is taken from, beside `max_attempts`; it stays
            in the caller's process.
        fallback: whether another tier may serve where nothing of the asked-for one can; None: as
            fleet.yaml's `fallbacks:` say.
        mean_logprob: ask for the answer's mean log-probability too (`Receipt.mean_logprob`), which
            only local models can tell; unary calls only.
        cache_marks: `cache_control` marks are placed where they pay (cache_marks.py); None: as
            fleet.yaml's `cache_marks` says.
        continuation: a stream that breaks after part of its text is carried on by another endpoint,
            where that is possible; without it such a stream ends in `StreamBroken`.
        idempotent: the call may be sent twice at once when it is slow (fleet.yaml's `hedge:`); both
            sends are paid for.
        kind: what kind of job the call is of, for baselines and alarms; a job's calls carry its
            agent's name.
        step: the recorded step that the call is: under it, whoever goes on after a crash finds
            what was paid for it.
    """

    tier: str | None = None
    deadline_s: float | None = None
    priority: int = 0
    policy: Policy | None = None
    budget: tuple[str, ...] = ()
    cache: bool | None = None
    endpoint: str | None = None
    max_attempts: int | None = None
    timeout_s: float | None = None
    extra_sends: ExtraSends | None = None
    fallback: bool | None = None
    mean_logprob: bool = False
    continuation: bool = False
    cache_marks: bool | None = None
    idempotent: bool = False
    kind: str = ""
    step: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What the scheduler is told of one send: sizes and needs, never the prompt.

    Attributes:
        call_id: the call's; the scheduler answers a repeated (call_id, attempt) once.
        input_tokens: the whole prompt, counted or estimated from above.
        avoid: endpoints that failed this call: used again only if nothing else is able.
        holder: the process that asks; its leases end with it.
        cache_ttl: the longest `cache_control` mark of the request, whose writes cost most; None:
            it has none.
        stream: the answer is wanted as it comes: the time to the first token counts, and not the
            time to the last.
        paced: a later send that is not charged to the retry quota, see `retry.is_paced`.
        hedge: a second send beside the first: granted at once and on none of `avoid`, or refused.
        spare: for a call that may come (spares.py): granted at once by a local endpoint with room
            to spare, or refused.
        prefix: hashes of the prompt's chunks, each over everything before it (prefix.py).
        prefix_tokens: tokens up to the end of each chunk.
    """

    call_id: str
    model: str
    input_tokens: int
    max_output_tokens: int
    needs: frozenset[Feature] = frozenset()
    routing: Routing = Routing()
    attempt: int = 1
    avoid: frozenset[str] = frozenset()
    holder: str = ""
    cache_ttl: Literal["5m", "1h"] | None = "1h"
    paced: bool = False
    stream: bool = False
    hedge: bool = False
    spare: bool = False
    prefix: tuple[int, ...] = ()
    prefix_tokens: tuple[int, ...] = ()

    @property
    def is_later(self) -> bool:
        """Whether it is charged to the retry quota: a later send that is not paced."""
        return self.attempt > 1 and not self.paced

    @property
    def patience_s(self) -> float:
        """How long the caller has said that it can wait for the whole answer; 0.0: not at all."""
        routing = self.routing
        if self.stream or self.hedge or routing.deadline_s is None:
            return 0.0
        if routing.timeout_s is None:
            return routing.deadline_s
        return min(routing.deadline_s, routing.timeout_s)


class Considered(NamedTuple):
    """One endpoint that a choice compared: the best of its equals.

    Attributes:
        endpoint: its name.
        total_s: predicted time to the end of the answer, waiting included, seconds.
        wait_s: the part of it that is waiting at the scheduler.
        ttft_s: predicted time to first token after sending; None: no data yet.
        cost_usd: expected cost.
        cached_tokens: prompt tokens that its cache was taken to hold.
        others_s: predicted time that other calls wait longer for it, all together.
        worth: what that time is worth by their own policies, relative to `balanced`.
        not_now: why it could not start the call at once, in words; empty: it could.
    """

    endpoint: str
    total_s: float
    wait_s: float
    ttft_s: float | None
    cost_usd: float
    cached_tokens: int
    others_s: float
    worth: float
    not_now: str


class Why(Protocol):
    """The reason of a choice, put into words only where somebody reads it."""

    def words(self, considered: Sequence[Considered]) -> str:
        """What a person reads."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to send one call to one endpoint, with everything reserved for it.

    Attributes:
        why: why this endpoint; `reason` says it in words.
        reserved_usd: worst case held at every budget of the path.
        predicted_ttft_s: prediction of the time to first token, seconds; None: no data yet.
        predicted_total_s: prediction of the whole call, seconds; None: no data yet.
        queued_s: how long the request waited at the scheduler.
        expires_in_s: seconds after which an unsettled lease is charged as unknown.
        fallback_from: the tier or model that was meant to serve and could not; None: it does.
        hedge_after_s: seconds after which the call is slow and may be sent a second time; None:
            it may not, or there is no data yet.
        considered: every endpoint that was compared, the chosen one among them.
        reused_chunks: hosted: chunks of the prompt that were used there in the last five minutes,
            or that another waiting call has too.
        warms: others wait for this call's first token, to read what it writes into the cache: the
            scheduler is to be told of it (`SchedulerPort.warmed`).
    """

    lease_id: str
    call_id: str
    endpoint: EndpointSpec
    why: Why
    reserved_usd: Decimal
    predicted_ttft_s: float | None
    predicted_total_s: float | None
    queued_s: float
    expires_in_s: float
    fallback_from: str | None = None
    hedge_after_s: float | None = None
    considered: tuple[Considered, ...] = ()
    reused_chunks: int = 0
    warms: bool = False

    @property
    def reason(self) -> str:
        """Why this endpoint, in words that a person can read."""
        return self.why.words(self.considered)


class Outcome(StrEnum):
    """How a leased send ended."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Timings:
    """Time of one call, seconds; None where it was not measured, never a guess.

    Attributes:
        queue_s: waiting for a lease, over all attempts.
        ttft_s: from sending to the first token.
        generation_s: from the first token to the last.
        total_s: from the caller's request to the answer, everything included.
        engine_queue_s: local: waiting inside the engine.
    """

    queue_s: float | None = None
    ttft_s: float | None = None
    generation_s: float | None = None
    total_s: float | None = None
    engine_queue_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one answer; the whole prompt is the first three together."""

    input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, cached or not."""
        return self.input_tokens + self.cache_write_tokens + self.cache_read_tokens


@dataclass(frozen=True, slots=True)
class Settlement:
    """The truth about a lease, told once.

    Attributes:
        cost_usd: what it cost; None when unknown: the reservation stays charged.
        error_kind: the API's error type, for failed sends.
        retry_after_s: what the server asked for.
        limit_headers: `anthropic-ratelimit-*` headers of the response, lower case.
        unusable: the endpoint must not be used again until its configuration changes.
        beaten: given up because another send of its call answered first.
        saved_usd: what the model's cache saved on it (`Receipt.saved_usd`).
    """

    lease_id: str
    outcome: Outcome
    usage: TokenUsage | None = None
    cost_usd: Decimal | None = None
    timings: Timings = Timings()
    error_kind: str | None = None
    retry_after_s: float | None = None
    limit_headers: Mapping[str, str] = field(default_factory=dict)
    unusable: bool = False
    beaten: bool = False
    saved_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Escalation:
    """Why an answer came from a dearer tier than the first that was asked.

    Attributes:
        tiers: the tiers whose answers were not taken, in order.
        reasons: what was wrong with each.
        spent_usd: what they cost; None: unknown. They are calls with receipts of their own.
    """

    tiers: tuple[str, ...]
    reasons: tuple[str, ...]
    spent_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is attached to every answer as `message.agentcloud`.

    Attributes:
        endpoint: the endpoint that served.
        model: the model that served (the price's).
        reason: why it was chosen.
        cost_usd: what the whole call cost, failed attempts included; None: unknown.
        attempts: sends of this call.
        usage: tokens of the answer; of one from the response cache, all of its prompt counts as
            read from a cache.
        timings: time split into queue, first token and generation.
        spent_elsewhere_usd: part of the cost that failed attempts took.
        cached: answered by the response cache (its `endpoint` is `cache`) or a recorded step.
        fallback_from: the tier or model that was meant to serve and could not (`reason` says
            why); None: it did.
        batch: it came by a Message Batch, at half the price.
        mean_logprob: natural logarithm of the answer's tokens' probabilities, their mean; None:
            not asked for, or not told.
        agreement: of a cascade's sample: the share of its samples that say the commonest thing.
        escalated: the cheaper tiers that were asked before, on the first call after them.
        continued_from: the endpoint that served the beginning of a stream which broke there;
            `usage` and cost are of all its parts. None: one endpoint served it whole.
        valid: whether it satisfied the schema of its output; None: there was none.
        hedged: it was slow and sent a second time; the other send's cost is part of the call's.
        saved_usd: hosted: what the model's cache saved on the answer, against plain input; below
            zero: it was written to, and pays later. None: not known, or local. Of an answer from
            the response cache: what it had cost, wherever it was made.
        unknown_usd: the most that those of its sends may have cost whose cost is unknown: it stays
            charged to every budget, and `cost_usd` is None while it is not zero.
        considered: the endpoints that were compared for the send that was answered.
        lease_id: of that send's lease; None: the answer took none.
        lease_usd: what that send cost; None: unknown.
    """

    call_id: str
    endpoint: str
    model: str
    kind: EndpointKind
    reason: str
    cost_usd: Decimal | None
    attempts: int
    usage: TokenUsage
    timings: Timings
    spent_elsewhere_usd: Decimal = Decimal(0)
    cached: bool = False
    fallback_from: str | None = None
    batch: bool = False
    mean_logprob: float | None = None
    agreement: float | None = None
    escalated: Escalation | None = None
    continued_from: str | None = None
    valid: bool | None = None
    hedged: bool = False
    unknown_usd: Decimal = Decimal(0)
    considered: tuple[Considered, ...] = ()
    saved_usd: Decimal | None = None
    lease_id: str | None = None
    lease_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One send: the request as the endpoint gets it.

    Attributes:
        prefix: for a replica that tells what it caches: hashes of the prompt's chunks.
        prefix_shares: the part of the prompt up to the end of each.
        on_first: hosted: called once the first token is there.
    """

    call_id: str
    params: Params
    timeout_s: float
    prefix: tuple[int, ...] = ()
    prefix_shares: tuple[float, ...] = ()
    on_first: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint gives back for one unary send."""

    message: Message
    timings: Timings
    limit_headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BudgetState:
    """One budget of the tree, USD."""

    scope: str
    limit_usd: Decimal | None
    spent_usd: Decimal
    reserved_usd: Decimal
    unknown_usd: Decimal
