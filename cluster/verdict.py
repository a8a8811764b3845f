"""Pure: what a settlement says about its endpoint: health, limits, speed."""

from __future__ import annotations

from typing import Protocol

from agentcloud.cluster.contracts import Outcome, Settlement, TokenUsage
from agentcloud.cluster.endpoint import EndpointState
from agentcloud.cluster.limits import cooldown_s
from agentcloud.cluster.predict import blend_slowness
from agentcloud.cluster.prefill import pairs_of
from agentcloud.cluster.retry import HEALTH_KINDS, RATE_LIMIT_KIND


class Sent(Protocol):
    """What learning needs to know of a lease: its endpoint's load at the grant."""

    state: EndpointState
    running: int
    input_tokens: int
    ahead: tuple[float, float]
    max_output_tokens: int


def judge(
    state: EndpointState,
    granted_s: float,
    settlement: Settlement,
    now_s: float,
    wall_s: float | None,
) -> None:
    """Draw conclusions on the endpoint's health and the account's limits.

    Args:
        state: the endpoint.
        granted_s: when the lease was granted.
        settlement: how the call ended.
        now_s: now, on the scheduler's clock.
        wall_s: now, seconds since 1970, to read a reset's date by; None: unknown.
    """
    circuit = state.circuit
    kind = settlement.error_kind
    # Five cases: answered; told to slow down; the endpoint's fault; ended without saying
    # anything; the request's own fault, which only a living endpoint finds.
    if settlement.outcome is Outcome.OK:
        circuit.on_ok(granted_s)
        state.concurrency.on_ok(granted_s, now_s)
    elif kind == RATE_LIMIT_KIND:
        rest_s = cooldown_s(settlement.retry_after_s, settlement.limit_headers, wall_s)
        state.concurrency.on_rate_limited(granted_s, now_s)
        if state.cls.limiter is not None:
            state.cls.limiter.refused(settlement.limit_headers, rest_s, now_s)
            circuit.on_nothing(granted_s)
        else:
            circuit.on_failure(kind, granted_s, now_s, rest_s)
    elif kind in HEALTH_KINDS:
        circuit.on_failure(kind, granted_s, now_s, settlement.retry_after_s)
    elif kind is None or settlement.outcome is not Outcome.FAILED:
        circuit.on_nothing(granted_s)
    else:
        circuit.on_ok(granted_s)


def bound_limits(
    state: EndpointState, settlement: Settlement, now_s: float, wall_s: float | None
) -> None:
    """Let the headers of a response bound its account's limits.

    Args:
        state: the endpoint that gave it.
        settlement: of the call; the headers of a stream came with its first token.
        now_s: now, on the scheduler's clock.
        wall_s: now, seconds since 1970; None: unknown.
    """
    limiter = state.cls.limiter
    if limiter is not None and settlement.limit_headers:
        age_s = settlement.timings.generation_s or 0.0
        limiter.correct(settlement.limit_headers, now_s, age_s=age_s, wall_s=wall_s)


def learn(sent: Sent, settlement: Settlement, usage: TokenUsage) -> None:
    """Teach the class of the endpoint by an answered call."""
    timings = settlement.timings
    service_s = None
    if timings.ttft_s is not None and timings.generation_s is not None:
        service_s = timings.ttft_s + timings.generation_s
    elif timings.total_s is not None:
        service_s = max(0.0, timings.total_s - (timings.queue_s or 0.0))
    state = sent.state
    predictor = state.cls.predictor
    # The share that the endpoint says it had cached, of the prompt as it was estimated.
    share = usage.cache_read_tokens / usage.prompt_tokens if usage.cache_read_tokens else 0.0
    cached = share * sent.input_tokens
    own = sent.input_tokens - cached
    prompt_tokens = own + sent.ahead[0]
    prompt_pairs = pairs_of(own, cached) + sent.ahead[1]
    if service_s is not None:
        expected = predictor.estimate(
            sent.running, prompt_tokens, float(usage.output_tokens), 1.0, prompt_pairs
        )
        if expected.known:
            state.slowness = blend_slowness(state.slowness, service_s, expected.total_s)
    predictor.learn(
        running=sent.running,
        prompt_tokens=prompt_tokens,
        prompt_pairs=prompt_pairs,
        max_output_tokens=sent.max_output_tokens,
        output_tokens=usage.output_tokens,
        ttft_s=timings.ttft_s,
        generation_s=timings.generation_s,
        service_s=service_s,
    )
